"""The protocol between the engine and its worker processes: requests for workers, HTTP headers, and frames of output.

The engine asks the launcher for workers over a socket. A request is `{"worker": 1, "key": "...", "environment": {}}`, where
`environment` holds changes to the launcher's (null removes a variable). Three descriptors come with it: the worker's ends of its
lifeline, its output and its frames. The launcher answers in lines of JSON: `{"preloaded": ["httpx"]}` once, the packages that all
workers share; `{"worker": 1, "pid": 1234}` or `{"worker": 1, "problem": "..."}` for each request;
`{"worker": 1, "exit_status": -9}` at a worker's end.

Workers write output in frames, at once, so that a crash loses nothing. A frame is
`<session length: u16><data length: u16><session><data>`, little endian. A frame without a session holds a message of the worker
itself, one line of JSON: `{"port": 1234, "loaded": {}}` when it serves, `{"problem": "..."}` when it cannot, `{"loaded": {}}`
when it is asked to end. `loaded` lists its code (`heldout.agents.worker.loaded_code`). Frames are at most PIPE_BUF bytes,
which POSIX writes to a pipe whole or not at all: threads and forked children need no lock.
"""

import asyncio
import json
import os
import select
import struct
from typing import NamedTuple

SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
KEY_HEADER = "Heldout-Worker-Key"
"""Proves that a request comes from the engine: any local user can reach a loopback port."""

REQUEST_BYTES = 1 << 16
"""The largest request for a worker."""
REQUEST_DESCRIPTORS = 3

START_SECONDS = 300.0
"""How long a worker may take to start: importing an agent may load a model; an import that takes longer hangs."""
CANCEL_SECONDS = 1.0
"""How long a cancelled attempt may take to unwind before it counts as stuck."""
LOOP_ANSWER_SECONDS = 4.0
"""An event loop that does not answer within this time is blocked. Async code that calls a blocking client stops its loop for the
length of a model call, which may be seconds."""

OUTPUT_BYTES = 64 * 1024
"""How much of an attempt's output is kept: the last 64 KiB."""
_PIPE_BYTES = 1 << 20
"""The most that a pipe can hold without root (pipe(7)); the default is 64 KiB."""

_HEADER = struct.Struct("<HH")
_FRAME_BYTES = min(select.PIPE_BUF, 4096)


class Frame(NamedTuple):
    """A piece of one attempt's output; `session` is empty for a message of the worker itself."""

    session: str
    data: bytes


def write_output(fd: int, session: bytes, data: bytes) -> None:
    """Writes output of the attempt `session` (at most 256 bytes). Blocks while the pipe is full."""
    room = _FRAME_BYTES - _HEADER.size - len(session)
    for start in range(0, len(data), room):
        piece = data[start : start + room]
        os.write(fd, _HEADER.pack(len(session), len(piece)) + session + piece)


def write_message(fd: int, message: dict[str, object]) -> None:
    """Writes a message of the worker itself, as one line of JSON."""
    write_output(fd, b"", json.dumps(message).encode() + b"\n")


class FrameReader:
    """Splits the bytes of a pipe, fed as they arrive, into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Takes bytes and returns the frames that they complete."""
        data = self._rest + data
        frames, start = [], 0
        while len(data) - start >= _HEADER.size:
            session_length, data_length = _HEADER.unpack_from(data, start)
            session_end = start + _HEADER.size + session_length
            end = session_end + data_length
            if end > len(data):
                break
            frames.append(Frame(data[start + _HEADER.size : session_end].decode(), data[session_end:end]))
            start = end
        self._rest = data[start:]
        return frames


class Tail:
    """The last OUTPUT_BYTES of the bytes added."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Adds bytes and drops the oldest."""
        self._data += data
        if len(self._data) > 2 * OUTPUT_BYTES:
            del self._data[:-OUTPUT_BYTES]

    def text(self) -> str:
        """The kept bytes, decoded as UTF-8."""
        return self._data[-OUTPUT_BYTES:].decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line with text; empty if there is none."""
        return (self.text().strip().splitlines() or [""])[-1]


def read_pipe(fd: int) -> bytes:
    """Reads what a non-blocking pipe holds now. At the end of the pipe, removes it from the running loop's readers."""
    try:
        data = os.read(fd, _PIPE_BYTES)
    except BlockingIOError:
        return b""
    if not data:
        asyncio.get_running_loop().remove_reader(fd)
    return data
