"""The protocols of a backend, a place where evaluations run, and of an evaluation that it has started.

A backend is one module. `heldout.backends.table` finds it: those of Heldout in a table, those of other packages
through the entry point group `heldout.backends`. A backend whose evaluations are folders of this machine derives from
`heldout.backends.local.backend.LocalBackend` and replaces what differs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from rich.console import RenderableType

from heldout.pipeline.request import EvaluationRequest
from heldout.pipeline.summary import Summary
from heldout.runs.run import Run


@dataclass(frozen=True, slots=True)
class StepDetail:
    """A step of the pipeline that was begun."""

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
    """The progress of the job that is playing."""

    planned: int
    """The number of rollouts; 0 if it is unknown."""
    finished: int
    line: str
    """The progress as text, with further details."""


class LogLine(NamedTuple):
    """A line of the log of the process or the service that plays. Its text is untrusted: sanitize it before printing."""

    time: datetime
    run: str
    """The name of the run that the line belongs to; empty if it belongs to none."""
    text: str


class StartedEvaluation(Protocol):
    """A handle on an evaluation that was started.

    Properties keep their values until `refresh`, `stop` or `resume` is called. Methods that read anew say so.
    """

    @property
    def name(self) -> str: ...

    @property
    def arn(self) -> str: ...

    @property
    def path(self) -> str:
        """The folder or the `s3://` URI of its results."""
        ...

    @property
    def output(self) -> str:
        """The output that the user gave."""
        ...

    @property
    def status(self) -> PipelineExecutionStatus: ...

    @property
    def poll_seconds(self) -> float:
        """The default interval between two calls of `refresh`, in seconds."""
        ...

    @property
    def changed_at(self) -> datetime: ...

    @property
    def definition(self) -> Mapping[str, Any]:
        """The pipeline definition that is executed: a JSON object."""
        ...

    @property
    def planned_steps(self) -> Sequence[str]:
        """Every step's name, in order."""
        ...

    def refresh(self) -> None:
        """Reads the status again."""
        ...

    def stop(self) -> None:
        """Asks the evaluation to stop, and refreshes."""
        ...

    def resume(self, *, allow_changes: bool = False) -> None:
        """Continues an evaluation that ended without success. Raises InputError if the backend cannot."""
        ...

    def progress(self) -> JobProgress | None:
        """Reads the progress of the job that is playing now. None if no job is playing or its progress is unknown."""
        ...

    def new_log_lines(self) -> Sequence[LogLine]:
        """Reads the log lines that follow those of the previous call, at most some thousand. Empty if there are no more now.

        A problem with reading the log becomes a log line, not an error.
        """
        ...

    def where_to_look(self) -> str:
        """A place where the user finds the reason of a failure that has none."""
        ...

    def runs(self) -> Mapping[str, Run]:
        """The runs whose files can be read on this machine, by name."""
        ...

    def pair(self) -> tuple[Run, Run] | None:
        """Reads the runs of the baseline and of the model that is compared with it. None before both have begun."""
        ...

    def metrics(self) -> Mapping[str, dict[str, Any]]:
        """The content of `metrics.json`, by run name."""
        ...

    def comparison(self) -> dict[str, Any] | None:
        """The content of `comparison.json`; None if there is none."""
        ...

    def mlflow_url(self) -> str | None:
        """A link to the run in MLflow, to the fine-tuned model's if there are two; None if there is no run yet."""
        ...

    def results(self) -> RenderableType:
        """The metrics of each run, the comparison, and the warnings, for a terminal or a notebook."""
        ...

    def document(self) -> dict[str, object]:
        """The same as JSON: `evaluation`, `arn`, `status`, `failure_reason`, `runs` by name, `comparison` and `notes`."""
        ...


class Prepared(Protocol):
    """An evaluation that has passed every check and can be started."""

    @property
    def summary(self) -> Summary:
        """The summary to print."""
        ...

    @property
    def definition(self) -> Mapping[str, Any]:
        """The pipeline definition that would be executed: a JSON object."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Warnings to print in a dry run."""
        ...

    def start(self) -> StartedEvaluation:
        """Starts the evaluation and returns as soon as it is started.

        Raises RunError when another evaluation has taken its name meanwhile, CloudError when AWS refuses.
        """
        ...


class Backend(Protocol):
    """A place where evaluations run. Making one costs nothing: no file and no network is used before a method is called."""

    @property
    def name(self) -> str:
        """The name that users give: `--backend NAME`, `backend="NAME"`."""
        ...

    @property
    def uses_session(self) -> bool:
        """Whether it works with an AWS session. A session without a backend's name selects the first that does."""
        ...

    def serves(self, request: EvaluationRequest) -> bool:
        """Whether it runs this request when the user names no backend."""
        ...

    def prepare(self, request: EvaluationRequest) -> Prepared:
        """Checks everything that can be checked. Starts nothing, writes nothing and causes no cost.

        Raises InputError for a request that cannot be run, CloudError when AWS refuses an answer.
        """
        ...

    def open(self, reference: str, *, session: object | None, region: str | None) -> StartedEvaluation | None:
        """The evaluation that `reference` (an ARN, a folder or an `s3://` URI) names; None if it is not one of this backend.

        Raises RunError for a folder without an evaluation, ReferenceProblem or CloudError when the evaluation cannot be read.
        """
        ...

    def list(self, *, session: object | None, region: str | None) -> Iterator[StartedEvaluation]:
        """Every evaluation of this backend, the latest first. region: only those of this region. Raises CloudError."""
        ...

    def models(self, session: object | None) -> Sequence[str]:
        """Names of the models that can be evaluated, sorted. Raises CloudError."""
        ...

    def agent_runtimes(self, session: object | None) -> Sequence[Mapping[str, str]]:
        """`name`, `runtime_id`, `arn` and `status` of each AgentCore runtime. Raises CloudError."""
        ...
