"""Executes a pipeline definition on this machine, step by step, and keeps `execution.json` up to date.

Steps run one after the other: one job fills the machine. When a runner was stopped or killed, the next one keeps the steps that
have succeeded and resumes the runs of the others.
"""

import asyncio
import re
import secrets
import time
from typing import Any, Protocol

from heldout.errors import HeldoutError, JobFailed
from heldout.pipeline import lineage
from heldout.pipeline.evaluation import LOCAL_ACCOUNT, RUN_NAMES, Evaluation
from heldout.pipeline.expressions import resolve
from heldout.pipeline.state import ExecutionStatus, StepState, StepStatus
from heldout.pipeline.steps import JobStep, LineageStep, Step
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.runs.remote_mirror import has_run, new_folder, open_run
from heldout.runs.run import JobStatus, Run

_OUT_OF_TIME = "the maximum runtime is over; what was finished is kept"
_STOPPED = "stopped before it was done"


class Work(Protocol):
    """The work that the runner delegates."""

    async def play(self, run: Run, switch: StopSwitch) -> Ending:
        """Play the job, or the rest of it, and show its results. Raises HeldoutError when it cannot."""
        ...

    async def conclude(self, evaluation: Evaluation) -> None:
        """Compare the runs. Called once every step has succeeded."""
        ...


async def run_pipeline(evaluation: Evaluation, work: Work, switch: StopSwitch) -> Ending:
    """Execute the remaining steps of `evaluation`. The caller holds its lock.

    Returns FINISHED when every step has succeeded, else the ending of the last job. Raises what a step raises: HeldoutError for
    an error that a person can act on. execution.json records either.
    """
    evaluation.begin()
    try:
        ending = await _Runner(evaluation, work, switch).run()
    except asyncio.CancelledError:
        _end(evaluation, ExecutionStatus.STOPPED, _STOPPED)
        raise
    except Exception as error:
        # The reason must be on record for those who open the evaluation later.
        reason = str(error) if isinstance(error, HeldoutError | OSError) else f"unexpected: {error!r}"
        _end(evaluation, ExecutionStatus.FAILED, reason)
        raise
    match ending:
        case Ending.FINISHED:
            evaluation.update(status=ExecutionStatus.SUCCEEDED, ended_at=time.time())
        case Ending.STOPPED:
            _end(evaluation, ExecutionStatus.STOPPED, _STOPPED)
        case Ending.OUT_OF_TIME:
            _end(evaluation, ExecutionStatus.FAILED, _OUT_OF_TIME)
    return ending


def _job_name(execution_id: str, step: str) -> str:
    """Make a new job name from a step's name, with letters, digits and hyphens only."""
    parts = ("pipelines", execution_id, re.sub("[^a-zA-Z0-9]+", "-", step)[:24].strip("-"), secrets.token_hex(5))
    return "-".join(part for part in parts if part)


def _end(evaluation: Evaluation, status: ExecutionStatus, reason: str) -> None:
    """Mark the execution and its current step as ended without success."""
    failed = status is ExecutionStatus.FAILED
    ended = StepStatus.FAILED if failed else StepStatus.STOPPED
    for step in evaluation.state.steps:
        if step.ended_at is None:
            evaluation.update_step(step, status=ended, ended_at=time.time(), failure_reason=reason)
    at = next((step.name for step in reversed(evaluation.state.steps) if step.failure_reason), None)
    evaluation.update(
        status=status, failure_reason=f"step {at}: {reason}" if at and failed else reason, ended_at=time.time()
    )


class _Runner:
    def __init__(self, evaluation: Evaluation, work: Work, switch: StopSwitch) -> None:
        self._evaluation = evaluation
        self._work = work
        self._switch = switch
        self._definition = evaluation.definition
        self._outcomes: dict[str, dict[str, Any]] = {}

    async def run(self) -> Ending:
        for step in self._definition.steps:
            if self._switch.is_draining:
                return Ending.STOPPED
            ending = await self._run_step(step)
            if ending is not Ending.FINISHED:
                return ending
        await self._work.conclude(self._evaluation)
        reports = lineage.reports_of(self._evaluation.folder, self._evaluation.location)
        lineage.record_flow(self._evaluation, self._jobs(), reports)
        return Ending.FINISHED

    async def _run_step(self, step: Step) -> Ending:
        before = self._evaluation.state.step(step.name)
        if before is not None and before.status is StepStatus.SUCCEEDED:
            if before.run_name is not None:
                self._keep_outcome(step.name, open_run(self._evaluation.run_location(before.run_name)))
            return Ending.FINISHED
        state = StepState(
            name=step.name,
            kind="Job" if isinstance(step, JobStep) else "Lineage",
            status=StepStatus.STARTING,
            started_at=time.time(),
            job_arn=None if before is None else before.job_arn,  # a client that looks the job up finds it at any time
        )
        if isinstance(step, LineageStep):
            lineage.record(self._evaluation, resolve(step.arguments, self._scope()))
            ending = Ending.FINISHED
        else:
            ending = await self._run_job(step, state)
            state = self._evaluation.state.step(step.name) or state
        if ending is Ending.FINISHED:
            self._evaluation.update_step(state, status=StepStatus.SUCCEEDED, ended_at=time.time())
        return ending

    async def _run_job(self, step: JobStep, state: StepState) -> Ending:
        run_name = RUN_NAMES.get(step.name, step.name)
        state = self._evaluation.update_step(state, run_name=run_name)
        run = await asyncio.to_thread(self._run_of, step, run_name)
        self._evaluation.update_step(state, status=StepStatus.EXECUTING, job_arn=run.state.arn)
        agents = lineage.agents_of(run.document)
        ending = await self._work.play(run, self._switch)
        if ending is not Ending.FINISHED:
            return ending
        if run.state.status is not JobStatus.COMPLETED:
            raise JobFailed(f"run {run.location} ended as {run.state.status}: {run.state.failure_reason}")
        self._keep_outcome(step.name, run)
        models = await asyncio.to_thread(lineage.models_of, run.document)
        job = lineage.job_of(run)
        lineage.record_flow(self._evaluation, [lineage.dataset_of(run), *agents, *models], [job])
        lineage.record_flow(self._evaluation, [job], lineage.reports_of(run.folder, run.location))
        return Ending.FINISHED

    def _run_of(self, step: JobStep, run_name: str) -> Run:
        location = self._evaluation.run_location(run_name)
        if has_run(location):
            return open_run(location)
        state = self._evaluation.state
        return Run.create(
            new_folder(location),
            name=state.name,
            run_name=run_name,
            region=state.region,
            document=self._evaluation.registry.localized(step.document),
            job_name=_job_name(state.execution_id, step.name),
        )

    def _jobs(self) -> list[lineage.Artifact]:
        return [lineage.job_of(run) for run in self._evaluation.runs().values()]

    def _keep_outcome(self, step: str, run: Run) -> None:
        """Keep what later steps can `Get` of a job, in the form of DescribeJob."""
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
            "Parameters": self._definition.parameters | state.parameters,
            "Steps": self._outcomes,
        }
