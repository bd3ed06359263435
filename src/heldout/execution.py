"""The handle on a started evaluation: what it is doing, what came of it, and how to stop it.

It holds no process: everything is read from the evaluation's folder, or asked of the service that runs it, so a handle works as
well in another process, after a crash, and on a finished evaluation. Names are those of the SageMaker Python SDK's execution.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import RenderableType

from heldout.backends.base import Backend, PipelineExecutionStatus, StartedEvaluation, StepDetail
from heldout.backends.local.evaluation_index import find_evaluation, is_known, known_evaluations
from heldout.backends.local.handle import LocalEvaluation
from heldout.backends.registry_file import read_registry
from heldout.backends.selection import backend_to_ask
from heldout.backends.waiting import Watcher
from heldout.errors import JobFailed, ReferenceProblem, RunError, WaitTimeout, shown
from heldout.pipeline.evaluation import LOCAL_ACCOUNT
from heldout.pipeline.state import ExecutionStatus
from heldout.report.console import plain_console
from heldout.runs.frames import Frame, FrameKind, table_of
from heldout.runs.run import Run

__all__ = ["Execution", "PipelineExecutionStatus", "StepDetail"]

TargetStatus = Literal["Executing", "Stopping", "Stopped", "Failed", "Succeeded"]
"""Statuses of an execution that can be waited for."""
_EXECUTION_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:(?P<region>[a-z0-9\-]+):\d{12}:pipeline/[^/]+/execution/[^/]+")
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL")


class Execution:
    """One evaluation, started: on this machine, or as a pipeline of managed jobs."""

    def __init__(self, started: StartedEvaluation) -> None:
        self._started = started

    @classmethod
    def get(cls, arn: str | Path, session: Any = None, region: str | None = None) -> Self:
        """The evaluation with this execution ARN, or in this folder.

        One that was started on this machine is found here; the ARN of any other is asked for in AWS, with the session (the
        SDK's, or a boto3 session) and in the region where they are given. Raises ReferenceProblem for an ARN that is in neither,
        RunError for a folder that holds no evaluation, CloudError when AWS refuses to say.
        """
        given = str(arn)
        if given.startswith("arn:") and not is_known(given) and (session is not None or _may_be_in_aws(given)):
            return cls(_cloud_evaluation(given, session, region))
        return cls(LocalEvaluation(find_evaluation(arn)))

    @classmethod
    def get_all(
        cls, session: Any = None, region: str | None = None, *, backend: Backend | None = None
    ) -> Iterator[Self]:
        """Every evaluation that is still there, the last one started first.

        backend: where; by default in AWS when a session is given, else on this machine. region: only those of this region.
        Raises CloudError when AWS refuses to list them.
        """
        if backend_to_ask(backend, session) == "local":
            for evaluation in known_evaluations():
                if region is None or evaluation.state.region == region:
                    yield cls(LocalEvaluation(evaluation))
            return
        from heldout.backends.sagemaker.account import Account
        from heldout.backends.sagemaker.handle import CloudEvaluation
        from heldout.backends.sagemaker.pipelines import evaluation_executions

        account, registry = Account(session, region), read_registry()
        for arn in evaluation_executions(account):
            yield cls(CloudEvaluation(account, arn, registry))

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
        """As of the last `refresh`, `wait` or `stop`."""
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
        """Opens the run in MLflow (of the fine-tuned model, where there are two); None while there is none.

        For a SageMaker ARN a link that works once, for five minutes.
        """
        return self._started.mlflow_url()

    @property
    def metrics(self) -> Mapping[str, dict[str, Any]]:
        """By run name, what `metrics.json` holds: metrics, their intervals, counts of rollouts; so far, while it goes on.

        Of a managed job whose output has no tables of rollouts: the metrics that it logged to MLflow, and no intervals.
        """
        return self._started.metrics()

    @property
    def comparison(self) -> dict[str, Any] | None:
        """What `comparison.json` holds; None for an evaluation of one model, that is not done, or without tables of rollouts."""
        return self._started.comparison()

    def refresh(self) -> None:
        """Reads the status again."""
        self._started.refresh()

    def wait(
        self, target_status: TargetStatus = "Succeeded", poll: float | None = None, timeout: float | None = None
    ) -> None:
        """Shows how the evaluation goes, and what is logged, until it has the status, by default until it is done.

        poll: seconds between looks, by default 1 for an evaluation on this machine and 5 for one in AWS. timeout: seconds to wait
        at most. Interrupting it does not stop the evaluation. Raises JobFailed when it ended otherwise, WaitTimeout when the
        time is over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = self._started.poll_seconds if poll is None else poll
        with Watcher(self._started) as watcher:
            while True:
                self.refresh()
                watcher.show()
                if self._has_come_to(target_status):
                    return
                left = pause if deadline is None else min(pause, deadline - time.monotonic())
                if left <= 0:
                    raise WaitTimeout(
                        f"evaluation {self.name} is {self.status.overall_status} after {timeout:g} seconds; it goes on"
                    )
                time.sleep(left)

    def stop(self) -> None:
        """Asks the evaluation to stop, and returns.

        On this machine what is in flight is finished first, unless it is asked again, and it can be resumed. One that is not
        running stays as it is.
        """
        self._started.stop()

    def resume(self) -> None:
        """Goes on with an evaluation that was stopped, failed or was killed; what is finished stays.

        Raises RunError when it is running, or where it runs cannot go on with one.
        """
        self._started.resume()

    def show_results(self) -> None:
        """Prints each run's numbers and the comparison, in a terminal or a notebook."""
        plain_console().print(self)

    def to_dict(self) -> dict[str, object]:
        """Returns what `heldout show --json` prints: status, each run's numbers and findings, and the comparison."""
        return self._started.document()

    def runs(self) -> Mapping[str, Run]:
        """Returns the runs whose files can be read, by run name, the base model's first."""
        return self._started.runs()

    def rollouts(self, frame: FrameKind = "pandas") -> Frame:
        """A row a rollout of every run, `run` telling which; as a `"pandas"` or `"polars"` frame.

        Columns: those of `rollouts.parquet`. Raises MissingExtra when the library is not installed, RunError when no rollout has
        ended, or the output holds no tables of them.
        """
        return table_of(self._played_runs(), "rollouts", frame)

    def trajectories(self, frame: FrameKind = "pandas") -> Frame:
        """A row a turn (model call) of every run; see `rollouts`. Columns: those of `trajectories.parquet`."""
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

    def _has_come_to(self, target: str) -> bool:
        """Whether it has the status; raises JobFailed when it has ended with another."""
        status = self.status.overall_status
        if status == target:
            return True
        if ExecutionStatus(status).is_final:
            reason = self.status.failure_reason or f"see {self._started.where_to_look()}"
            raise JobFailed(f"evaluation {self.name} ended as {status}: {reason}")
        return False


def _may_be_in_aws(arn: str) -> bool:
    """Whether an execution that was not started here can be one elsewhere: of a real account, or of a service that is named."""
    is_real = arn.split(":")[4:5] != [LOCAL_ACCOUNT]
    return is_real or any(os.environ.get(name) for name in _ENDPOINT_VARIABLES)


def _cloud_evaluation(arn: str, session: Any, region: str | None) -> StartedEvaluation:
    found = _EXECUTION_ARN.fullmatch(arn)
    if found is None:
        raise ReferenceProblem(
            f"{shown(arn, 160)} is no evaluation's ARN; expected "
            "arn:aws:sagemaker:<region>:<account>:pipeline/<name>/execution/<id>, as it was said at the start"
        )
    # boto3 takes most of a second to load; an evaluation on this machine does without.
    from heldout.backends.sagemaker.account import Account
    from heldout.backends.sagemaker.handle import CloudEvaluation

    return CloudEvaluation(Account(session, region or found["region"]), arn, read_registry())
