"""The journal of a running job: an append-only log in which every line is one ended attempt.

`append` returns when its line is on disk; one fdatasync serves all lines that wait. Opening the journal drops a line that a crash
cut short. Lines go to numbered segments, so that a sealed segment can be copied while the next one is written. In a run that
several machines resume, segments also carry their writer's name, and a writer appends only to its own.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from heldout.errors import RunError, StorageError
from heldout.job.json_values import read_json, stored_json
from heldout.job.records import Attempt, Boundary, Failure, Turn, turn_json
from heldout.storage.local import synchronise_folder

SEGMENT_BYTES = 64 * 1024 * 1024
"""Large enough that a million rollouts make some hundred files, small enough to copy as one piece."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a line: its segment and its offset there, in bytes."""

    segment: Path
    offset: int


class Journal:
    """The writer of a journal. The run's lock allows one at a time. It belongs to one event loop."""

    def __init__(self, folder: Path, *, writer: str = "") -> None:
        """writer: letters and digits, unique to this start of the job; existing segments then stay unchanged."""
        self._folder = folder
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
        if self._size == 0:
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
            self._flusher = asyncio.create_task(self._flush())
        # The line is written even if the caller is cancelled meanwhile.
        await asyncio.shield(done)

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._write(b"".join(line for line, _ in batch), [done for _, done in batch])
                if self._is_to_be_sealed or self._size >= SEGMENT_BYTES:
                    self._seal()
        finally:
            self._flusher = None

    async def _write(self, lines: bytes, waiting: list[asyncio.Future[None]]) -> None:
        if self._failure is None:  # after a failure the last line may lack its end: a line behind it would be lost
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._write_durably, lines)
            except OSError as error:
                self._failure = StorageError(f"cannot write {str(self._folder)!r}: {error.strerror or error}")
        for done in waiting:
            if self._failure is not None:
                done.set_exception(self._failure)
            else:
                done.set_result(None)

    def _write_durably(self, lines: bytes) -> None:
        assert self._file is not None  # `close` waits for the write under way
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fdatasync(self._file)
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
    good = 0
    with segment.open("rb") as file:
        for line in file:
            if not _is_whole(line):
                break
            good += len(line)
    if good < segment.stat().st_size:
        with segment.open("r+b") as file:
            file.truncate(good)
            os.fsync(file.fileno())


def _is_whole(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        read_json(line)
    except (ValueError, RecursionError):
        return False
    return True


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
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


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


def decode(line: bytes, place: Place, *, with_turns: bool = True) -> Line:
    """Decodes a journal line; with_turns: whether to decode the attempt's turns."""
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
    """Yields every whole line, the oldest first, one in memory at a time; a writer may append meanwhile.

    Raises RunError for a damaged line, except in the last segment, where a crash may have cut it short.
    """
    existing = segments(folder)
    for segment in existing:
        with segment.open("rb") as file:
            offset = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    found = decode(line, Place(segment, offset), with_turns=with_turns)
                except ValueError as error:
                    if segment == existing[-1]:
                        break
                    raise RunError(f"{segment} is damaged at byte {offset}; copy the whole folder again") from error
                yield found
                offset += len(line)
