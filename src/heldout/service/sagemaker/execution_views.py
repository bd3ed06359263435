"""Pipeline executions and the jobs of their steps in SageMaker's form, read from the evaluations' folders."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from heldout.errors import InputError, RunError
from heldout.pipeline.evaluation import STATE_FILE, Evaluation
from heldout.pipeline.expressions import resolve
from heldout.pipeline.state import ExecutionStatus, StepState
from heldout.pipeline.steps import LINEAGE_NAMES, LineageStep
from heldout.runs.remote_mirror import folder_for
from heldout.runs.run import Run
from heldout.service.context import Context
from heldout.service.sagemaker.job_views import Job, JobArguments, JobState
from heldout.service.sagemaker.pipelines import Version, moment, version_key
from heldout.service.supervisor import SupervisedJob
from heldout.service.tags import forget_tags, tags_of
from heldout.service.wire.faults import not_found
from heldout.service.wire.operations import Reply

_FOLDER_MISSING = "its folder is missing"
_MAX_REASON_CHARACTERS = 1300
_MAX_STEP_REASON_CHARACTERS = 1024
"""The service's limits."""


class ExecutionRecord(SupervisedJob):
    """An execution: everything that its folder does not hold."""

    execution_id: str
    pipeline: str
    version: int
    location: str
    """Output location of the evaluation: a local path or an `s3://` URI."""
    name: str
    """Name of the evaluation."""
    parameters: dict[str, str]
    display_name: str | None
    description: str | None
    role: str
    parallelism: int | None
    created_at: float

    @property
    def key(self) -> str:
        return self.execution_id

    @property
    def folder(self) -> Path:
        """The evaluation's folder on this machine."""
        return folder_for(self.location)


def execution_of_job(context: Context, name: str) -> ExecutionRecord | None:
    """The execution that a step's job belongs to, by the id in the job's name; None for other jobs."""
    found = re.match(r"pipelines-([0-9a-f]{12})-", name)
    return context.store.find(ExecutionRecord, found[1]) if found else None


def executions_of(context: Context, pipeline: str) -> list[ExecutionRecord]:
    """Executions of a pipeline."""
    return [record for record in context.store.all(ExecutionRecord) if record.pipeline == pipeline]


def version_of(context: Context, record: ExecutionRecord) -> Version:
    """The executed version. Raises ServiceError (ResourceNotFound) if its pipeline was deleted meanwhile."""
    version = context.store.find(Version, version_key(record.pipeline, record.version))
    if version is None:
        raise not_found(f"Pipeline execution with ARN {record.arn} does not exist.")
    return version


def opened(record: ExecutionRecord) -> Evaluation | None:
    """The execution's evaluation; None if its folder is missing or not yet created."""
    try:
        return Evaluation.open_folder(record.folder)
    except RunError:
        return None


def status_of(record: ExecutionRecord, evaluation: Evaluation | None) -> ExecutionStatus:
    """Status by the folder, with two exceptions.

    An unfinished execution is Stopping as soon as a client asks it to stop. One that was stopped by a signal alone is Executing,
    because the supervisor restarts it.
    """
    if evaluation is None:
        return ExecutionStatus.FAILED if record.is_made else ExecutionStatus.EXECUTING
    status = evaluation.state.status
    if record.is_stopping:
        return status if status.is_final else ExecutionStatus.STOPPING
    return ExecutionStatus.EXECUTING if status is ExecutionStatus.STOPPED else status


def reason_of(record: ExecutionRecord, evaluation: Evaluation | None) -> str | None:
    """The reason for a failure or a stop; None for other executions."""
    if evaluation is None:
        return _FOLDER_MISSING if record.is_made else None
    reason = evaluation.state.failure_reason
    return reason[:_MAX_REASON_CHARACTERS] if reason is not None and status_of(record, evaluation).is_final else None


def summary(record: ExecutionRecord, evaluation: Evaluation | None) -> Reply:
    """An entry of ListPipelineExecutions."""
    return {
        "PipelineExecutionArn": record.arn,
        "StartTime": moment(record.created_at),
        "PipelineExecutionStatus": str(status_of(record, evaluation)),
        "PipelineExecutionDescription": record.description,
        "PipelineExecutionDisplayName": record.display_name,
        "PipelineExecutionFailureReason": reason_of(record, evaluation),
    }


def step_view(record: ExecutionRecord, evaluation: Evaluation, step: StepState) -> Reply:
    """An entry of ListPipelineExecutionSteps."""
    return {
        "StepName": step.name,
        "StartTime": moment(step.started_at),
        "EndTime": None if step.ended_at is None else moment(step.ended_at),
        "StepStatus": str(step.status),
        "FailureReason": step.failure_reason and step.failure_reason[:_MAX_STEP_REASON_CHARACTERS],
        "Metadata": {"Job": {"Arn": step.job_arn}} if step.job_arn else _lineage(record, evaluation, step),
    }


