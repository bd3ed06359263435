"""The display of a waiting user."""

import io
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from heldout.backends.base import JobProgress, LogLine, PipelineExecutionStatus, StepDetail
from heldout.backends.waiting import Watcher, panel

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def shown(progress: JobProgress | None, *steps: StepDetail, reason: str | None = None) -> list[str]:
    """The panel's lines, without its frame."""
    evaluation: Any = SimpleNamespace(
        name="quick",
        planned_steps=["CreateEvaluationAction", "EvaluateBaseModel", "AssociateLineage"],
        status=PipelineExecutionStatus("Executing", steps, reason),
        progress=lambda: progress,
    )
    console = Console(width=100)
    with console.capture() as captured:
        console.print(panel(evaluation))
    return [line.strip("│ ") for line in captured.get().splitlines()]


def test_steps_that_were_begun_have_their_time_and_others_wait() -> None:
    done = StepDetail("CreateEvaluationAction", "Succeeded", BEGAN, BEGAN + timedelta(seconds=70), None, None)
    lines = shown(None, done)
    assert lines[0].startswith("╭─ quick: Executing")
    assert [line.split() for line in lines[2:5]] == [
        ["CreateEvaluationAction", "Succeeded", "1:10"],
        ["EvaluateBaseModel", "Waiting"],
        ["AssociateLineage", "Waiting"],
    ]


def test_the_job_that_plays_has_a_bar_and_a_line_of_its_own_below_it() -> None:
    lines = shown(JobProgress(8, 4, "4 of 8 rollouts"))
    assert lines[-3].startswith("━" * 30)
    assert "rollouts" not in lines[-3]
    assert lines[-2] == "4 of 8 rollouts"


def test_where_nothing_is_planned_yet_there_is_no_bar() -> None:
    assert not any("━" in line for line in shown(JobProgress(0, 0, "Starting"))[1:-1])


def test_why_it_failed_is_the_last_line() -> None:
    assert shown(None, reason="step EvaluateBaseModel: no")[-2] == "step EvaluateBaseModel: no"


class Logged:
    """An evaluation that says these lines, one look after the other."""

    name = "quick"
    planned_steps = ("EvaluateBaseModel",)

    def __init__(self, *looks: list[LogLine], status: str = "Executing") -> None:
        self.status = PipelineExecutionStatus(status, (), None)
        self._looks = list(looks)

    def progress(self) -> None:
        return None

    def new_log_lines(self) -> list[LogLine]:
        return self._looks.pop(0) if self._looks else []

    def where_to_look(self) -> str:
        return "runner.log"


def watched(evaluation: Any, *, times: int = 1, **console: Any) -> str:
    """What is printed while it is watched."""
    printed = io.StringIO()
    with Watcher(evaluation, Console(file=printed, width=100, **console)) as watcher:
        for _ in range(times):
            watcher.show()
    return printed.getvalue()


def said(text: str, run: str = "base-model-eval") -> LogLine:
    return LogLine(BEGAN, run, text)


def test_log_lines_are_printed_once_each_with_their_runs_name() -> None:
    shown = watched(Logged([said("playing 8 rollouts"), said("comparing", "")], [said("played")]), times=3)
    lines = [line.split(" ", 2)[2] for line in shown.splitlines() if line[:2] in ("20", "19")]
    assert lines == ["base-model-eval: playing 8 rollouts", "quick: comparing", "base-model-eval: played"]


def test_in_a_terminal_log_lines_are_above_the_panel() -> None:
    shown = watched(Logged([said("playing 8 rollouts")]), times=2, force_terminal=True)
    assert shown.count("playing 8 rollouts") == 1
    assert shown.index("playing 8 rollouts") < shown.rindex("quick: Executing")


def test_nothing_in_a_line_acts_on_who_reads_it() -> None:
    shown = watched(Logged([said("[red]\x1b[2Jgone[/]\r\n2026-01-01 00:00:00 other-run: forged\u202e")]))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[red]␛[2Jgone[/]" in shown
    assert "\n    2026-01-01 00:00:00 other-run: forged" in shown


def test_the_rest_of_the_log_of_an_ended_evaluation_is_shown() -> None:
    looks = [[said(f"line {number}")] for number in range(10)]
    assert "line 9" in watched(Logged(*looks, status="Succeeded"))
    assert "line 1" not in watched(Logged(*looks))


def test_a_log_without_an_end_is_not_waited_for() -> None:
    shown = watched(Logged(*[[said("again")] for _ in range(100)], status="Failed"))
    assert shown.count("again") < 100
    assert "the log is longer; the rest is not shown (runner.log)" in shown


def test_a_very_long_line_is_cut() -> None:
    assert len(watched(Logged([said("x" * 100_000)]))) < 10_000
