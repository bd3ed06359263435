"""Files on this machine. A write replaces the whole file and is durable when it returns."""

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from heldout.errors import HeldoutError, StorageError, did_you_mean
from heldout.storage.base import FileInfo

# Suffix of files that a killed writer may leave behind. They are never listed.
_PARTIAL_SUFFIX = ".heldout-partial"


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` when the block ends, and is discarded if the block raises.

    A reader sees the old file or the whole new one, also after a power failure: data and folder are synchronised before the
    block returns. Missing folders are created. Raises StorageError if the file system refuses.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL_SUFFIX}")
    with _refusals_explained("write", path):
        _make_folder(path.parent)
        try:
            with partial.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # `discard_partial_files` leaves it alone
                yield file
                file.flush()
                synchronise(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        synchronise_folder(path.parent)


def discard_partial_files(folder: Path) -> None:
    """Removes the files that killed writers left directly in `folder`. Files of writers that are alive stay."""
    for path in folder.glob(f".*{_PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a writer holds this lock until its file is whole
            path.unlink()


def why_not_writable(folder: Path) -> str | None:
    """The reason why files cannot be written below `folder`, which need not exist; None if they can. Leaves no file behind."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        return f"{str(existing)!r} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{str(existing)!r}: {error.strerror or error}"


def synchronise(descriptor: int) -> None:
    """Makes the content of an open file durable. Raises OSError.

    On macOS fsync leaves data in the drive's cache, so the file is flushed with F_FULLFSYNC (fsync(2) of macOS); a file system
    without it gets fsync. Elsewhere fdatasync writes no more than reading the data back needs, where the system has it.
    """
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:
            os.fsync(descriptor)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


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

    def upload(self, name: str, path: Path, before_completion: Callable[[], None] | None = None) -> None:
        with _refusals_explained("read", path), path.open("rb") as source, open_atomic(self._root / name) as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
            if before_completion is not None:
                before_completion()

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
    """All files below a folder. Links to folders are followed, except links to a folder above them."""
    for name, folders, names in os.walk(root, onerror=_raise_unless_missing, followlinks=True):
        folder = Path(name)
        folders[:] = [one for one in folders if not _is_cycle(folder / one)]
        yield from (folder / one for one in names)


def _is_cycle(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in {parent.resolve() for parent in folder.parents}


def _raise_unless_missing(error: OSError) -> None:
    """Raises unless the folder is missing: an unreadable folder must not count as empty."""
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
    """Creates `folder` and missing folders above it. The new names are durable when this returns."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    synchronise_folder(folder.parent)
