"""The journal: appended attempts survive the end of the process and damage to the last line."""

import asyncio
import itertools
import os
import resource
import string
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.backends.local.job import play_rollouts
from heldout.errors import RunError, StorageError
from heldout.job.records import Attempt, Boundary, Failure, Turn
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.runs.journal import DamagedLine, Journal, Place, decode, drop_damaged, encode, read, segments
from heldout.runs.journal_index import JournalIndex
from heldout.runs.run import Run
from heldout.runs.tables import write_tables
from tests.support.jobs import new_run, rows

_TEXT = st.text(max_size=20)
_COUNTS = st.none() | st.integers(0, 10_000)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
_JSON_TEXTS = st.sampled_from(['[{"role":"user","content":"å\\n"}]', "[]", '[{"content":null,"n":[1,2.5]}]'])
_TURNS = st.builds(
    Turn,
    index=st.just(0),
    parent=st.none() | st.integers(0, 5),
    shared_messages=st.integers(0, 9),
    messages=_JSON_TEXTS.map(str.encode),
    request=st.sampled_from([b"", b'{"model":"default","temperature":0.5}']),
    reply=st.sampled_from([b"", b'[{"role":"assistant","content":"7"}]']),
    finish_reason=st.none() | _TEXT,
    prompt_tokens=_COUNTS,
    response_tokens=_COUNTS,
    logprobs=st.none() | st.lists(_NUMBERS, max_size=3).map(tuple),
    started_at=_NUMBERS,
    seconds=_NUMBERS,
    status=st.integers(200, 599),
    error=st.none() | _TEXT,
)
_FAILURES = st.builds(Failure, st.sampled_from(Boundary), st.text(string.ascii_lowercase, min_size=1), _TEXT)
ATTEMPTS = st.builds(
    Attempt,
    prompt_index=st.integers(0, 2**40),
    rollout_index=st.integers(0, 100),
    number=st.integers(1, 9),
    trajectory_id=_TEXT,
    is_final=st.booleans(),
    failure=st.none() | _FAILURES,
    rewards=st.none() | st.lists(_NUMBERS, min_size=1, max_size=4).map(tuple),
    metrics=st.lists(st.tuples(_TEXT, _NUMBERS), max_size=3).map(tuple),
    flags=st.lists(_TEXT, max_size=2).map(tuple),
    turns=st.lists(_TURNS, max_size=1).map(tuple),
    output=_TEXT,
    started_at=_NUMBERS,
    seconds=_NUMBERS,
)
_TRIES = st.builds(
    Attempt,
    prompt_index=st.integers(0, 3),
    rollout_index=st.integers(0, 1),
    number=st.integers(1, 3),
    trajectory_id=st.just("t"),
    is_final=st.booleans(),
    failure=st.none() | st.builds(Failure, st.just(Boundary.AGENT), st.sampled_from(["raised", "lost"]), st.just("")),
    rewards=st.none(),
    metrics=st.lists(st.tuples(st.sampled_from("abc"), st.just(1.0)), max_size=2).map(tuple),
    flags=st.just(()),
    turns=st.just(()),
    output=st.just(""),
    started_at=st.just(0.0),
    seconds=st.just(0.0),
)


@given(ATTEMPTS)
def test_an_attempt_reads_back_as_it_was_written(attempt: Attempt) -> None:
    line = encode(attempt)
    assert line.count(b"\n") == 1
    assert decode(line, Place(Path(), 0)).attempt == attempt


def _attempt(number: int, output: str = "") -> Attempt:
    return Attempt(number, 0, 1, f"t{number}", True, None, (1.0,), (), (), (), output, 0.0, 0.0)


async def _append(folder: Path, attempts: list[Attempt]) -> None:
    journal = Journal(folder)
    journal.open()
    await asyncio.gather(*(journal.append(attempt) for attempt in attempts))
    await journal.close()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 400), keep=st.integers(0, 3))
