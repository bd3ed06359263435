"""The handle on a started evaluation: what it is doing, what came of it, and how to stop it.

It holds no connection and no process: everything is read from the evaluation's folder, so a handle works as well in another
process, after a crash, and on a finished evaluation. Names are those of the SageMaker Python SDK's execution.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import orjson

from heldout.backends.detached import LOG_FILE, start_detached, stop_detached
from heldout.backends.known import find_evaluation, known_evaluations
from heldout.backends.results import COMPARISON_FILE, evaluation_results
from heldout.errors import JobFailed, WaitTimeout
from heldout.frames import Frame, FrameKind, table_of
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import ExecutionStatus, StepState
from heldout.rollouts.results import metrics_document, summarize_run
from heldout.rollouts.run import JobStatus, Run
from heldout.watching import Watcher

TargetStatus = Literal["Executing", "Stopping", "Stopped", "Failed", "Succeeded"]
"""Statuses of an execution that can be waited for."""


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


class Execution:
    """One evaluation, started."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._status = _status_of(evaluation)

    @classmethod
    def get(cls, arn: str | Path, session: Any = None, region: str | None = None) -> Self:  # noqa: ARG003
        """The evaluation with this execution ARN, or in this folder.

        session, region: taken as the SDK takes them; the ARN says it all. Raises ReferenceProblem for an ARN that was not
        started on this machine, RunError for a folder that holds no evaluation.
        """
        return cls(find_evaluation(arn))

    @classmethod
    def get_all(cls, session: Any = None, region: str | None = None) -> Iterator[Self]:  # noqa: ARG003
        """Every evaluation started on this machine that is still there, the last one first; of one region when it is given."""
        for evaluation in known_evaluations():
            if region is None or evaluation.state.region == region:
                yield cls(evaluation)

    @property
    def name(self) -> str:
        return self._evaluation.state.name

    @property
    def arn(self) -> str:
        return self._evaluation.state.arn

    @property
    def path(self) -> str:
        """The evaluation's folder, or its `s3://` URI."""
        return self._evaluation.location

    @property
    def s3_output_path(self) -> str:
        """The output that the evaluation's folder lies in."""
        return self.path.rpartition("/")[0]

    @property
    def status(self) -> PipelineExecutionStatus:
        """As of the last `refresh`, `wait` or `stop`."""
        return self._status

    @property
    def last_modified_time(self) -> datetime:
        return datetime.fromtimestamp(self._evaluation.state.changed_at, UTC)

    @property
    def pipeline_definition(self) -> str:
        """The pipeline definition that is executed, as JSON."""
        return json.dumps(self._evaluation.state.definition, indent=2)

    @property
    def mlflow_url(self) -> str | None:
        """Opens the run in MLflow (of the fine-tuned model, where there are two); None while there is none.

        For a SageMaker ARN a link that works once, for five minutes.
        """
        from heldout.tracking.mlflow import RECORD_FILE, run_url

        logged = [run for run in self._runs().values() if (run.folder / RECORD_FILE).exists()]
        return run_url(logged[-1].folder) if logged else None

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """By run name, what `metrics.json` holds: metrics, their intervals, counts of rollouts; so far, while it goes on."""
        return {
            name: metrics_document(summarize_run(run), is_partial=run.state.status is not JobStatus.COMPLETED)
            for name, run in self._runs().items()
            if run.has_journal or run.rollouts_path.exists()
        }

    @property
    def comparison(self) -> dict[str, Any] | None:
        """What `comparison.json` holds; None for an evaluation of one model, or that is not done."""
        path = self._evaluation.folder / COMPARISON_FILE
        return dict(orjson.loads(path.read_bytes())) if path.exists() else None

    def refresh(self) -> None:
        """Reads the status again."""
        self._evaluation.refresh()
        self._status = _status_of(self._evaluation)

    def wait(self, target_status: TargetStatus = "Succeeded", poll: float = 1.0, timeout: float | None = None) -> None:
        """Shows how the evaluation goes, in a terminal or a notebook, until it has the status, by default until it is done.

        poll: seconds between looks. timeout: seconds to wait at most. Interrupting it does not stop the evaluation. Raises
        JobFailed when it ended otherwise, WaitTimeout when the time is over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with Watcher(self._evaluation) as watcher:
            while True:
                self.refresh()
                watcher.show()
                if self._has_come_to(target_status):
                    return
                left = poll if deadline is None else min(poll, deadline - time.monotonic())
                if left <= 0:
                    raise WaitTimeout(
                        f"evaluation {self.name} is {self._status.overall_status} after {timeout:g} seconds; it goes on"
                    )
                time.sleep(left)

    def stop(self) -> None:
        """Asks the evaluation to stop, and returns: what is in flight is finished first, unless it is asked again.

        It can be resumed. One that is not running stays as it is.
        """
        stop_detached(self._evaluation)
        self.refresh()

    def resume(self) -> None:
        """Goes on with an evaluation that was stopped, failed or was killed; what is finished stays.

        Raises RunError when it is running.
        """
        if self._evaluation.status is not ExecutionStatus.SUCCEEDED:
            start_detached(self._evaluation)
            self.refresh()

    def show_results(self) -> None:
        """Shows each run's numbers, and the comparison, in a terminal or a notebook."""
        from rich.console import Console

        Console().print(evaluation_results(self._evaluation))

    def rollouts(self, frame: FrameKind = "pandas") -> Frame:
        """A row a rollout of every run, `run` telling which; as a `"pandas"` or `"polars"` frame.

        Columns: those of `rollouts.parquet`. Raises MissingExtra when the library is not installed, RunError when no rollout has
        ended.
        """
        return table_of(self._runs(), "rollouts", frame)

    def trajectories(self, frame: FrameKind = "pandas") -> Frame:
        """A row a turn (model call) of every run; see `rollouts`. Columns: those of `trajectories.parquet`."""
        return table_of(self._runs(), "trajectories", frame)

    def __repr__(self) -> str:
        return f"Execution(name={self.name!r}, status={self._status.overall_status!r}, path={self.path!r})"

    def _runs(self) -> dict[str, Run]:
        return self._evaluation.runs()

    def _has_come_to(self, target: str) -> bool:
        """Whether it has the status; raises JobFailed when it has ended with another."""
        status = self._status.overall_status
        if status == target:
            return True
        if ExecutionStatus(status).is_final:
            reason = self._status.failure_reason or f"see {self._evaluation.folder / LOG_FILE}"
            raise JobFailed(f"evaluation {self.name} ended as {status}: {reason}")
        return False


def _status_of(evaluation: Evaluation) -> PipelineExecutionStatus:
    status = evaluation.status
    state = evaluation.state
    reason = state.failure_reason
    if status is ExecutionStatus.STOPPED and not state.status.is_final:
        reason = f"its process is gone; go on with: heldout resume {evaluation.location}"
    return PipelineExecutionStatus(str(status), tuple(_detail(step) for step in state.steps), reason)


def _detail(step: StepState) -> StepDetail:
    return StepDetail(
        name=step.name,
        status=str(step.status),
        start_time=datetime.fromtimestamp(step.started_at, UTC),
        end_time=None if step.ended_at is None else datetime.fromtimestamp(step.ended_at, UTC),
        job_arn=step.job_arn,
        failure_reason=step.failure_reason,
    )
