"""Sends the output of attempts to the engine, each under its session, as soon as it is written."""

import io
import os
import sys
from contextvars import ContextVar

from heldout.agents.worker_protocol import write_output

current_session: ContextVar[bytes] = ContextVar("current_session", default=b"")
"""The attempt this code runs for; empty outside of one. Tasks and `asyncio.to_thread` inherit it, bare threads do not."""


def route_output(frames_fd: int) -> None:
    """Replaces sys.stdout and sys.stderr. Output outside of any attempt goes to descriptors 1 and 2."""
    sys.stdout = AttemptStream(frames_fd, 1)
    sys.stderr = AttemptStream(frames_fd, 2)


class AttemptBytes(io.RawIOBase):
    """The binary side of an AttemptStream, for `sys.stdout.buffer.write`."""

    def __init__(self, frames_fd: int, raw_fd: int) -> None:
        self._frames_fd = frames_fd
        self._raw_fd = raw_fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw_fd

    def close(self) -> None:
        """Does nothing: all attempts of the worker share the stream, and one of them may close it."""

    def write(self, data: object) -> int:
        content = bytes(memoryview(data))  # type: ignore[arg-type]  # any buffer, as RawIOBase.write takes
        session = current_session.get()
        if session:
            write_output(self._frames_fd, session, content)
        else:
            _write_all(self._raw_fd, content)
        return len(content)


class AttemptStream(io.TextIOBase):
    """A text stream that stands in for sys.stdout or sys.stderr; unbuffered, so that a crash loses nothing."""

    def __init__(self, frames_fd: int, raw_fd: int) -> None:
        self.buffer = AttemptBytes(frames_fd, raw_fd)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in typeshed
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.buffer.fileno()

    def close(self) -> None:
        """Does nothing, as `AttemptBytes.close`."""

    def detach(self) -> AttemptBytes:  # type: ignore[override]  # a RawIOBase where typeshed has a BinaryIO
        """Returns the binary side. The stream stays in use: other attempts share it."""
        return self.buffer

    def reconfigure(self, **_options: object) -> None:
        """Accepts and ignores the options of a TextIOWrapper (encoding, buffering)."""

    def write(self, text: str) -> int:
        self.buffer.write(text.encode("utf-8", "backslashreplace"))
        return len(text)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
