"""The pipeline runner: executes a pipeline definition on this machine, step by step, and keeps `execution.json` up to date.

Steps run one after the other, because one job uses the whole machine. After an interruption, the next runner keeps the steps that
succeeded and resumes the runs of the others.
"""

import asyncio
import contextlib
import dataclasses
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from heldout.errors import HeldoutError, JobFailed
from heldout.pipeline import lineage
from heldout.pipeline.evaluation import LOCAL_ACCOUNT, Evaluation
from heldout.pipeline.expressions import resolve
from heldout.pipeline.state import ExecutionStatus, StepState, StepStatus
from heldout.pipeline.steps import JobStep, LineageStep, Step
from heldout.rollouts.card import accept_changes, check_unchanged
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending
from heldout.runs.remote_mirror import has_run, is_kept_here, new_folder, open_run
from heldout.runs.run import JobStatus, Run

_OUT_OF_TIME = "the maximum runtime is over; what was finished is kept"
_STOPPED = "stopped before it was done"

PlayJob = Callable[[Run, PlayContext], Awaitable[Ending]]
"""Plays a job from its current state to its end. Raises HeldoutError when it fails."""
Conclude = Callable[[Evaluation, Callable[[str], None]], Awaitable[None]]
"""Compares the runs of an evaluation whose steps have all succeeded. The second argument receives warnings."""


async def run_pipeline(
    evaluation: Evaluation, context: PlayContext, *, play_job: PlayJob, conclude: Conclude
) -> Ending:
    """Executes the remaining steps of `evaluation`. The caller holds its lock.

    Returns FINISHED when every step has succeeded, else the ending of the last job. Raises the error of the step that failed.
    execution.json records the outcome in each case.
    """
    evaluation.begin()
    steps, ending = _Steps(evaluation), Ending.FINISHED
    with _failure_recorded(evaluation):
        for warning in await asyncio.to_thread(check_unchanged, _begun_runs(evaluation)):
            context.note(warning)
        for step in steps.definition.steps:
            if context.switch.is_draining:
                ending = Ending.STOPPED
                break
            if steps.skip(step, retry_failed=context.retry_failed):
                continue
            if isinstance(step, LineageStep):
                steps.record_lineage(step)
                continue
            run = await steps.begin_job(step)
            ending = await play_job(run, dataclasses.replace(context, step=_place_of(step, steps.definition.steps)))
            if ending is not Ending.FINISHED:
                break
            await steps.end_job(step, run)
        else:
            await conclude(evaluation, context.note)
            steps.record_reports()
    _record_ending(evaluation, ending)
    return ending


def _place_of(step: JobStep, steps: Sequence[Step]) -> str:
    """The place of a job among those of its evaluation, such as `2 of 2`; empty for the only one."""
    jobs = [one for one in steps if isinstance(one, JobStep)]
    return f"{jobs.index(step) + 1} of {len(jobs)}" if len(jobs) > 1 else ""


@contextlib.contextmanager
def _failure_recorded(evaluation: Evaluation) -> Iterator[None]:
    """Records an error raised inside in execution.json. An unexpected error is recorded too, so that later readers see it."""
    try:
        yield
    except asyncio.CancelledError:
        _end(evaluation, ExecutionStatus.STOPPED, _STOPPED)
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, HeldoutError | OSError) else f"unexpected: {error!r}"
        _end(evaluation, ExecutionStatus.FAILED, reason)
        raise


def _record_ending(evaluation: Evaluation, ending: Ending) -> None:
    match ending:
        case Ending.FINISHED:
            evaluation.update(status=ExecutionStatus.SUCCEEDED, ended_at=time.time())
        case Ending.STOPPED:
            _end(evaluation, ExecutionStatus.STOPPED, _STOPPED)
        case Ending.OUT_OF_TIME:
            _end(evaluation, ExecutionStatus.FAILED, _OUT_OF_TIME)


def _end(evaluation: Evaluation, status: ExecutionStatus, reason: str) -> None:
    """Marks the execution and its current step as ended without success."""
    failed = status is ExecutionStatus.FAILED
    ended = StepStatus.FAILED if failed else StepStatus.STOPPED
    for step in evaluation.state.steps:
        if step.ended_at is None:
            evaluation.update_step(step, status=ended, ended_at=time.time(), failure_reason=reason)
    at = next((step.name for step in reversed(evaluation.state.steps) if step.failure_reason), None)
    evaluation.update(
        status=status, failure_reason=f"step {at}: {reason}" if at and failed else reason, ended_at=time.time()
    )


def check_resumable(evaluation: Evaluation, *, allow_changes: bool) -> None:
    """Checks that the agent and the dataset of an evaluation are those that it began with. Starts nothing.

    allow_changes: marks the begun runs with the changes instead. Raises InputError that names what has changed, RunError when a
    process works on a run that would be marked.
    """
    runs = _begun_runs(evaluation)
    if allow_changes:
        accept_changes(runs)
    else:
        check_unchanged(runs)


def _begun_runs(evaluation: Evaluation) -> Iterable[Run]:
    jobs = [step.name for step in evaluation.definition.steps if isinstance(step, JobStep)]
    done = [state.name for state in evaluation.state.steps if state.status is StepStatus.SUCCEEDED]
    return () if all(name in done for name in jobs) else evaluation.runs().values()


