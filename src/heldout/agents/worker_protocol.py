"""What the engine and its worker processes agree on: how one is asked for, headers, and frames on a pipe.

Workers are asked for on a socket. The process at its other end says `{"can_fork": true, "has_httpx": true, "read": ["HOME"]}`
once it has imported what it can, with the environment variables that were read for it. A request is
`{"worker": 1, "key": "...", "environment": {}}`, with what to change in the environment, and three descriptors: the worker's
lifeline, its output, its frames. It is answered with `{"worker": 1, "pid": 1234}`, the process's own when it cannot fork, or
with `{"worker": 1, "problem": "..."}`; and, when a fork has ended, `{"worker": 1, "exit_status": -9}`. All are lines of JSON.

Output crosses in frames, the moment it is written, so that a crash loses nothing. A frame is
`<session length: u16><data length: u16><session><data>`, little endian. Frames without a session hold the worker's own word: a
line of JSON, `{"port": 1234}` when it serves or `{"problem": "..."}` when it cannot. Frames are at most PIPE_BUF bytes, which
POSIX writes to a pipe whole or not at all: threads and forked children need no lock.
"""

import json
import os
import select
import struct
from typing import NamedTuple

SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
KEY_HEADER = "Heldout-Worker-Key"
"""Proves that a request comes from the engine: any local user can reach a loopback port."""

REQUEST_BYTES = 1 << 16
"""What a request for a worker takes at most."""
ALL_VARIABLES = "*"
"""Stands for the name of every environment variable."""
REQUEST_DESCRIPTORS = 3

CANCEL_SECONDS = 1.0
"""How long a cancelled attempt has to unwind before it counts as stuck."""
LOOP_ANSWER_SECONDS = 4.0
"""An event loop that does not answer for so long is blocked. Async code that calls a blocking client pauses its loop for a
model call at a time, which may take seconds."""

_HEADER = struct.Struct("<HH")
_FRAME_BYTES = min(select.PIPE_BUF, 4096)


class Frame(NamedTuple):
    """A piece of what one attempt printed; `session` is empty for the worker's own word."""

    session: str
    data: bytes


def write_output(fd: int, session: bytes, data: bytes) -> None:
    """Writes what the attempt `session` (at most 256 bytes) printed. Blocks while the pipe is full."""
    room = _FRAME_BYTES - _HEADER.size - len(session)
    for start in range(0, len(data), room):
        piece = data[start : start + room]
        os.write(fd, _HEADER.pack(len(session), len(piece)) + session + piece)


def write_word(fd: int, word: dict[str, object]) -> None:
    """Writes the worker's own word, as one line of JSON."""
    write_output(fd, b"", json.dumps(word).encode() + b"\n")


class FrameReader:
    """Cuts the bytes of a pipe, fed as they arrive, into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now."""
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
