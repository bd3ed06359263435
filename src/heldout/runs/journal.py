"""The journal of a running job: an append-only log in which every line is one ended attempt.

`append` returns when its line is on disk; one flush serves all lines that wait. Each line is a JSON object whose first field
is the CRC-32 of the bytes after that field, so a changed byte is noticed. A crash may cut the last line short; opening the
journal drops it. Damage anywhere else is an error that names the line, and `drop_damaged` removes that line alone.

Lines go to numbered segments, so that a sealed segment can be copied while the next one is written. In a run that several
machines resume, segments also carry their writer's name, and a writer appends only to its own.
"""

import asyncio
import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from heldout.background import start_task
from heldout.errors import RunError, StorageError
from heldout.job.json_values import read_json, stored_json
from heldout.job.records import Attempt, Boundary, Failure, Turn, turn_json
from heldout.storage.local import open_atomic, synchronise, synchronise_folder

SEGMENT_BYTES = 64 * 1024 * 1024
"""Large enough that a million rollouts make some hundred files, small enough to copy as one piece."""
_CHECKED = b'{"crc32":"'
_HEAD_BYTES = len(b'{"crc32":"00000000",')
"""Bytes of a line before those that its checksum covers."""
_TAIL_BYTES = 64 * 1024
_ROLLOUT = re.compile(rb'"prompt":(\d+),"rollout":(\d+)')


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a line: its segment and its offset there, in bytes."""

    segment: Path
    offset: int


class DamagedLine(RunError):
    """A line of a journal whose bytes are not those that were written."""

    def __init__(self, line: bytes, place: Place) -> None:
        self.place = place
        self._line = line
        found = _ROLLOUT.search(line)
        self.rollout = "unknown rollout" if found is None else f"prompt {int(found[1])}, rollout {int(found[2])}"
        """The rollout as far as the damaged line still names it."""
        super().__init__(
            f"{place.segment} is damaged at byte {place.offset} ({self.rollout}); copy the whole folder again, or drop this "
            f"line and play its rollout again: heldout resume {place.segment.parent.parent} --drop-damaged"
        )

    def __reduce__(self) -> tuple[type["DamagedLine"], tuple[bytes, Place]]:
        return DamagedLine, (self._line, self.place)


class Journal:
    """The writer of a journal. The run's lock allows one at a time. It belongs to one event loop."""

    def __init__(self, folder: Path, *, writer: str = "", segment_bytes: int = SEGMENT_BYTES) -> None:
        """writer: letters and digits, unique to this start of the job; existing segments then stay unchanged.

        segment_bytes: size from which the next segment begins.
        """
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._ending = f"-{writer}.jsonl" if writer else ".jsonl"
        self._is_alone = not writer
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._file: int | None = None
        self._size = 0
        self._is_to_be_sealed = False
        self._failure: StorageError | None = None

    def open(self) -> None:
        """Prepares the folder for appending and drops a line that a crash cut short."""
        self._folder.mkdir(parents=True, exist_ok=True)
        existing = segments(self._folder)
        if existing:
            drop_torn_tail(existing[-1])
        self._start_segment(existing[-1] if existing and self._is_alone else self._after(existing))

    async def append(self, attempt: Attempt) -> None:
        """Appends an attempt and returns when it is durable.

        Raises StorageError if the disk refuses, and from then on for every attempt.
        """
        await self._append_line(encode(attempt))

    async def amend(self, attempt: Attempt) -> None:
        """Appends an amendment: it replaces everything of an attempt but its turns."""
        await self._append_line(encode(attempt, is_amendment=True))

    async def close(self) -> None:
        """Waits for the write under way and closes the segment."""
        if self._flusher is not None:
            await self._flusher
        if self._file is not None:
            if self._failure is not None:
                with contextlib.suppress(OSError):  # the next start drops a torn line too
                    os.ftruncate(self._file, self._size)
            os.close(self._file)
            self._file = None

    def seal(self) -> Path | None:
        """Ends the current segment, starts the next, and returns the sealed one.

        Returns None, and keeps the segment, when it is empty or no file can be opened. During a write it returns None and seals
        after the write.
        """
        if self._flusher is not None:
            self._is_to_be_sealed = True
            return None
        return self._seal()

    def _seal(self) -> Path | None:
        self._is_to_be_sealed = False
        if self._size == 0 or self._failure is not None:
            return None
        existing = segments(self._folder)
        try:
            self._start_segment(self._after(existing))
        except OSError:
            return None
        return existing[-1]

    async def _append_line(self, line: bytes) -> None:
        if self._file is None:
            raise RuntimeError(f"journal {self._folder} is not open")
        if self._failure is not None:
            raise self._failure
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, done))
        if self._flusher is None:
            self._flusher = start_task(self._flush(), f"the writer of journal {self._folder}")
        # The line is written even if the caller is cancelled meanwhile.
        await asyncio.shield(done)

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._write(b"".join(line for line, _ in batch), [done for _, done in batch])
                if self._is_to_be_sealed or self._size >= self._segment_bytes:
                    self._seal()
        finally:
            self._flusher = None
            waiting, self._waiting = self._waiting, []  # only after an error: otherwise none waits
            self._refuse([done for _, done in waiting])

    async def _write(self, lines: bytes, waiting: list[asyncio.Future[None]]) -> None:
        if self._failure is None:  # after a failure the last line may lack its end: a line behind it would be lost
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._write_durably, lines)
            except Exception as error:  # noqa: BLE001  # whatever it is, those who wait must learn it
                reason = (error.strerror or error) if isinstance(error, OSError) else repr(error)
                self._failure = StorageError(f"cannot write {str(self._folder)!r}: {reason}")
        if self._failure is not None:
            self._refuse(waiting)
            return
        for done in waiting:
            if not done.done():
                done.set_result(None)

    def _refuse(self, waiting: list[asyncio.Future[None]]) -> None:
        failure = self._failure or StorageError(f"the writer of {str(self._folder)!r} has ended")
        for done in waiting:
            if not done.done():
                done.set_exception(failure)

    def _write_durably(self, lines: bytes) -> None:
        assert self._file is not None  # `close` waits for the write under way
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        synchronise(self._file)
        self._size += len(lines)

    def _after(self, existing: list[Path]) -> Path:
        number = int(existing[-1].name[:6]) + 1 if existing else 1
        return self._folder / f"{number:06d}{self._ending}"

    def _start_segment(self, path: Path) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if self._file is not None:
            os.close(self._file)
        self._file = file
        self._size = os.fstat(self._file).st_size
        synchronise_folder(self._folder)


