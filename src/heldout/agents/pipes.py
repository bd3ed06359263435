"""What processes print, as it comes out of their pipes."""

import asyncio
import os

OUTPUT_BYTES = 64 * 1024
"""How much of an attempt's output is kept: its last 64 KiB."""
_PIPE_BYTES = 1 << 20
"""What a pipe can hold at most, unless root says otherwise (pipe(7)); it is 64 KiB where nobody asked for more."""


class Tail:
    """The last OUTPUT_BYTES of what was added."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Adds bytes, dropping the oldest."""
        self._data += data
        if len(self._data) > 2 * OUTPUT_BYTES:
            del self._data[:-OUTPUT_BYTES]

    def text(self) -> str:
        """What is kept, as text."""
        return self._data[-OUTPUT_BYTES:].decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line that is not empty; empty if there is none."""
        return (self.text().strip().splitlines() or [""])[-1]


def read_pipe(fd: int) -> bytes:
    """What a pipe holds now. At its end (all who write have closed it) the running loop does not watch it any more."""
    try:
        data = os.read(fd, _PIPE_BYTES)
    except BlockingIOError:
        return b""
    if not data:
        asyncio.get_running_loop().remove_reader(fd)
    return data
