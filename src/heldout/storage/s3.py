"""Objects in S3 or in a compatible service, through obstore."""

import io
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from heldout.errors import HeldoutError, ReferenceProblem, StorageError, did_you_mean
from heldout.storage.aws import AwsSettings, aws_settings
from heldout.storage.base import FileInfo, Versioned

# A request takes a round trip of some 50 ms; with 8 MiB a request, latency no longer limits a sequential read.
_READ_AHEAD_BYTES = 8 * 1024 * 1024
# Six tries over about two seconds: enough for a dropped connection or a restarting server worker, and short enough
# to report an endpoint without a server soon.
_RETRIES = 5
_SHORT_BODY_WAITS_SECONDS = (0.1, 0.5, 2.0)


class S3Files:
    """Objects of a bucket below a prefix. The first call reads the settings from `environ`, like AWS tools."""

    def __init__(self, bucket: str, prefix: str, environ: Mapping[str, str], *, kms_key: str | None = None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._location = f"s3://{bucket}/{prefix}".rstrip("/")
        self._environ = environ
        self._kms_key = kms_key

    def list(self, prefix: str) -> Iterator[FileInfo]:
        with self._refusals_explained(prefix):
            pages = obstore.list(self._store, self._key(prefix) or None)
            found = {self._name(entry["path"]): (entry["size"], entry["e_tag"]) for page in pages for entry in page}
        # Consoles mark a folder by a key that ends in `/`; obstore returns it as the folder itself.
        found.pop("", None)
        found.pop(prefix, None)
        yield from (FileInfo(name, size, version) for name, (size, version) in sorted(found.items()))

    def children(self, prefix: str) -> Sequence[str]:
        with self._refusals_explained(prefix):
            page = obstore.list_with_delimiter(self._store, self._key(prefix) or None)
        keys = [*page["common_prefixes"], *(entry["path"] for entry in page["objects"])]
        return sorted({key.rpartition("/")[2] for key in keys if key != self._key(prefix)})

    def read(self, name: str) -> bytes:
        with self._refusals_explained(name):
            return bytes(self._whole(name)[1])

    def open(self, name: str) -> BinaryIO:
        with self._refusals_explained(name):
            head = obstore.head(self._store, self._key(name))
        return io.BufferedReader(_ObjectReader(self, name, head["size"], head["e_tag"]), _READ_AHEAD_BYTES)

    def write(self, name: str, data: bytes) -> None:
        with self._refusals_explained(name):
            obstore.put(self._store, self._key(name), data)

    def read_version(self, name: str) -> Versioned | None:
        with self._refusals_explained(name):
            try:
                meta, data = self._whole(name)
            except FileNotFoundError as error:
                if _error_code(str(error)) == "NoSuchBucket":
                    raise
                return None
            age = datetime.now(UTC) - meta["last_modified"]
            return Versioned(bytes(data), meta["e_tag"] or "", age.total_seconds())

    def describe(self, name: str) -> FileInfo | None:
        with self._refusals_explained(name):
            try:
                meta = obstore.head(self._store, self._key(name))
            except FileNotFoundError:
                return None
            return FileInfo(name, meta["size"], meta["e_tag"] or "")

    def replace(self, name: str, data: bytes | Path, version: str | None) -> str | None:
        with self._refusals_explained(name):
            try:
                put = obstore.put(
                    self._store, self._key(name), data, mode="create" if version is None else {"e_tag": version}
                )
            except (AlreadyExistsError, PreconditionError) as error:
                if _error_code(str(error)) == "NoSuchBucket":
                    raise
                return None
            except BaseError as error:
                if _error_code(str(error)) != "NotImplemented":
                    raise
                put = obstore.put(self._store, self._key(name), data)
            return put["e_tag"] or ""

    def upload(self, name: str, path: Path, before_completion: Callable[[], None] | None = None) -> str | None:
        if not path.is_file():
            raise StorageError(f"cannot upload {str(path)!r}: no such file")
        with self._refusals_explained(name):
            if before_completion is None:
                return obstore.put(self._store, self._key(name), path)["e_tag"]
            writer = obstore.open_writer(self._store, self._key(name))
            with path.open("rb") as source:
                shutil.copyfileobj(source, writer, _READ_AHEAD_BYTES)
            before_completion()
            writer.close()
            return obstore.head(self._store, self._key(name))["e_tag"]

    def exists(self, name: str) -> bool:
        with self._refusals_explained(name):
            try:
                obstore.head(self._store, self._key(name))
            except FileNotFoundError:
                return False
            return True

    def delete(self, name: str) -> None:
        with self._refusals_explained(name):
            obstore.delete(self._store, self._key(name))

    def read_range(self, name: str, start: int, end: int, e_tag: str | None) -> memoryview:
        """Reads bytes `start` to `end` (exclusive) of the version with this ETag; of the current version if it is None."""
        with self._refusals_explained(name):
            options: obstore.GetOptions = {"range": (start, end)}
            if e_tag is not None:
                options["if_match"] = e_tag
            return memoryview(self._whole(name, options)[1])

    def _whole(
        self, name: str, options: "obstore.GetOptions | None" = None
    ) -> "tuple[obstore.ObjectMeta, obstore.Bytes]":
        """Reads a body to its end. A connection that is closed in the middle is opened again."""
        for wait in (*_SHORT_BODY_WAITS_SECONDS, None):
            found = obstore.get(self._store, self._key(name), options=options)
            start, end = found.range
            try:
                data = found.bytes()
            except GenericError:
                if wait is None:
                    raise
            else:
                if len(data) == end - start:
                    return found.meta, data
            time.sleep(wait or 0.0)
        raise StorageError(
            f"{self._location}/{name}: the body was cut short {len(_SHORT_BODY_WAITS_SECONDS) + 1} times; try again"
        )

    @cached_property
    def _settings(self) -> AwsSettings:
        return aws_settings(self._location, self._environ)

    @cached_property
    def _store(self) -> S3Store:
        settings = self._settings
        encryption = {"server_side_encryption": "aws:kms", "sse_kms_key_id": self._kms_key} if self._kms_key else {}
        endpoint = {"endpoint": settings.endpoint} if settings.endpoint else {}
        return S3Store(
            self._bucket,
            region=settings.region,
            credential_provider=settings.credentials,
            client_options={"allow_http": True, "timeout": "10min", "read_timeout": "1min", "connect_timeout": "5s"},
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=1)},
            **endpoint,  # type: ignore[arg-type]
            **encryption,  # type: ignore[arg-type]
        )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".strip("/")

    def _name(self, key: str) -> str:
        return key.removeprefix(self._prefix).lstrip("/")

    @contextmanager
    def _refusals_explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except HeldoutError:
            raise
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error, name) from error

    def _explained(self, error: Exception, name: str) -> HeldoutError:
        message = str(error)
        code = _error_code(message)
        place = f"{self._location}/{name}".rstrip("/")
        where = self._settings.endpoint or f"Amazon S3 in {self._settings.region}"
        if code == "NoSuchBucket":
            return ReferenceProblem(f"no bucket {self._bucket!r} at {where} (looked for {place})")
        if isinstance(error, FileNotFoundError):
            return StorageError(f"no object {name!r} in {self._location}.{self._nearest(name)}")
        if isinstance(error, PreconditionError):
            return StorageError(f"{place} was replaced while it was being read; start again")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            return StorageError(
                f"{where} denies access to {place}: {code or 'no reason given'} ({self._settings.origin})"
            )
        if "error sending request" in message:
            return StorageError(
                f"cannot reach {where} for {place}; the endpoint is set by AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL"
            )
        if "redirect" in message.lower():
            return StorageError(
                f"{place} is not in region {self._settings.region!r}; set AWS_REGION to the bucket's region"
            )
        return StorageError(f"{place}: {code or message.splitlines()[0]}")

    def _nearest(self, name: str) -> str:
        folder, _, last = name.rpartition("/")
        try:
            return did_you_mean(last, self.children(folder))
        except StorageError:
            return ""


class _ObjectReader(io.RawIOBase):
    """An object as an unbuffered file. Each read is one range request for the opened version."""

    def __init__(self, files: S3Files, name: str, size: int, e_tag: str | None) -> None:
        super().__init__()
        self._files = files
        self._name = name
        self._size = size
        self._e_tag = e_tag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readall(self) -> bytes:
        # The inherited method reads 8 KiB at a time, one request each.
        data = bytearray(max(0, self._size - self._position))
        self.readinto(memoryview(data))
        return bytes(data)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        data = self._files.read_range(self._name, self._position, end, self._e_tag)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _error_code(message: str) -> str | None:
    """The `Code` of the XML error body in obstore's message, if it has one."""
    found = re.search(r"<Code>(\w+)</Code>", message)
    return found.group(1) if found else None