class _Steps:
    """The steps of one execution: their states in execution.json, and the outcomes that later steps refer to."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self.definition = evaluation.definition
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._agents: dict[str, list[lineage.Artifact]] = {}

    def skip(self, step: Step, *, retry_failed: bool) -> bool:
        """Returns whether an earlier runner completed the step. Keeps the outcome of a completed job.

        retry_failed: play a job again that has rollouts to open again.
        """
        before = self._evaluation.state.step(step.name)
        if before is None or before.status is not StepStatus.SUCCEEDED:
            return False
        if before.run_name is not None:
            location = self._evaluation.run_location(before.run_name)
            if is_kept_here(location, before.job_arn) and not has_run(location):
                return False  # the remote place was emptied: the run is copied there again
            run = open_run(location)
            if retry_failed and run.state.retryable:
                return False
            self._keep_outcome(step.name, run)
        return True

    def record_lineage(self, step: LineageStep) -> None:
        """Executes a lineage step."""
        state = self._begun(step)
        lineage.record(self._evaluation, resolve(step.arguments, self._scope()))
        self._succeeded(state)

    async def begin_job(self, step: JobStep) -> Run:
        """Marks a job step as begun. Returns its run: a new one, or the one that an earlier runner began."""
        run_name = self._evaluation.run_names[step.name]
        state = self._evaluation.update_step(self._begun(step), run_name=run_name)
        run = await asyncio.to_thread(self._run_of, step, run_name)
        self._evaluation.update_step(state, status=StepStatus.EXECUTING, job_arn=run.state.arn)
        self._agents[step.name] = lineage.agents_of(run.document)
        return run

    async def end_job(self, step: JobStep, run: Run) -> None:
        """Records the outcome and the lineage of a job that has finished. Raises JobFailed when the run is not complete."""
        if run.state.status is not JobStatus.COMPLETED:
            raise JobFailed(f"run {run.location} ended as {run.state.status}: {run.state.failure_reason}")
        self._keep_outcome(step.name, run)
        models = await asyncio.to_thread(lineage.models_of, run.document)
        job = lineage.job_of(run)
        inputs = [lineage.dataset_of(run), *self._agents[step.name], *models]
        lineage.record_flow(self._evaluation, inputs, [job])
        lineage.record_flow(self._evaluation, [job], lineage.reports_of(run.folder, run.location))
        state = self._evaluation.state.step(step.name)
        assert state is not None  # `begin_job` recorded it
        self._succeeded(state)

    def record_reports(self) -> None:
        """Records the lineage of the evaluation's own reports."""
        jobs = [lineage.job_of(run) for run in self._evaluation.runs().values()]
        reports = lineage.reports_of(self._evaluation.folder, self._evaluation.location)
        lineage.record_flow(self._evaluation, jobs, reports)

    def _begun(self, step: Step) -> StepState:
        before = self._evaluation.state.step(step.name)
        return StepState(
            name=step.name,
            kind="Job" if isinstance(step, JobStep) else "Lineage",
            status=StepStatus.STARTING,
            started_at=time.time(),
            job_arn=None if before is None else before.job_arn,  # clients that ask for the job find it without a gap
        )

    def _succeeded(self, state: StepState) -> None:
        self._evaluation.update_step(state, status=StepStatus.SUCCEEDED, ended_at=time.time())

    def _run_of(self, step: JobStep, run_name: str) -> Run:
        location = self._evaluation.run_location(run_name)
        state = self._evaluation.state
        before = state.step(step.name)
        if self._evaluation.has_run(run_name, None if before is None else before.job_arn):
            return open_run(location)
        return Run.create(
            new_folder(location),
            name=state.name,
            run_name=run_name,
            region=state.region,
            document=self._evaluation.registry.localized(step.document),
            job_name=_job_name(state.execution_id, step.name),
        )

    def _keep_outcome(self, step: str, run: Run) -> None:
        """Keeps the values of a job that later steps can `Get`, in the form of DescribeJob's reply."""
        details: dict[str, Any] = dict.fromkeys(("ExperimentName", "ExperimentId", "RunName", "RunId"))
        output = run.state.document.get("ServiceOutput") or {}
        output = {**output, "MlflowDetails": details | (output.get("MlflowDetails") or {})}
        self._outcomes[step] = {
            "JobName": run.state.arn.rpartition("/")[2],
            "JobArn": run.state.arn,
            "JobStatus": str(run.state.status),
            "JobConfigDocument": {**run.state.document, "ServiceOutput": output},
        }

    def _scope(self) -> dict[str, Any]:
        state = self._evaluation.state
        pipeline_arn = f"arn:aws:sagemaker:{state.region}:{LOCAL_ACCOUNT}:pipeline/{state.pipeline_name}"
        return {
            "Execution": {
                "PipelineName": state.pipeline_name,
                "PipelineArn": pipeline_arn,
                "PipelineExecutionId": state.execution_id,
                "PipelineExecutionArn": state.arn,
                "StartDateTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state.created_at)),
            },
            "Parameters": self.definition.parameters | state.parameters,
            "Steps": self._outcomes,
        }


def _job_name(execution_id: str, step: str) -> str:
    """A new job name of letters, digits and hyphens."""
    parts = ("pipelines", execution_id, re.sub("[^a-zA-Z0-9]+", "-", step)[:24].strip("-"), secrets.token_hex(5))
    return "-".join(part for part in parts if part)