def test_a_crash_in_the_middle_of_a_line_loses_that_line_alone(
    tmp_path_factory: pytest.TempPathFactory, cut: int, keep: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    asyncio.run(_append(folder, [_attempt(n) for n in range(4)]))
    segment = segments(folder)[0]
    whole = segment.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = b"".join(lines[:keep]) + lines[keep][: min(cut, len(lines[keep]) - 1)]
    segment.write_bytes(torn)
    asyncio.run(_append(folder, [_attempt(9)]))
    assert [line.attempt.prompt_index for line in read(folder)] == [*range(keep), 9]


@pytest.mark.parametrize("tail", [b'{"prompt":2,"roll', bytes(64), bytes(64) + b'"seconds":0.0}\n'])
async def test_a_last_line_that_a_power_cut_left_incomplete_is_skipped_and_dropped(tmp_path: Path, tail: bytes) -> None:
    await _append(tmp_path, [_attempt(n) for n in range(2)])
    with segments(tmp_path)[0].open("ab") as file:
        file.write(tail)
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 1]
    await _append(tmp_path, [_attempt(9)])
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 1, 9]


async def test_an_incomplete_line_longer_than_a_block_is_dropped_alone(tmp_path: Path) -> None:
    await _append(tmp_path, [_attempt(0, "x" * 300_000), _attempt(1, "y" * 300_000)])
    segment = segments(tmp_path)[0]
    os.truncate(segment, segment.stat().st_size - 1)
    await _append(tmp_path, [_attempt(2)])
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 2]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_noticed_wherever_it_is_and_costs_its_line_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run") / "journal"
    asyncio.run(_append(folder, [_attempt(n) for n in range(4)]))
    segment = segments(folder)[0]
    lines = segment.read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, 3), "line")
    position = data.draw(st.integers(0, len(lines[number]) - 2), "byte")
    other = data.draw(st.integers(1, 255).filter(lambda byte: byte not in (lines[number][position], 10)), "value")
    changed = bytearray(lines[number])
    changed[position] = other
    segment.write_bytes(b"".join([*lines[:number], bytes(changed), *lines[number + 1 :]]))
    with pytest.raises(DamagedLine) as found:
        list(read(folder))
    place = Place(segment, sum(map(len, lines[:number])))
    assert found.value.place == place
    assert str(found.value).startswith(f"{segment} is damaged at byte {place.offset} (")
    assert f"heldout resume {folder.parent} --drop-damaged" in str(found.value)
    assert [one.place for one in drop_damaged(folder)] == [place]
    assert [line.attempt.prompt_index for line in read(folder)] == [n for n in range(4) if n != number]


async def test_a_changed_digit_of_a_reward_is_damage_that_names_its_rollout(tmp_path: Path) -> None:
    await _append(tmp_path / "journal", [_attempt(n) for n in range(3)])
    segment = segments(tmp_path / "journal")[0]
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"rewards":[1.0]', b'"rewards":[0.0]')
    segment.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=rf"000001\.jsonl is damaged at byte {len(lines[0])} \(prompt 1, rollout 0\)"):
        JournalIndex.of(tmp_path / "journal", group_size=1)


async def test_a_damaged_key_is_an_error_in_one_line(tmp_path: Path) -> None:
    await _append(tmp_path, [_attempt(n) for n in range(2)])
    segment = segments(tmp_path)[0]
    segment.write_bytes(segment.read_bytes().replace(b'"rewards"', b'"rexards"', 1))
    with pytest.raises(RunError, match=r"is damaged at byte 0 \(prompt 0, rollout 0\); copy the whole folder again"):
        list(read(tmp_path))


async def test_an_incomplete_line_that_is_not_the_last_is_damage(tmp_path: Path) -> None:
    for name, line in (("000001-a.jsonl", encode(_attempt(0))[:-20]), ("000002-b.jsonl", encode(_attempt(1)))):
        (tmp_path / name).write_bytes(line)
    with pytest.raises(RunError, match=r"000001-a\.jsonl is damaged at byte 0"):
        list(read(tmp_path))


