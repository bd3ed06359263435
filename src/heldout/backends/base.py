"""The door to evaluations that were started, wherever they run: one protocol, one module per backend behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from rich.console import RenderableType

from heldout.runs.run import Run

Backend = Literal["local", "sagemaker"]
"""Where an evaluation runs: on this machine, or as a pipeline of managed jobs."""


@dataclass(frozen=True, slots=True)
class StepDetail:
    """One step of the pipeline that was begun."""

    name: str
    status: str
    """Starting, Executing, Stopping, Stopped, Failed or Succeeded."""
    start_time: datetime | None
    end_time: datetime | None
    job_arn: str | None
    failure_reason: str | None


@dataclass(frozen=True, slots=True)
class PipelineExecutionStatus:
    """The execution as a whole, and its steps."""

    overall_status: str
    """Executing, Stopping, Stopped, Failed or Succeeded."""
    step_details: tuple[StepDetail, ...]
    failure_reason: str | None


class JobProgress(NamedTuple):
    """How far the job that plays has come."""

    planned: int
    """Rollouts; 0 where that is not known."""
    finished: int
    line: str
    """The same for a person, and what else is known."""


class LogLine(NamedTuple):
    """What the process or the service that plays had to say. Others wrote it: it is not safe to print as it is."""

    time: datetime
    run: str
    """Name of the run that it is about; empty for none."""
    text: str


class StartedEvaluation(Protocol):
    """One evaluation, started. Nothing but `refresh`, `stop` and `resume` changes what the others say, unless they say so."""

    @property
    def name(self) -> str: ...

    @property
    def arn(self) -> str: ...

    @property
    def path(self) -> str:
        """Where it leaves what it leaves: a folder or an `s3://` URI."""
        ...

    @property
    def output(self) -> str:
        """The output it was given."""
        ...

    @property
    def status(self) -> PipelineExecutionStatus: ...

    @property
    def poll_seconds(self) -> float:
        """How long to wait between looks."""
        ...

    @property
    def changed_at(self) -> datetime: ...

    @property
    def definition(self) -> Mapping[str, Any]:
        """The pipeline definition that is executed."""
        ...

    @property
    def planned_steps(self) -> Sequence[str]:
        """Every step's name, in order."""
        ...

    def refresh(self) -> None:
        """Looks again."""
        ...

    def stop(self) -> None:
        """Asks it to stop, and looks again."""
        ...

    def resume(self) -> None:
        """Goes on with one that ended without success. Raises InputError where that cannot be."""
        ...

    def progress(self) -> JobProgress | None:
        """Of the job that plays now; looks again. None when none does, or nothing is known."""
        ...

    def new_log_lines(self) -> Sequence[LogLine]:
        """What was logged since this was last asked, or from the beginning; looks again.

        Some thousand lines at a time: of more the first, and the next call gives what follows. None: there is no more now. What
        stands in the way of reading them is a line of its own, and never an error.
        """
        ...

    def where_to_look(self) -> str:
        """For the reason of a failure that gave none."""
        ...

    def runs(self) -> Mapping[str, Run]:
        """By name, the runs whose files can be had, on this machine."""
        ...

    def metrics(self) -> Mapping[str, dict[str, Any]]:
        """By run name, what `metrics.json` holds."""
        ...

    def comparison(self) -> dict[str, Any] | None:
        """What `comparison.json` holds; None where there is none."""
        ...

    def mlflow_url(self) -> str | None:
        """Opens the run in MLflow, of the fine-tuned model where there are two; None while there is none."""
        ...

    def results(self) -> RenderableType:
        """Each run's numbers, the comparison, and what to know."""
        ...

    def document(self) -> dict[str, object]:
        """The same as JSON: `evaluation`, `arn`, `status`, `failure_reason`, `runs` by name, `comparison` and `notes`."""
        ...
