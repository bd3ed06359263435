"""The protocol of file stores. Each kind of store is one module."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file below a root."""

    name: str
    """Path relative to the root, with `/` as separator on every system."""
    size: int
    """Bytes."""
    version: str | None = field(default=None, compare=False)
    """Identifies the version of an object; None on local paths."""


class Versioned(NamedTuple):
    """One version of a file."""

    data: bytes
    version: str
    """Identifies the version; two reads have the same one if there was no write between them."""
    age_seconds: float
    """Seconds since the write, by this machine's clock."""


class Files(Protocol):
    """The files below one root. Names are relative paths with `/` as separator; the caller checks them.

    `heldout.storage.Storage` documents each method. Every method raises `heldout.errors.StorageError` if reading or writing
    fails, and `ReferenceProblem` if the root is unusable (no such bucket, no credentials).
    """

    def list(self, prefix: str) -> Iterator[FileInfo]: ...

    def children(self, prefix: str) -> Sequence[str]: ...

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO: ...

    def write(self, name: str, data: bytes) -> None: ...

    def upload(self, name: str, path: Path, before_completion: Callable[[], None] | None = None) -> str | None: ...

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None: ...


@runtime_checkable
class VersionedFiles(Files, Protocol):
    """Files with versions, and writes on condition of one: objects in S3."""

    def describe(self, name: str) -> FileInfo | None: ...

    def read_version(self, name: str) -> Versioned | None: ...

    def replace(self, name: str, data: bytes | Path, version: str | None) -> str | None: ...
