"""The handle on an evaluation that is a folder: everything is read from the folder."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson
from rich.console import RenderableType

from heldout.backends.base import JobProgress, LogLine, PipelineExecutionStatus, StartedEvaluation, StepDetail
from heldout.backends.local.detached import PROGRESS_FILE, stop_detached
from heldout.backends.local.run_log import LOG_FILE, lines_of
from heldout.backends.results import COMPARISON_FILE, evaluation_document, evaluation_results, metrics_so_far
from heldout.errors import RunError
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.runner import check_resumable
from heldout.pipeline.state import ExecutionStatus, StepState
from heldout.runs.remote_mirror import machine_elsewhere
from heldout.runs.run import Run

_LINES_A_LOOK = 5_000


class LocalEvaluation(StartedEvaluation):
    """A handle on one evaluation folder. It keeps no connection and no process."""

    def __init__(self, evaluation: Evaluation, launch: Callable[[Evaluation], None]) -> None:
        """launch: starts a process that plays the remaining steps."""
        self._evaluation = evaluation
        self._launch = launch
        self._status = _status_of(evaluation)
        self._seen_of_log = 0

    @property
    def name(self) -> str:
        return self._evaluation.state.name

    @property
    def arn(self) -> str:
        return self._evaluation.state.arn

    @property
    def path(self) -> str:
        return self._evaluation.location

    @property
    def output(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def status(self) -> PipelineExecutionStatus:
        return self._status

    @property
    def poll_seconds(self) -> float:
        return 1.0

    @property
    def changed_at(self) -> datetime:
        return datetime.fromtimestamp(self._evaluation.state.changed_at, UTC)

    @property
    def definition(self) -> Mapping[str, Any]:
        return self._evaluation.state.definition

    @property
    def planned_steps(self) -> Sequence[str]:
        return [step.name for step in self._evaluation.definition.steps]

    def refresh(self) -> None:
        self._evaluation.refresh()
        self._status = _status_of(self._evaluation)

    def stop(self) -> None:
        """Asks the process that plays it to stop. Rollouts in flight finish first, unless it is asked again.

        Has no effect on an evaluation that is not running. Raises RunError when another machine works on it.
        """
        if (
            not stop_detached(self._evaluation)
            and (machine := machine_elsewhere(self.path, self._evaluation.times)) is not None
        ):
            raise RunError(f"{self.path} is being worked on by {machine}; stop it there")
        self.refresh()

    def resume(self, *, allow_changes: bool = False) -> None:
        """Plays the remaining rollouts. Raises RunError when the evaluation is running, InputError when its agent or dataset has
        changed."""
        if self._evaluation.status is not ExecutionStatus.SUCCEEDED:
            check_resumable(self._evaluation, allow_changes=allow_changes)
            self._launch(self._evaluation)
            self.refresh()

    def progress(self) -> JobProgress | None:
        evaluation = self._evaluation
        path = evaluation.folder / PROGRESS_FILE
        playing = {step.run_name for step in evaluation.state.steps if step.ended_at is None}
        if not evaluation.is_running() or not path.exists():
            return None
        known: dict[str, Any] = orjson.loads(path.read_bytes())
        if known["run"] not in playing:
            return None
        return JobProgress(known["planned"], known["finished"], known["line"])

    def new_log_lines(self) -> Sequence[LogLine]:
        """Lines of `runner.log`: steps, warnings, failures. An evaluation that a terminal plays prints them there instead."""
        lines = list(islice(lines_of(self._evaluation.folder / LOG_FILE, self._seen_of_log), _LINES_A_LOOK))
        if lines:
            self._seen_of_log = lines[-1].end
        return [LogLine(datetime.fromtimestamp(line.time_ms / 1000, UTC), line.run, line.text) for line in lines]

    def where_to_look(self) -> str:
        return str(self._evaluation.folder / LOG_FILE)

    def runs(self) -> Mapping[str, Run]:
        return self._evaluation.runs()

    def pair(self) -> tuple[Run, Run] | None:
        return self._evaluation.pair()

    def metrics(self) -> Mapping[str, dict[str, Any]]:
        """The metrics so far, while the evaluation runs."""
        return {name: metrics_so_far(run) for name, run in self.runs().items() if run.has_rollouts}

    def comparison(self) -> dict[str, Any] | None:
        path = self._evaluation.folder / COMPARISON_FILE
        return dict(orjson.loads(path.read_bytes())) if path.exists() else None

    def mlflow_url(self) -> str | None:
        from heldout.tracking.run_logging import RECORD_FILE, run_url

        logged = [run for run in self.runs().values() if (run.folder / RECORD_FILE).exists()]
        return run_url(logged[-1].folder) if logged else None

    def results(self) -> RenderableType:
        return evaluation_results(self._evaluation)

    def document(self) -> dict[str, object]:
        return evaluation_document(self._evaluation)


def _status_of(evaluation: Evaluation) -> PipelineExecutionStatus:
    status = evaluation.status
    state = evaluation.state
    reason = state.failure_reason
    if status is ExecutionStatus.STOPPED and not state.status.is_final:
        reason = f"its process is gone; continue with: heldout resume {evaluation.location}"
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