def segments(folder: Path) -> list[Path]:
    """Returns the journal's files, the oldest first; empty without a journal."""
    return sorted(folder.glob("[0-9]" * 6 + "*.jsonl"))


def drop_torn_tail(segment: Path) -> None:
    """Removes the incomplete last line that a crash left in a segment without a writer."""
    size = segment.stat().st_size
    start = _last_line(segment, size)
    with segment.open("r+b") as file:
        file.seek(start)
        if start < size and _is_torn(file.read()):
            file.truncate(start)
            synchronise(file.fileno())


def _last_line(segment: Path, size: int) -> int:
    """Offset of the last line."""
    with segment.open("rb") as file:
        end = max(0, size - 1)  # before the newline that ends it
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                return start + newline + 1
            end = start
    return 0


def _is_torn(line: bytes) -> bool:
    """Whether a crash cut the line short: it has no end, or blocks of it never reached the disk."""
    return not line.endswith(b"\n") or (b"\0" in line and not is_intact(line))


def is_intact(line: bytes) -> bool:
    """Whether a line has its end and the checksum of its bytes."""
    if not (line.startswith(_CHECKED) and line.endswith(b"\n")):
        return False
    return line[len(_CHECKED) : _HEAD_BYTES] == _checksum(memoryview(line)[_HEAD_BYTES:]) + b'",'


def _checksum(rest: bytes | memoryview) -> bytes:
    return b"%08x" % zlib.crc32(rest)


def encode(attempt: Attempt, *, is_amendment: bool = False) -> bytes:
    """Encodes an attempt as a journal line, newline included; an amendment carries no turns."""
    failure = attempt.failure
    record: dict[str, Any] = {
        "prompt": attempt.prompt_index,
        "rollout": attempt.rollout_index,
        "number": attempt.number,
        "id": attempt.trajectory_id,
        "final": attempt.is_final,
        "amends": is_amendment,
        "failure": None if failure is None else [failure.boundary, failure.kind, failure.message],
        "rewards": attempt.rewards,
        "metrics": attempt.metrics,
        "flags": attempt.flags,
        "output": attempt.output,
        "at": attempt.started_at,
        "seconds": attempt.seconds,
        "labels": orjson.Fragment(attempt.labels or b"{}"),
        "returned": orjson.Fragment(attempt.returned or b"{}"),
        "turns": () if is_amendment else [_encoded_turn(turn) for turn in attempt.turns],
    }
    rest = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)[1:]
    return b'%s%s",%s' % (_CHECKED, _checksum(rest), rest)


