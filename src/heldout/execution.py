"""The handle on a started evaluation: its status, its progress, its results, and how to stop it.

A handle keeps no process. It reads the evaluation's folder, or asks the service that runs it, so it works in another
process, after a crash, and on a finished evaluation. Names are those of the SageMaker Python SDK's execution.
"""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import RenderableType

from heldout.backends.base import PipelineExecutionStatus, StartedEvaluation, StepDetail
from heldout.backends.selection import list_evaluations, open_evaluation
from heldout.backends.waiting import Watcher
from heldout.errors import JobFailed, RunError, WaitTimeout
from heldout.pipeline.state import ExecutionStatus
from heldout.report.console import plain_console
from heldout.runs.frames import Frame, FrameKind, table_of
from heldout.runs.run import Run

__all__ = ["Execution", "PipelineExecutionStatus", "StepDetail"]

TargetStatus = Literal["Executing", "Stopping", "Stopped", "Failed", "Succeeded"]
"""Statuses of an execution that can be waited for."""


class Execution:
    """A started evaluation, on this machine or in another place."""

    def __init__(self, started: StartedEvaluation) -> None:
        self._started = started

    @classmethod
    def get(cls, arn: str | Path, session: Any = None, region: str | None = None) -> Self:
        """Opens the evaluation with this execution ARN, or in this folder.

        The ARN of an evaluation that was not started on this machine is looked up in AWS, with `session` (the SDK's, or a boto3
        session) and in `region` if they are given. Raises ReferenceProblem for an unknown ARN, RunError for a folder
        that holds no evaluation, CloudError when AWS refuses an answer.
        """
        return cls(open_evaluation(str(arn), session=session, region=region))

    @classmethod
    def get_all(cls, session: Any = None, region: str | None = None, *, backend: str | None = None) -> Iterator[Self]:
        """Returns every evaluation that still exists, the latest first.

        backend: the name of the place to look in; by default AWS if a session is given, else this machine. region:
        only evaluations of this region. Raises InputError for an unknown backend, CloudError when AWS refuses to list
        them.
        """
        return map(cls, list_evaluations(backend, session=session, region=region))

    @property
    def name(self) -> str:
        return self._started.name

    @property
    def arn(self) -> str:
        return self._started.arn

    @property
    def path(self) -> str:
        """The evaluation's folder, or its `s3://` URI."""
        return self._started.path

    @property
    def s3_output_path(self) -> str:
        """The output that the evaluation was given."""
        return self._started.output

    @property
    def status(self) -> PipelineExecutionStatus:
        """The status at the last `refresh`, `wait` or `stop`."""
        return self._started.status

    @property
    def last_modified_time(self) -> datetime:
        return self._started.changed_at

    @property
    def pipeline_definition(self) -> str:
        """The pipeline definition that is executed, as JSON."""
        return json.dumps(self._started.definition, indent=2)

    @property
    def mlflow_url(self) -> str | None:
        """A link to the run in MLflow, to the fine-tuned model's if there are two; None if there is no run yet.

        For a SageMaker ARN, the link works once and for five minutes.
        """
        return self._started.mlflow_url()

    @property
    def metrics(self) -> Mapping[str, dict[str, Any]]:
        """The content of `metrics.json` by run name: metrics, their intervals, counts of rollouts. Partial while the
        evaluation runs.

        A managed job without tables of rollouts in its output has the metrics that it logged to MLflow, and no intervals.
        """
        return self._started.metrics()

    @property
    def comparison(self) -> dict[str, Any] | None:
        """The content of `comparison.json`. None for an evaluation of one model, an unfinished one, or one without
        rollout tables."""
        return self._started.comparison()

    def refresh(self) -> None:
        """Reads the status again."""
        self._started.refresh()

    def wait(
        self, target_status: TargetStatus = "Succeeded", poll: float | None = None, timeout: float | None = None
    ) -> None:
        """Shows the progress and the log of the evaluation until it reaches the status, by default until it has succeeded.

        poll: seconds between two reads, by default 1 for an evaluation on this machine and 5 for one in AWS. timeout: the longest
        wait in seconds. Interrupting the wait does not stop the evaluation. Raises JobFailed when the evaluation ends
        with another status, WaitTimeout after `timeout`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = self._started.poll_seconds if poll is None else poll
        with Watcher(self._started) as watcher:
            while True:
                self.refresh()
                watcher.show()
                if self._has_reached(target_status):
                    return
                left = pause if deadline is None else min(pause, deadline - time.monotonic())
                if left <= 0:
                    raise WaitTimeout(
                        f"evaluation {self.name} is {self.status.overall_status} after {timeout:g} seconds; it continues"
                    )
                time.sleep(left)

    def stop(self) -> None:
        """Asks the evaluation to stop, and returns.

        On this machine, rollouts in flight finish first, unless it is asked again, and the evaluation can be resumed.
        An evaluation that is not running stays as it is.
        """
        self._started.stop()

    def resume(self, *, allow_changes: bool = False) -> None:
        """Plays the remaining rollouts of an evaluation that was stopped, failed or was killed.

        allow_changes: resumes an evaluation whose agent or dataset has changed since it began, and marks its runs.
        Raises InputError, before anything starts, when they have changed; RunError when it is running, or when its backend
        cannot resume evaluations.
        """
        self._started.resume(allow_changes=allow_changes)

    def show_results(self) -> None:
        """Prints each run's numbers and the comparison, in a terminal or a notebook."""
        plain_console().print(self)

    def to_dict(self) -> dict[str, object]:
        """Returns what `heldout show --json` prints: status, each run's numbers and findings, and the comparison."""
        return self._started.document()

    def runs(self) -> Mapping[str, Run]:
        """Returns the runs whose files can be read, by run name, the baseline's first."""
        return self._started.runs()

    def pair(self) -> tuple[Run, Run] | None:
        """Returns the runs of the baseline and of the model that is compared with it; None before both have begun."""
        return self._started.pair()

    def rollouts(self, frame: FrameKind = "pandas") -> Frame:
        """One row for each rollout, as a `"pandas"` or `"polars"` frame. The column `run` names the run.

        The other columns are those of `rollouts.parquet`. Raises MissingExtra when the library is not installed, RunError when no
        rollout has ended or the output holds no tables.
        """
        return table_of(self._played_runs(), "rollouts", frame)

    def trajectories(self, frame: FrameKind = "pandas") -> Frame:
        """One row for each turn (model call), with the columns of `trajectories.parquet`; otherwise as `rollouts`."""
        return table_of(self._played_runs(), "trajectories", frame)

    def __repr__(self) -> str:
        return f"Execution(name={self.name!r}, status={self.status.overall_status!r}, path={self.path!r})"

    def __rich__(self) -> RenderableType:
        """Returns the tables that `show_results` prints."""
        return self._started.results()

    def _played_runs(self) -> Mapping[str, Run]:
        runs = self.runs()
        if not runs and self.status.overall_status == "Succeeded":
            raise RunError(
                f"evaluation {self.name} left no run folder in {self.path}, so there are no tables of its rollouts; its metrics "
                "are in MLflow"
            )
        return runs

    def _has_reached(self, target: str) -> bool:
        """Whether the evaluation has this status. Raises JobFailed when it has ended with another."""
        status = self.status.overall_status
        if status == target:
            return True
        if ExecutionStatus(status).is_final:
            reason = self.status.failure_reason or f"see {self._started.where_to_look()}"
            raise JobFailed(f"evaluation {self.name} ended as {status}: {reason}")
        return False
