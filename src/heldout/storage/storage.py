"""The door itself: a root, local or remote, and the files below it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from heldout.errors import ReferenceProblem
from heldout.storage.base import FileInfo, Files, Versioned
from heldout.storage.local import LocalFiles
from heldout.storage.s3 import S3Files

_S3 = "s3://"
_FILE = "file://"


def is_remote(location: str) -> bool:
    """Whether `location` is not on this machine: an `s3://` URI."""
    return location.startswith(_S3)


def split_location(location: str) -> tuple[str, str]:
    """The folder a location lies in, and its name there; the name is empty where nothing lies above (a bucket, `/`, `..`).

    "s3://bucket/a/b.csv" -> ("s3://bucket/a", "b.csv"); "b.csv" -> (".", "b.csv"); "s3://bucket" -> ("s3://bucket", "")
    """
    trimmed = location.rstrip("/")
    folder, _, name = trimmed.rpartition("/")
    if name in {"", ".", ".."} or folder == _S3.removesuffix("/"):
        return location, ""
    if folder in {"", _FILE} and "/" in trimmed:
        return f"{folder}/", name
    return folder or ".", name


class Storage:
    """The files below one root: a folder, or a bucket and prefix. Names are relative to it, parts separated by `/`.

    What was written is there for every reader when the call returns, whole. Every method raises
    `heldout.errors.StorageError` when reading or writing fails, and `ReferenceProblem` when the root names nothing
    usable (no such bucket, no credentials) or a name leads out of it.
    """

    def __init__(self, location: str, files: Files) -> None:
        self.location = location
        """As given to `at`."""
        self._files = files

    @staticmethod
    def at(location: str, *, kms_key: str | None = None) -> "Storage":
        """The storage at a local path, a `file://` URI or `s3://bucket/prefix`; touches neither disk nor network.

        kms_key: ARN or id of the AWS KMS key that new objects are encrypted with; only for `s3://`. By default the
        bucket decides. Raises ReferenceProblem for anything else.
        """
        if is_remote(location):
            bucket, _, prefix = location.removeprefix(_S3).partition("/")
            if not bucket:
                raise ReferenceProblem(f"{location!r} names no bucket; expected s3://bucket/prefix")
            return Storage(location, S3Files(bucket, prefix.strip("/"), os.environ, kms_key=kms_key))
        if kms_key is not None:
            raise ReferenceProblem(f"a KMS key encrypts objects in s3:// only, and {location!r} is a local path")
        return Storage(location, LocalFiles(_local_path(location)))

    def list(self, prefix: str = "") -> Iterator[FileInfo]:
        """Every file at any depth below the folder `prefix`, sorted by name; none if there is no such folder."""
        return self._files.list(_checked(prefix.rstrip("/")) if prefix else "")

    def children(self, prefix: str = "") -> Sequence[str]:
        """Names of the files and folders directly in the folder `prefix`, sorted."""
        return self._files.children(_checked(prefix.rstrip("/")) if prefix else "")

    def read(self, name: str) -> bytes:
        """A whole file, in memory."""
        return self._files.read(_checked(name))

    def open(self, name: str) -> BinaryIO:
        """A buffered, seekable file to read, fetched as it is read; the caller closes it.

        An object that changes while it is read raises StorageError rather than mixing two versions.
        """
        return self._files.open(_checked(name))

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces a file; readers see the old one or the whole new one, and on return it is durable."""
        self._files.write(_checked(name), data)

    def upload(self, name: str, path: Path) -> str | None:
        """`write` with the contents of a local file, in bounded memory; the version it has now, where there are versions."""
        return self._files.upload(_checked(name), path)

    def read_version(self, name: str) -> Versioned | None:
        """A whole file and which version of it that is; None when there is none. Only of `s3://`."""
        return self._objects().read_version(_checked(name))

    def replace(self, name: str, data: bytes, version: str | None) -> str | None:
        """`write`, if the file is still at `version` (None: if there is none): its new version, or None when it is not.

        Of several that replace the same version at the same time one succeeds, where the service knows conditional writes
        (Amazon S3: PutObject with If-Match and If-None-Match); one that does not, and says so, writes unconditionally. None may
        also mean that this very write succeeded and its answer was lost: whoever must know reads again. Only of `s3://`.
        """
        return self._objects().replace(_checked(name), data, version)

    def exists(self, name: str) -> bool:
        """Whether there is a file (not a folder) of this name."""
        return self._files.exists(_checked(name))

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        self._files.delete(_checked(name))

    def _objects(self) -> S3Files:
        if not isinstance(self._files, S3Files):
            raise ReferenceProblem(f"versions are of objects in s3://, and {self.location!r} is a local path")
        return self._files


def expanded(name: str) -> str:
    """`name` with `~` or `~user` at its beginning replaced by that user's home, as a shell does only for words of its own.

    For whatever may be a path: an agent, a model, a dataset, a folder. What begins with no such thing stays as it is.
    """
    return os.path.expanduser(name)  # noqa: PTH111 - a Path would take the second slash out of http://


def _local_path(location: str) -> Path:
    if location.startswith(_FILE):
        location = unquote(urlsplit(location).path)
    scheme, separator, _ = location.partition("://")
    if separator and scheme.isalnum():
        raise ReferenceProblem(
            f"{location!r} cannot be read from; expected a local path, file:// or s3://bucket/prefix"
        )
    if not location:
        raise ReferenceProblem("a location is empty; expected a local path, file:// or s3://bucket/prefix")
    return Path(expanded(location))


def _checked(name: str) -> str:
    if not name or any(part in {"", ".", ".."} for part in name.split("/")):
        raise ReferenceProblem(f"file name {name!r} must be a relative path without empty parts, '.' and '..'")
    return name
