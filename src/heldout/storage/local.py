"""Files of this machine, each replaced as a whole and on the disk before a write returns."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from heldout.errors import HeldoutError, StorageError, did_you_mean
from heldout.storage.base import FileInfo

# What a killed writer may leave behind; such files are never listed.
_PARTIAL_SUFFIX = ".heldout-partial"


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A new file that appears at `path` whole, when the block ends well, and not at all when it raises.

    A reader sees the old file or the new one, also after a power cut: data and folder are synchronised before the block
    returns. Folders above `path` are made. Raises StorageError when the file system refuses.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL_SUFFIX}")
    with _refusals_explained("write", path):
        _make_folder(path.parent)
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        synchronise_folder(path.parent)


def discard_partial_files(folder: Path) -> None:
    """Removes what killed writers left directly in `folder`. Only for who knows that nobody writes there now."""
    for path in folder.glob(f".*{_PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def why_not_writable(folder: Path) -> str | None:
    """Why nothing could be written below `folder`, which need not exist; None when it could. Leaves nothing behind."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        return f"{str(there)!r} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"{str(there)!r}: {error.strerror or error}"


def synchronise_folder(folder: Path) -> None:
    """Makes a new or renamed name in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalFiles:
    """The files below a folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self, prefix: str) -> Iterator[FileInfo]:
        with _refusals_explained("list", self._root / prefix):
            found = sorted(
                (path.relative_to(self._root).as_posix(), path)
                for path in _below(self._root / prefix)
                if path.is_file() and not path.name.endswith(_PARTIAL_SUFFIX)
            )
            yield from (FileInfo(name, path.stat().st_size) for name, path in found)

    def children(self, prefix: str) -> Sequence[str]:
        folder = self._root / prefix
        with _refusals_explained("list", folder):
            names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
            return sorted(name for name in names if not name.endswith(_PARTIAL_SUFFIX))

    def read(self, name: str) -> bytes:
        with self._reading(name) as path:
            return path.read_bytes()

    def open(self, name: str) -> BinaryIO:
        with self._reading(name) as path:
            return path.open("rb")

    def write(self, name: str, data: bytes) -> None:
        with open_atomic(self._root / name) as file:
            file.write(data)

    def upload(self, name: str, path: Path) -> None:
        with _refusals_explained("read", path), path.open("rb") as source, open_atomic(self._root / name) as file:
            shutil.copyfileobj(source, file, 1024 * 1024)

    def exists(self, name: str) -> bool:
        with _refusals_explained("look for", self._root / name):
            return (self._root / name).is_file()

    def delete(self, name: str) -> None:
        with _refusals_explained("delete", self._root / name):
            (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self._root / name
        with _refusals_explained("read", path):
            try:
                yield path
            except FileNotFoundError as error:
                folder, _, last = name.rpartition("/")
                hint = did_you_mean(last, self.children(folder))
                raise StorageError(f"no file {name!r} in {str(self._root)!r}.{hint}") from error


def _below(root: Path) -> Iterator[Path]:
    """What lies below a folder and is none; linked folders are followed, but for those that lead back to where they are."""
    for name, folders, names in os.walk(root, onerror=_raise_unless_missing, followlinks=True):
        folder = Path(name)
        folders[:] = [one for one in folders if not _leads_back(folder / one)]
        yield from (folder / one for one in names)


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in {parent.resolve() for parent in folder.parents}


def _raise_unless_missing(error: OSError) -> None:
    """A folder that cannot be read is not an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _refusals_explained(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except HeldoutError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {verb} {str(path)!r}: {error.strerror or error}") from error


def _make_folder(folder: Path) -> None:
    """Makes `folder` and those above it; each new name is on the disk when this returns."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    synchronise_folder(folder.parent)