def _encoded_turn(turn: Turn) -> list[Any]:
    return [
        turn.parent,
        turn.shared_messages,
        orjson.Fragment(turn.messages or b"[]"),
        orjson.Fragment(turn.request or b"null"),
        orjson.Fragment(turn.reply or b"null"),
        turn.finish_reason,
        turn.prompt_tokens,
        turn.response_tokens,
        None if turn.logprobs is None else orjson.Fragment(stored_json(turn.logprobs)),
        turn.started_at,
        turn.seconds,
        turn.status,
        turn.error,
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """A decoded line: the attempt, whether it amends an earlier one, and its place."""

    attempt: Attempt
    is_amendment: bool
    place: Place

    @property
    def reopens(self) -> bool:
        """Whether it opens a rollout again that the attempt had decided: an amendment of an attempt that is no longer final."""
        return self.is_amendment and not self.attempt.is_final


def decode(line: bytes, place: Place, *, with_turns: bool = True) -> Line:
    """Decodes a journal line. with_turns: whether to decode the attempt's turns.

    Raises DamagedLine when its checksum is not that of its bytes, or its fields are not those that this version writes.
    """
    if not is_intact(line):
        raise DamagedLine(line, place)
    try:
        return _decoded(line, place, with_turns=with_turns)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedLine(line, place) from error


def _decoded(line: bytes, place: Place, *, with_turns: bool) -> Line:
    record: Any = read_json(line)
    failure = record["failure"]
    turns = record["turns"] if with_turns else ()
    rewards = record["rewards"]
    attempt = Attempt(
        prompt_index=record["prompt"],
        rollout_index=record["rollout"],
        number=record["number"],
        trajectory_id=record["id"],
        is_final=record["final"],
        failure=None if failure is None else Failure(Boundary(failure[0]), failure[1], failure[2]),
        rewards=None if rewards is None else tuple(rewards),
        metrics=tuple((name, value) for name, value in record["metrics"]),
        flags=tuple(record["flags"]),
        turns=tuple(_decoded_turn(index, turn) for index, turn in enumerate(turns)),
        output=record["output"],
        started_at=record["at"],
        seconds=record["seconds"],
        labels=stored_json(record["labels"]) if record["labels"] else b"",
        returned=stored_json(record["returned"]) if record["returned"] else b"",
    )
    return Line(attempt, record["amends"], place)


def _decoded_turn(index: int, turn: list[Any]) -> Turn:
    return Turn(
        index=index,
        parent=turn[0],
        shared_messages=turn[1],
        messages=turn_json(turn[2]),
        request=b"" if turn[3] is None else turn_json(turn[3]),
        reply=b"" if turn[4] is None else turn_json(turn[4]),
        finish_reason=turn[5],
        prompt_tokens=turn[6],
        response_tokens=turn[7],
        logprobs=None if turn[8] is None else tuple(map(float, turn[8])),
        started_at=turn[9],
        seconds=turn[10],
        status=turn[11],
        error=turn[12],
    )


def read(folder: Path, *, with_turns: bool = True) -> Iterator[Line]:
    """Yields every line, the oldest first, one in memory at a time; a writer may append meanwhile.

    Raises DamagedLine for a damaged line. The last line of the last segment may be incomplete: it is being written, or a crash
    cut it short.
    """
    existing = segments(folder)
    for segment in existing:
        for line, place in _lines(segment):
            if segment == existing[-1] and not is_intact(line) and _is_last(place, line) and _is_torn(line):
                return
            yield decode(line, place, with_turns=with_turns)


async def reopen_failed(journal: Journal, folder: Path) -> int:
    """Opens each rollout again that failed for good by something other than the agent and the model. Returns their number.

    journal: open, with its segments in `folder`. Raises as `read` and `Journal.append`.
    """
    failed: dict[tuple[int, int], Attempt] = {}
    for line in read(folder, with_turns=False):
        attempt = line.attempt
        key = (attempt.prompt_index, attempt.rollout_index)
        if line.reopens:
            failed.pop(key, None)
        elif not line.is_amendment and attempt.may_be_reopened:
            failed[key] = attempt
    for attempt in failed.values():
        await journal.amend(replace(attempt, is_final=False))
    return len(failed)


def drop_damaged(folder: Path) -> list[DamagedLine]:
    """Removes each damaged line from a journal without a writer, and nothing else. Returns what it removed.

    Raises StorageError when the disk refuses.
    """
    dropped: list[DamagedLine] = []
    for segment in segments(folder):
        drop_torn_tail(segment)
        damaged = [DamagedLine(line, place) for line, place in _lines(segment) if not is_intact(line)]
        if damaged:
            with open_atomic(segment) as copy:
                copy.writelines(line for line, _ in _lines(segment) if is_intact(line))
            dropped += damaged
    return dropped


def _lines(segment: Path) -> Iterator[tuple[bytes, Place]]:
    with segment.open("rb") as file:
        offset = 0
        for line in file:
            yield line, Place(segment, offset)
            offset += len(line)


def _is_last(place: Place, line: bytes) -> bool:
    return place.offset + len(line) >= place.segment.stat().st_size
