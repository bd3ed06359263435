"""`runner.log`: what a process that plays says, line by line, each with when it was written and the run that it is about.

    2026-10-02T12:00:00.123Z base-model-eval playing 32 rollouts

Times are UTC; the run is `-` for what is about none. A line without a time (the interpreter's last words, those of native code or
of a child process) has the time and the run of the line before it. Lines are added whole and never changed, so a place in the
file stays what it is, also for a reader who comes back after a restart.
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
"""A longer one is taken for several, so that no line has to be held whole."""
STARTED = "started"
"""What is written when a process starts, before it can say anything itself."""
_NO_RUN = "-"
_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z (\S+) ", re.MULTILINE)
_LONGEST_STAMP_BYTES = 256
_BLOCK_BYTES = 64 * 1024


class Line(NamedTuple):
    """One line of a log."""

    start: int
    """Where it begins, in bytes from the file's start."""
    end: int
    """Where the next one begins."""
    time_ms: int
    """Unix time in milliseconds; 0 where no line before says one."""
    run: str
    """The name of the run that it is about; empty for none."""
    text: str


class _Stamp(NamedTuple):
    time_ms: int
    run: str


def lines_of(path: Path, start: int = 0) -> Iterator[Line]:
    """The lines of a log that lie whole in it, from the place `start` on; none where there is no log.

    start: 0, or the `end` of a line. The file is open only while some lines are read: as many logs as one likes can be gone
    through side by side.
    """
    stamp: _Stamp | None = None
    while lines := _some_lines(path, start, stamp):
        yield from lines
        start, stamp = lines[-1].end, _Stamp(lines[-1].time_ms, lines[-1].run)


def add_line(path: Path, run: str, text: str) -> None:
    """Adds a line to a log, which is made if it is not there. run: the run that it is about, or empty."""
    with path.open("ab") as file:
        _write(file.fileno(), run, text.encode("utf-8", "backslashreplace"))


def stamp_output(run: Callable[[], str]) -> None:
    """From here on, what this process prints to standard output, which is a log, and to standard error goes there as lines.

    run: which run it is about now, or empty.
    """
    for name in ("stdout", "stderr"):
        raw = io.BufferedWriter(_Stamped(sys.__stdout__.fileno() if sys.__stdout__ else 1, run))
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True))


class _Stamped(io.RawIOBase):
    """Writes lines with a stamp each; what has no line end yet waits for it."""

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
    """Each line is one write to a file that is open for appending: two who write never mix theirs."""
    most = LONGEST_LINE_BYTES - _LONGEST_STAMP_BYTES
    for first in range(0, len(text) or 1, most):
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        with contextlib.suppress(OSError):  # a full disk stops the journal with a reason; a line fewer here is none
            os.write(fd, f"{now}Z {run or _NO_RUN} ".encode() + text[first : first + most] + b"\n")


def _some_lines(path: Path, start: int, stamp: _Stamp | None) -> list[Line]:
    """The next lines from a place on, few enough to be held. stamp: the one before the place, where it is known."""
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
                break  # it is being written
            begin, place = place, place + len(data)
            if (stamped := _STAMP.match(data)) and (its_own := _stamp(stamped)):
                stamp, data = its_own, data[stamped.end() :]
            text = data.removesuffix(b"\n").decode("utf-8", "replace")
            found.append(Line(begin, place, stamp.time_ms, stamp.run, text))
    return found


def _stamp_before(file: IO[bytes], place: int) -> _Stamp:
    """The last stamp before a place."""
    after = b""
    while place > 0:
        begin = max(0, place - _BLOCK_BYTES)
        file.seek(begin)
        data = file.read(place - begin) + after
        # What a block begins with may be the middle of a line; if it is not, the block before, which ends in it, has it whole.
        whole = (_stamp(found) for found in _STAMP.finditer(data) if begin == 0 or found.start() > 0)
        if stamps := [stamp for stamp in whole if stamp is not None]:
            return stamps[-1]
        place, after = begin, data[:_LONGEST_STAMP_BYTES]
    return _Stamp(0, "")


def _stamp(found: re.Match[bytes]) -> _Stamp | None:
    """None for what only looks like one: who writes past `stamp_output` may begin a line with a time that there is not."""
    try:
        written = datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC)
    except ValueError:
        return None
    run = found[2].decode("utf-8", "replace")
    return _Stamp(round(written.timestamp() * 1000), "" if run == _NO_RUN else run)
