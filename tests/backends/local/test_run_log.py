"""The log of a process that plays: lines with their times and runs, read while they are written."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.backends.local.run_log import LONGEST_LINE_BYTES, Line, add_line, lines_of
from heldout.backends.local.runner import ProgressLog
from heldout.job.records import Attempt, Boundary, Failure
from heldout.metrics.settings import MetricSettings
from heldout.runs.progress import Progress

STAMPED = b"2026-01-02T03:04:05.678Z base-model-eval begun\n"
OPEN_FILES = Path("/proc/self/fd")
AT_MS = 1_767_323_045_678
PROGRAM = """
import os, sys
from heldout.backends.local.run_log import stamp_output
about = ["one"]
stamp_output(lambda: about[0])
"""


def said(lines: list[Line]) -> list[tuple[str, str]]:
    """Runs and texts."""
    return [(line.run, line.text) for line in lines]


def printed(path: Path, code: str) -> list[Line]:
    """The log of a process that runs `code` with its output stamped as about the run in `about`."""
    with path.open("ab") as log:
        subprocess.run(
            [sys.executable, "-c", PROGRAM + code], stdout=log, stderr=subprocess.STDOUT, check=False, timeout=60
        )
    return list(lines_of(path))


def test_a_line_has_the_time_at_which_it_was_written_and_its_run(tmp_path: Path) -> None:
    before = time.time()
    add_line(tmp_path / "log", "base-model-eval", "begun")
    add_line(tmp_path / "log", "", "about no run")
    first, second = lines_of(tmp_path / "log")
    assert said([first, second]) == [("base-model-eval", "begun"), ("", "about no run")]
    assert before * 1000 - 1 <= first.time_ms <= second.time_ms <= time.time() * 1000 + 1


def test_what_a_process_prints_is_stamped_and_what_it_says_past_python_belongs_to_the_line_before(
    tmp_path: Path,
) -> None:
    lines = printed(
        tmp_path / "log",
        "print('hello', end=' '); print('there')\n"
        "print('to', 'error', file=sys.stderr)\n"
        "about[0] = 'two'\n"
        "print('next')\n"
        "os.write(1, b'native code\\n')\n"
        "raise ValueError('last words')",
    )
    assert said(lines[:4]) == [("one", "hello there"), ("one", "to error"), ("two", "next"), ("two", "native code")]
    assert lines[3].time_ms == lines[2].time_ms
    assert said(lines)[4] == ("two", "Traceback (most recent call last):")
    assert said(lines)[-1] == ("two", "ValueError: last words")


def test_no_text_can_pass_for_another_runs_line(tmp_path: Path) -> None:
    lines = printed(tmp_path / "log", f"print('reason:\\n{STAMPED.decode().strip()}')")
    assert said(lines) == [("one", "reason:"), ("one", STAMPED.decode().strip())]


def test_an_incomplete_line_is_not_read_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(STAMPED + b"2026-01-02T03:04:06.000Z base-mo")
    (line,) = lines_of(path)
    assert line == Line(0, len(STAMPED), AT_MS, "base-model-eval", "begun")
    with path.open("ab") as file:
        file.write(b"del-eval whole\n")
    assert said(list(lines_of(path, line.end))) == [("base-model-eval", "whole")]


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert list(lines_of(tmp_path / "log")) == []


def test_a_place_past_the_end_has_nothing_after_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(STAMPED)
    assert list(lines_of(tmp_path / "log", 10**18)) == []


def test_a_flood_without_a_line_end_is_read_in_pieces_and_still_belongs_to_its_run(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(STAMPED + b"x" * (4 * LONGEST_LINE_BYTES) + b"\n")
    lines = list(lines_of(path))
    assert "".join(line.text for line in lines[1:]) == "x" * (4 * LONGEST_LINE_BYTES)
    assert {line.run for line in lines} == {"base-model-eval"}
    assert list(lines_of(path, lines[-2].start)) == lines[-2:]


@given(
    pieces=st.lists(
        st.tuples(st.sampled_from([None, "a", "b"]), st.text(st.characters(codec="utf-8", exclude_characters="\n"))),
        max_size=12,
    )
)
def test_whoever_goes_on_from_any_place_reads_the_same_lines(
    pieces: list[tuple[str | None, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("logs") / "log"
    for run, text in pieces:
        if run is None:  # past Python
            with path.open("ab") as file:
                file.write(text.encode() + b"\n")
        else:
            add_line(path, run, text)
    whole = list(lines_of(path))
    for number, line in enumerate(whole):
        assert list(lines_of(path, line.end)) == whole[number + 1 :]


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="the system does not say which files are open")
def test_logs_that_are_read_side_by_side_are_not_all_open(tmp_path: Path) -> None:
    for number in range(50):
        add_line(tmp_path / str(number), "one", "said")
    before = len(list(OPEN_FILES.iterdir()))
    reading = [lines_of(tmp_path / str(number)) for number in range(50)]
    assert [next(lines).text for lines in reading] == ["said"] * 50
    assert len(list(OPEN_FILES.iterdir())) < before + 10


def attempt(index: int, failure: Failure | None) -> Attempt:
    return Attempt(
        prompt_index=index,
        rollout_index=0,
        number=1,
        trajectory_id=f"t{index}",
        is_final=True,
        failure=failure,
        rewards=None if failure else (1.0,),
        metrics=(),
        flags=(),
        turns=(),
        output="",
        started_at=0.0,
        seconds=1.0,
    )


def test_a_jobs_log_has_each_tenth_and_each_kind_of_failure_once() -> None:
    progress = Progress.of(40, 1, MetricSettings(pass_k_values=(1,), success_threshold=1.0), range(40))
    lines: list[str] = []
    log = ProgressLog(progress, lines.append)
    log.write_start()
    for index in range(40):
        failure = Failure(Boundary.AGENT, "raised", f"no\nluck {index}") if index % 2 else None
        progress.count(attempt(index, failure))
        for _ in range(3):
            log.write_new()
    log.write_end()
    assert lines[0] == "playing 40 rollouts"
    assert [line for line in lines if "an attempt failed" in line] == [
        "an attempt failed, the first with agent: raised: no luck 1"
    ]
    assert [line.split()[0] for line in lines if line[0].isdigit()] == [f"{count}/40" for count in range(4, 40, 4)]
    assert lines[-2].startswith("played 40/40 rollouts")
    assert lines[-1] == "failed attempts: agent: raised (20), all no luck 1"


@pytest.mark.parametrize("time", ["2026-01-02T23:59:60.000Z", "2026-13-02T03:04:05.678Z", "0000-01-02T03:04:05.678Z"])
def test_a_line_that_begins_with_an_impossible_time_is_kept_as_text(tmp_path: Path, time: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(STAMPED + f"{time} tokenizer loaded\n".encode())
    first, second = lines_of(log)
    assert second[2:] == (AT_MS, "base-model-eval", f"{time} tokenizer loaded")
    assert list(lines_of(log, first.end)) == [second]
    log.write_bytes(log.read_bytes() + b"more\n")
    assert [line[2:] for line in lines_of(log, second.end)] == [(AT_MS, "base-model-eval", "more")]