async def test_a_resume_drops_damaged_lines_when_asked_and_plays_their_rollouts_again(tmp_path: Path) -> None:
    notes: list[str] = []
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1", "0.5", "0"])
        await _append(run.journal_folder, [_attempt(n) for n in range(3)])
        segment = segments(run.journal_folder)[0]
        segment.write_bytes(segment.read_bytes().replace(b'"id":"t1"', b'"id":"t7"'))
        with pytest.raises(RunError, match=r"\(prompt 1, rollout 0\); copy the whole folder again"):
            await play_rollouts(Run.open(run.folder), PlayContext())
        assert server.num_calls == 0
        await play_rollouts(Run.open(run.folder), PlayContext(drop_damaged=True, note=notes.append))
        assert server.num_calls == 1
    assert notes[0].startswith("dropped the damaged line at byte")
    assert [row["prompt_index"] for row in rows(run)] == [0, 1, 2]


async def test_an_error_of_any_kind_reaches_each_attempt_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.open()

    def fail(*_: object) -> int:
        raise RuntimeError("no more threads")

    monkeypatch.setattr("os.write", fail)
    appending = [journal.append(_attempt(n)) for n in range(3)]
    results = await asyncio.wait_for(asyncio.gather(*appending, return_exceptions=True), 30)
    assert all("RuntimeError('no more threads')" in str(result) for result in results)
    monkeypatch.undo()
    await journal.close()


async def test_a_new_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    for number in range(3):
        await _append(tmp_path, [_attempt(number)])
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 1, 2]


async def test_lines_of_an_earlier_writer_can_be_sealed(tmp_path: Path) -> None:
    await _append(tmp_path, [_attempt(0)])
    journal = Journal(tmp_path)
    journal.open()
    assert journal.seal() == tmp_path / "000001.jsonl"
    await journal.close()


async def test_a_sealed_segment_takes_no_more_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    await journal.append(_attempt(0))
    sealed = journal.seal()
    assert sealed is not None
    before = sealed.read_bytes()
    await journal.append(_attempt(1))
    await journal.close()
    assert sealed.read_bytes() == before
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 1]


async def test_a_segment_grows_on_while_no_other_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.open()
    await journal.append(_attempt(0))

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("os.open", refuse)
        assert journal.seal() is None
    await journal.append(_attempt(1))
    assert journal.seal() == tmp_path / "000001.jsonl"
    await journal.append(_attempt(2))
    await journal.close()
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 1, 2]


async def test_the_latest_amendment_of_a_rollout_is_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    for number in (0, 1):
        await journal.append(_attempt(number))
    for text in ("first", "second"):
        await journal.amend(_attempt(1, text))
        journal.seal()
    await journal.close()
    index = JournalIndex.of(tmp_path, group_size=1)
    found = index.amendment(1, 0)
    assert found is not None
    assert found.output == "second"
    assert index.amendment(0, 0) is None


@settings(max_examples=25, deadline=None)
@given(st.lists(_TRIES, max_size=12))
def test_the_index_knows_finished_rollouts_and_counts_attempts(
    tmp_path_factory: pytest.TempPathFactory, tries: list[Attempt]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    (folder / "000001.jsonl").write_bytes(b"".join(map(encode, tries)))
    index = JournalIndex.of(folder, group_size=2)
    for prompt, rollout in itertools.product(range(4), range(2)):
        own = [one for one in tries if (one.prompt_index, one.rollout_index) == (prompt, rollout)]
        assert index.is_finished(prompt, rollout) == any(one.is_final for one in own)
        assert index.attempts(prompt, rollout) == max((one.number for one in own if one.is_counted), default=0)
    assert index.metric_names == tuple(sorted({name for one in tries for name, _ in one.metrics}))


async def test_a_segment_that_is_large_enough_is_sealed(tmp_path: Path) -> None:
    line = encode(_attempt(0))
    journal = Journal(tmp_path, segment_bytes=2 * len(line))
    journal.open()
    for _ in range(5):
        await journal.append(_attempt(0))
    await journal.close()
    assert [segment.read_bytes() for segment in segments(tmp_path)] == [2 * line, 2 * line, line]


def test_an_empty_segment_is_not_sealed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    assert journal.seal() is None
    assert len(segments(tmp_path)) == 1


async def test_the_name_of_a_new_segment_is_as_durable_as_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[Path]] = []

    def sync(file: int) -> None:
        if os.path.samestat(os.fstat(file), tmp_path.stat()):
            synced.append(segments(tmp_path))

    monkeypatch.setattr("os.fsync", sync)
    journal = Journal(tmp_path)
    journal.open()
    await journal.append(_attempt(0))
    journal.seal()
    await journal.close()
    assert [len(names) for names in synced] == [1, 2]


