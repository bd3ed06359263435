"""The protocol of file stores. Each kind of store is one module."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file below a root."""

    name: str
    """Path relative to the root, with `/` as separator on every system."""
    size: int
    """Bytes."""


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

    def upload(self, name: str, path: Path) -> str | None: ...

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None: ...
