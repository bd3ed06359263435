"""What is shown to someone who waits for an evaluation."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from heldout.backends.base import JobProgress, PipelineExecutionStatus, StepDetail
from heldout.watching import panel

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