async def test_an_incomplete_line_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.open()
    await journal.append(_attempt(0))
    write, writing, may_go_on = os.write, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def write_a_piece(file: int, data: memoryview) -> int:
        loop.call_soon_threadsafe(writing.set)
        may_go_on.wait(30)
        return write(file, data[:20])

    monkeypatch.setattr("os.write", write_a_piece)
    appending = asyncio.create_task(journal.append(_attempt(1)))
    await writing.wait()
    assert journal.seal() is None
    appending.cancel()  # whoever waits for a line may go, the line stays
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0)
    may_go_on.set()
    await closing
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 1]


async def test_a_full_disk_is_told_to_everyone_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.open()

    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", refuse)
    results = await asyncio.gather(*(journal.append(_attempt(n)) for n in range(3)), return_exceptions=True)
    assert all(isinstance(result, StorageError) for result in results)
    monkeypatch.undo()
    # After a refused write nobody knows what is on disk: nothing more is taken.
    with pytest.raises(StorageError, match=f"cannot write '{tmp_path}': No space left on device"):
        await journal.append(_attempt(5))
    await journal.close()


async def test_a_closed_journal_accepts_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(RuntimeError, match="is not open"):
        await asyncio.wait_for(journal.append(_attempt(0)), 30)
    journal.open()
    await journal.close()
    with pytest.raises(RuntimeError, match="is not open"):
        await asyncio.wait_for(journal.append(_attempt(0)), 30)


async def test_writes_queued_behind_a_failed_one_are_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.open()
    await journal.append(_attempt(0))
    write, writing, both_wait = os.write, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def fill_up(file: int, data: memoryview) -> int:
        loop.call_soon_threadsafe(writing.set)
        both_wait.wait(30)
        write(file, data[:20])
        monkeypatch.undo()  # there is room again for whatever comes next
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", fill_up)
    first = asyncio.create_task(journal.append(_attempt(1)))
    await writing.wait()
    second = asyncio.create_task(journal.append(_attempt(2)))
    await asyncio.sleep(0)  # it is in line
    both_wait.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(result, StorageError) for result in results)
    await journal.close()
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0]
    await _append(tmp_path, [_attempt(3)])
    assert [line.attempt.prompt_index for line in read(tmp_path)] == [0, 3]


async def test_tables_that_the_disk_has_no_room_for_are_an_error_in_one_line_and_leave_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path, "http://127.0.0.1:9/v1", ["a"])
    await _append(run.journal_folder, [_attempt(0, output=os.urandom(200_000).hex())])
    index = JournalIndex.of(run.journal_folder, group_size=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError, match=r"^cannot write '.*/attempts.parquet': File too large$"):
            write_tables(run, index, tmp_path / "tables")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "tables").iterdir()) == []


async def test_a_journal_under_constant_writes_is_sealed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    line = encode(_attempt(0))
    first = asyncio.create_task(journal.append(_attempt(0)))
    await asyncio.sleep(0)  # it is under way
    second = asyncio.create_task(journal.append(_attempt(0)))
    await asyncio.sleep(0)
    assert journal.seal() is None
    await asyncio.gather(first, second)
    await journal.close()
    sealed, *later = [segment.read_bytes() for segment in segments(tmp_path)]
    assert sealed
    assert later
    assert sealed + b"".join(later) == 2 * line


async def test_a_segment_of_another_writer_is_not_appended_to(tmp_path: Path) -> None:
    for writer in ("a", "b"):
        journal = Journal(tmp_path, writer=writer)
        journal.open()
        await journal.append(_attempt(0))
        await journal.close()
    assert [segment.name for segment in segments(tmp_path)] == ["000001-a.jsonl", "000002-b.jsonl"]
