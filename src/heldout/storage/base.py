"""What every kind of file store can do: one protocol, one module per kind behind it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file below a root."""

    name: str
    """Path relative to the root, parts separated by `/` on every system."""
    size: int
    """Bytes."""


class Versioned(NamedTuple):
    """What a file held at one moment."""

    data: bytes
    version: str
    """Names this content of this file; equal when nobody has written since."""
    age_seconds: float
    """Since it was written, by this machine's clock."""


class Files(Protocol):
    """The files below one root. Names are relative, separated by `/`, and checked by the caller (`heldout.storage.Storage`).

    Every method raises `heldout.errors.StorageError` when reading or writing fails, and `ReferenceProblem` when the root
    itself names nothing usable (no such bucket, no credentials).
    """

    def list(self, prefix: str) -> Iterator[FileInfo]: ...

    def children(self, prefix: str) -> Sequence[str]: ...

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO: ...

    def write(self, name: str, data: bytes) -> None: ...

    def upload(self, name: str, path: Path) -> str | None: ...

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None: ...