def _lineage(record: ExecutionRecord, evaluation: Evaluation, step: StepState) -> Reply | None:
    """ARNs by name of the entities that a lineage step creates."""
    definition = evaluation.definition
    found = next((s for s in definition.steps if s.name == step.name and isinstance(s, LineageStep)), None)
    if not isinstance(found, LineageStep):
        return None
    prefix = record.arn.partition(":pipeline/")[0]
    execution = {"PipelineExecutionId": record.execution_id, "PipelineExecutionArn": record.arn}
    scope = {"Execution": execution, "Parameters": definition.parameters | record.parameters}
    arns: dict[str, dict[str, str]] = {}
    for section, key in LINEAGE_NAMES.items():
        for entry in found.arguments.get(section, ()):
            try:
                name = str(resolve(entry[key], scope))
            except (InputError, KeyError):
                continue  # the name depends on another step's outcome
            one = section.removesuffix("s")
            arns.setdefault(f"{one}Arns", {})[name] = f"{prefix}:{one.lower()}/{name}"
    return {"Lineage": arns}


def is_lineage(context: Context, arn: str) -> bool:
    """Whether a started step creates an action, an artifact or a context with this ARN."""
    for record in context.store.all(ExecutionRecord):
        evaluation = opened(record)
        if evaluation is None:
            continue
        made = (_lineage(record, evaluation, step) or {"Lineage": {}} for step in evaluation.state.steps)
        if any(arn in arns.values() for lineage in made for arns in lineage["Lineage"].values()):
            return True
    return False


def forget_execution(context: Context, record: ExecutionRecord) -> None:
    """Removes an execution with its jobs. Call it inside a transaction."""
    for job in _jobs(context, record):
        forget_tags(context.store, job.arn)
    forget_tags(context.store, record.arn)
    context.store.remove(ExecutionRecord, record.key)


def step_jobs(context: Context, prefix: str = "") -> Iterator[Job]:
    """Jobs of all started steps whose names begin with `prefix`."""
    one = execution_of_job(context, prefix)  # most callers look for one job
    for record in context.store.all(ExecutionRecord) if one is None else [one]:
        yield from (job for job in _jobs(context, record) if job.name.startswith(prefix))


def find_step_job(context: Context, name: str) -> Job | None:
    """A step's job by its name; None if it does not exist."""
    record = execution_of_job(context, name)
    return None if record is None else next((job for job in _jobs(context, record) if job.name == name), None)


def _jobs(context: Context, record: ExecutionRecord) -> Iterator[Job]:
    folder = record.folder
    for step in _started_steps(folder):
        if step.job_arn is None or step.run_name is None:
            continue
        yield Job(
            name=step.job_arn.rpartition("/")[2],
            arn=step.job_arn,
            role=record.role,
            created_at=step.started_at,
            is_stopping=record.is_stopping,
            run_name=step.run_name,
            folder_of=lambda: folder,
            arguments_of=functools.partial(_arguments, context, record, step),
            state_of=functools.partial(_state, record, step),
        )


def _started_steps(folder: Path) -> tuple[StepState, ...]:
    """No steps if the folder is missing or not yet created."""
    try:
        found = (folder / STATE_FILE).stat()
        return _steps_at(folder, (found.st_ino, found.st_mtime_ns))
    except (OSError, RunError):
        return ()


@functools.lru_cache(maxsize=16_384)
def _steps_at(folder: Path, change: tuple[int, int]) -> tuple[StepState, ...]:
    """change: identifies the state file's content. It is part of the cache key, so that a changed file is read again."""
    return Evaluation.open_folder(folder).state.steps


def _arguments(context: Context, record: ExecutionRecord, step: StepState) -> JobArguments:
    """The step's arguments. Raises ServiceError (ResourceNotFound) if the pipeline was deleted meanwhile."""
    steps = json.loads(version_of(context, record).definition)["Steps"]
    (arguments,) = (each["Arguments"] for each in steps if each["Name"] == step.name)
    tags = {tag["Key"]: tag["Value"] for tag in arguments.get("Tags", ())}
    return JobArguments(arguments["JobConfigDocument"], tags_of(context.store, step.job_arn or "", tags))


def _state(record: ExecutionRecord, step: StepState) -> JobState:
    try:
        run = Run.open(folder_for(f"{record.location}/{step.run_name}"))
    except RunError:
        run = None
    return JobState(run, is_over=step.ended_at is not None)
