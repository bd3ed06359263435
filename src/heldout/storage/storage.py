"""Storage: the files below a root, on a local path or in `s3://`."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from heldout.errors import ReferenceProblem
from heldout.storage.base import FileInfo, Files, Versioned, VersionedFiles
from heldout.storage.local import LocalFiles
from heldout.storage.s3 import S3Files

_S3 = "s3://"
_FILE = "file://"


def is_remote(location: str) -> bool:
    """Whether `location` is an `s3://` URI."""
    return location.startswith(_S3)


def split_location(location: str) -> tuple[str, str]:
    """The parent folder of a location and its name there. The name is empty if there is no parent (a bucket, `/`, `..`).

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
    """The files below one root: a folder, or a bucket and prefix. Names are relative paths with `/` as separator.

    A write is complete and visible to every reader when the call returns. Every method raises `heldout.errors.StorageError` if
    reading or writing fails, and `ReferenceProblem` if the root is unusable (no such bucket, no credentials) or a name leads out
    of it.
    """

    def __init__(self, location: str, files: Files) -> None:
        self.location = location
        """The location that was given to `at`."""
        self._files = files

    @staticmethod
    def at(location: str, *, kms_key: str | None = None) -> "Storage":
        """The storage at a local path, a `file://` URI or `s3://bucket/prefix`. Does no I/O.

        kms_key: ARN or id of the AWS KMS key that encrypts new objects; only for `s3://`. By default the bucket's setting
        applies. Raises ReferenceProblem for any other location, and for a key with a local path.
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
        """All files at any depth below the folder `prefix`, sorted by name. A missing folder has none."""
        return self._files.list(_checked(prefix.rstrip("/")) if prefix else "")

    def children(self, prefix: str = "") -> Sequence[str]:
        """Names of the files and folders directly in the folder `prefix`, sorted."""
        return self._files.children(_checked(prefix.rstrip("/")) if prefix else "")

    def read(self, name: str) -> bytes:
        """Reads a whole file into memory."""
        return self._files.read(_checked(name))

    def open(self, name: str) -> BinaryIO:
        """Opens a buffered, seekable file that is fetched while it is read. The caller closes it.

        Reading raises StorageError if the object changes meanwhile, so that two versions never mix.
        """
        return self._files.open(_checked(name))

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a file. Readers see the old file or the whole new one; on return the new one is durable."""
        self._files.write(_checked(name), data)

    def upload(self, name: str, path: Path, *, before_completion: Callable[[], None] | None = None) -> str | None:
        """Writes the contents of a local file, in bounded memory. Returns the new version, or None on local paths.

        before_completion: called before the uploaded contents replace the file. If it raises, the file stays as it was.
        """
        return self._files.upload(_checked(name), path, before_completion)

    def describe(self, name: str) -> FileInfo | None:
        """Size and version of a file; None if it does not exist. Only for `s3://`."""
        return self._objects().describe(_checked(name))

    def read_version(self, name: str) -> Versioned | None:
        """Reads a whole file and its version; None if it does not exist. Only for `s3://`."""
        return self._objects().read_version(_checked(name))

    def replace(self, name: str, data: bytes | Path, version: str | None) -> str | None:
        """Writes `data`, or the contents of a local file, if the file is still at `version` (None: if it does not exist).

        Returns the new version, or None if it is not.

        Of several concurrent calls for one version, one succeeds. This needs conditional writes (Amazon S3: PutObject with
        If-Match and If-None-Match); a service that answers NotImplemented gets an unconditional write. A return value of None may
        also mean that this write succeeded and its reply was lost; read the file to find out. Only for `s3://`.
        """
        return self._objects().replace(_checked(name), data, version)

    def exists(self, name: str) -> bool:
        """Whether a file (not a folder) of this name exists."""
        return self._files.exists(_checked(name))

    def delete(self, name: str) -> None:
        """Deletes a file. A missing file is ignored."""
        self._files.delete(_checked(name))

    def _objects(self) -> VersionedFiles:
        if not isinstance(self._files, VersionedFiles):
            raise ReferenceProblem(f"only objects in s3:// have versions, and {self.location!r} is a local path")
        return self._files


def expanded(name: str) -> str:
    """Replaces `~` or `~user` at the beginning of a name by that user's home, and a `file:` URI (RFC 8089) by its path.

    Other names are returned unchanged.

    Apply it to every name that may be a path: an agent, a model, a dataset, a folder. A shell expands only whole words.
    """
    if name.startswith("file:/"):
        return unquote(urlsplit(name).path)
    return os.path.expanduser(name)  # noqa: PTH111 - a Path would remove the second slash of http://


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
