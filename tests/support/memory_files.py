"""Objects in memory, with versions and conditional writes as S3 has them, and with a clock of the test's own."""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from heldout.errors import StorageError
from heldout.storage import FileInfo, Versioned


class _Object(NamedTuple):
    data: bytes
    version: str
    written_at: float


class Bucket:
    """The objects that several machines share. clock: the service's own, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.objects: dict[str, _Object] = {}
        self.clock = clock
        self._versions = itertools.count()

    def put(self, name: str, data: bytes) -> str:
        """Writes an object. Returns its version."""
        self.objects[name] = _Object(data, f"v{next(self._versions)}", self.clock())
        return self.objects[name].version


class MemoryFiles:
    """A machine's access to a bucket. Before each request it calls `on_request`, which may raise."""

    def __init__(self, bucket: Bucket, *, clock_error: float = 0.0) -> None:
        """clock_error: seconds by which this machine's clock is ahead of the service's."""
        self._bucket = bucket
        self._clock_error = clock_error
        self.on_request: Callable[[str, str], None] = lambda _method, _name: None
        self.loses_replies = False
        """Writes are done, and their replies are lost."""

    def list(self, prefix: str) -> Iterator[FileInfo]:
        self.on_request("list", prefix)
        inside = f"{prefix}/" if prefix else ""
        for name, found in sorted(self._bucket.objects.items()):
            if name.startswith(inside):
                yield FileInfo(name, len(found.data), found.version)

    def children(self, prefix: str) -> Sequence[str]:
        start = len(prefix) + 1 if prefix else 0
        return sorted({info.name[start:].partition("/")[0] for info in self.list(prefix)})

    def read(self, name: str) -> bytes:
        if (found := self.read_version(name)) is None:
            raise StorageError(f"no object {name!r}")
        return found.data

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.read(name))

    def write(self, name: str, data: bytes) -> None:
        self.on_request("write", name)
        self._bucket.put(name, data)
        self._reply()

    def upload(self, name: str, path: Path, before_completion: Callable[[], None] | None = None) -> str:
        if before_completion is not None:
            before_completion()
        self.write(name, path.read_bytes())
        return self._bucket.objects[name].version

    def exists(self, name: str) -> bool:
        return self.describe(name) is not None

    def delete(self, name: str) -> None:
        self.on_request("delete", name)
        self._bucket.objects.pop(name, None)
        self._reply()

    def describe(self, name: str) -> FileInfo | None:
        self.on_request("describe", name)
        found = self._bucket.objects.get(name)
        return None if found is None else FileInfo(name, len(found.data), found.version)

    def read_version(self, name: str) -> Versioned | None:
        self.on_request("read", name)
        if (found := self._bucket.objects.get(name)) is None:
            return None
        return Versioned(found.data, found.version, self._bucket.clock() + self._clock_error - found.written_at)

    def replace(self, name: str, data: bytes | Path, version: str | None) -> str | None:
        self.on_request("replace", name)
        found = self._bucket.objects.get(name)
        if (None if found is None else found.version) != version:
            return None
        written = self._bucket.put(name, data if isinstance(data, bytes) else data.read_bytes())
        self._reply()
        return written

    def _reply(self) -> None:
        if self.loses_replies:
            raise StorageError("the reply was lost")
