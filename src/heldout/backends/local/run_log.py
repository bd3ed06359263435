"""`runner.log`: the log of a process that plays. Each line has its time and the name of its run.

    2026-10-02T12:00:00.123Z base-model-eval playing 32 rollouts

Times are UTC; the run is `-` for a line that belongs to none. A line without a time (from the interpreter, native code or a child
process) belongs to the line before it. Lines are appended whole and never changed, so a position in the file stays
valid, also after a restart.
"""

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

LOG_FILE = "runner.log"
LONGEST_LINE_BYTES = 64 * 1024
"""A longer line is split, to limit memory."""
STARTED = "started"
"""The line that the starter writes, before the process can write one."""
_NO_RUN = "-"
_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z (\S+) ", re.MULTILINE)
_LONGEST_STAMP_BYTES = 256
_BLOCK_BYTES = 64 * 1024


class Line(NamedTuple):
    """One line of a log."""

    start: int
    """The position of its first byte."""
    end: int
    """The position of the next line."""
    time_ms: int
    """Unix time in milliseconds; 0 if neither it nor an earlier line has one."""
    run: str
    """The name of its run; empty if it belongs to none."""
    text: str


class _Stamp(NamedTuple):
    time_ms: int
    run: str


def lines_of(path: Path, start: int = 0) -> Iterator[Line]:
    """The complete lines of a log from the position `start` on. Empty if there is no log.

    start: 0, or the `end` of a line. The file is open only while some lines are read, so many logs can be read concurrently.
    """
    stamp: _Stamp | None = None
    while lines := _some_lines(path, start, stamp):
        yield from lines
        start, stamp = lines[-1].end, _Stamp(lines[-1].time_ms, lines[-1].run)


def add_line(path: Path, run: str, text: str) -> None:
    """Appends a line to a log, which is made if it does not exist. run: the name of its run, or empty."""
    with path.open("ab") as file:
        _write(file.fileno(), run, text.encode("utf-8", "backslashreplace"))


def stamp_output(run: Callable[[], str]) -> None:
    """Writes everything that this process prints from now on as stamped lines to standard output, which is a log.

    run: returns the name of the current run, or an empty string.
    """
    for name in ("stdout", "stderr"):
        raw = io.BufferedWriter(_Stamped(sys.__stdout__.fileno() if sys.__stdout__ else 1, run))
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True))


class _Stamped(io.RawIOBase):
    """Writes lines with a stamp each, and buffers an incomplete line."""

    def __init__(self, fd: int, run: Callable[[], str]) -> None:
        self._fd = fd
        self._run = run
        self._rest = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: object) -> int:
        content = bytes(memoryview(data))  # type: ignore[arg-type]  # any buffer, as RawIOBase.write takes
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            _write(self._fd, self._run(), line)
        return len(content)


def _write(fd: int, run: str, text: bytes) -> None:
    """Writes each line with one system call to a file opened for appending, so lines of two processes do not mix."""
    most = LONGEST_LINE_BYTES - _LONGEST_STAMP_BYTES
    for first in range(0, len(text) or 1, most):
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        with contextlib.suppress(OSError):  # a full disk also stops the journal, which reports it
            os.write(fd, f"{now}Z {run or _NO_RUN} ".encode() + text[first : first + most] + b"\n")


def _some_lines(path: Path, start: int, stamp: _Stamp | None) -> list[Line]:
    """Some lines from a position on. stamp: the last stamp before the position, if it is known."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    found: list[Line] = []
    with file:
        place = min(start, file.seek(0, os.SEEK_END))
        stamp = stamp or _stamp_before(file, place)
        file.seek(place)
        while place < start + _BLOCK_BYTES and (data := file.readline(LONGEST_LINE_BYTES)):
            if not data.endswith(b"\n") and len(data) < LONGEST_LINE_BYTES:
                break  # still being written
            begin, place = place, place + len(data)
            if (stamped := _STAMP.match(data)) and (its_own := _stamp(stamped)):
                stamp, data = its_own, data[stamped.end() :]
            text = data.removesuffix(b"\n").decode("utf-8", "replace")
            found.append(Line(begin, place, stamp.time_ms, stamp.run, text))
    return found


def _stamp_before(file: IO[bytes], place: int) -> _Stamp:
    """The last stamp before a position."""
    after = b""
    while place > 0:
        begin = max(0, place - _BLOCK_BYTES)
        file.seek(begin)
        data = file.read(place - begin) + after
        # A block may begin within a line; that line is found whole in the block before.
        whole = (_stamp(found) for found in _STAMP.finditer(data) if begin == 0 or found.start() > 0)
        if stamps := [stamp for stamp in whole if stamp is not None]:
            return stamps[-1]
        place, after = begin, data[:_LONGEST_STAMP_BYTES]
    return _Stamp(0, "")


def _stamp(found: re.Match[bytes]) -> _Stamp | None:
    """The stamp; None for an impossible time, which text that bypasses `stamp_output` may contain."""
    try:
        written = datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC)
    except ValueError:
        return None
    run = found[2].decode("utf-8", "replace")
    return _Stamp(round(written.timestamp() * 1000), "" if run == _NO_RUN else run)
