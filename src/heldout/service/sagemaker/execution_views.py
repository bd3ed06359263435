"""Executions of pipelines as SageMaker describes them, and the jobs of their steps: from the evaluations' folders."""

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
from heldout.service.operations import Reply
from heldout.service.sagemaker.job_views import Given, Job, Seen
from heldout.service.sagemaker.pipelines import Version, moment, version_key
from heldout.service.sagemaker.supervised_jobs import Undertaking
from heldout.service.sagemaker.tags import forget_tags, tags_of
from heldout.service.wire.faults import not_found

_GONE = "its folder is gone"
_LONGEST_REASON = 1300
_LONGEST_STEP_REASON = 1024
"""Characters: the service's bounds."""


class ExecutionRecord(Undertaking):
    """An execution: what its folder does not say."""

    execution_id: str
    pipeline: str
    version: int
    location: str
    """Where the evaluation is wanted: a local path or an `s3://` URI."""
    name: str
    """The evaluation's."""
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
        """On this machine."""
        return folder_for(self.location)


def execution_of_job(context: Context, name: str) -> ExecutionRecord | None:
    """The execution that a job of this name is a step's of, which has its id in it; None: there is none."""
    found = re.match(r"pipelines-([0-9a-f]{12})-", name)
    return context.store.find(ExecutionRecord, found[1]) if found else None


def executions_of(context: Context, pipeline: str) -> list[ExecutionRecord]:
    """The executions of a pipeline."""
    return [record for record in context.store.all(ExecutionRecord) if record.pipeline == pipeline]


def version_of(context: Context, record: ExecutionRecord) -> Version:
    """The version that is executed. Raises ServiceError (ResourceNotFound) when it was deleted meanwhile, with its pipeline."""
    version = context.store.find(Version, version_key(record.pipeline, record.version))
    if version is None:
        raise not_found(f"Pipeline execution with ARN {record.arn} does not exist.")
    return version


def opened(record: ExecutionRecord) -> Evaluation | None:
    """The execution's evaluation; None when someone has taken its folder away, or it is not there yet."""
    try:
        return Evaluation.open_folder(record.folder)
    except RunError:
        return None


def status_of(record: ExecutionRecord, evaluation: Evaluation | None) -> ExecutionStatus:
    """As its folder says: one that goes on is Stopping from the moment it was asked to, and Executing although its process died
    or was told to stop by someone else, which is started again."""
    if evaluation is None:
        return ExecutionStatus.FAILED if record.is_made else ExecutionStatus.EXECUTING
    status = evaluation.state.status
    if record.is_stopping:
        return status if status.is_final else ExecutionStatus.STOPPING
    return ExecutionStatus.EXECUTING if status is ExecutionStatus.STOPPED else status


def reason_of(record: ExecutionRecord, evaluation: Evaluation | None) -> str | None:
    """Why it failed or was stopped; None where it did not."""
    if evaluation is None:
        return _GONE if record.is_made else None
    reason = evaluation.state.failure_reason
    return reason[:_LONGEST_REASON] if reason is not None and status_of(record, evaluation).is_final else None


def summary(record: ExecutionRecord, evaluation: Evaluation | None) -> Reply:
    """As ListPipelineExecutions has it."""
    return {
        "PipelineExecutionArn": record.arn,
        "StartTime": moment(record.created_at),
        "PipelineExecutionStatus": str(status_of(record, evaluation)),
        "PipelineExecutionDescription": record.description,
        "PipelineExecutionDisplayName": record.display_name,
        "PipelineExecutionFailureReason": reason_of(record, evaluation),
    }


def step_view(record: ExecutionRecord, evaluation: Evaluation, step: StepState) -> Reply:
    """As ListPipelineExecutionSteps has it."""
    return {
        "StepName": step.name,
        "StartTime": moment(step.started_at),
        "EndTime": None if step.ended_at is None else moment(step.ended_at),
        "StepStatus": str(step.status),
        "FailureReason": step.failure_reason and step.failure_reason[:_LONGEST_STEP_REASON],
        "Metadata": {"Job": {"Arn": step.job_arn}} if step.job_arn else _lineage(record, evaluation, step),
    }


def _lineage(record: ExecutionRecord, evaluation: Evaluation, step: StepState) -> Reply | None:
    """The ARNs of what a lineage step makes, by name."""
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
                continue  # a name that another step's outcome decides
            one = section.removesuffix("s")
            arns.setdefault(f"{one}Arns", {})[name] = f"{prefix}:{one.lower()}/{name}"
    return {"Lineage": arns}


def is_lineage(context: Context, arn: str) -> bool:
    """Whether a step that was begun makes an action, an artifact or a context with this ARN."""
    for record in context.store.all(ExecutionRecord):
        evaluation = opened(record)
        if evaluation is None:
            continue
        made = (_lineage(record, evaluation, step) or {"Lineage": {}} for step in evaluation.state.steps)
        if any(arn in arns.values() for lineage in made for arns in lineage["Lineage"].values()):
            return True
    return False


def forget_execution(context: Context, record: ExecutionRecord) -> None:
    """Removes an execution, and its jobs with it; inside a transaction."""
    for job in _jobs(context, record):
        forget_tags(context.store, job.arn)
    forget_tags(context.store, record.arn)
    context.store.remove(ExecutionRecord, record.key)


def step_jobs(context: Context, prefix: str = "") -> Iterator[Job]:
    """The jobs of all steps that were begun, whose names begin so."""
    one = execution_of_job(context, prefix)  # most who look for names look for one job's
    for record in context.store.all(ExecutionRecord) if one is None else [one]:
        yield from (job for job in _jobs(context, record) if job.name.startswith(prefix))


def find_step_job(context: Context, name: str) -> Job | None:
    """A step's job by its name; None: there is none."""
    record = execution_of_job(context, name)
    return None if record is None else next((job for job in _jobs(context, record) if job.name == name), None)


def _jobs(context: Context, record: ExecutionRecord) -> Iterator[Job]:
    folder = record.folder
    for step in _steps_begun(folder):
        if step.job_arn is None or step.run_name is None:
            continue
        yield Job(
            name=step.job_arn.rpartition("/")[2],
            arn=step.job_arn,
            role=record.role,
            created_at=step.started_at,
            is_stopping=record.is_stopping,
            run_name=step.run_name,
            place=lambda: folder,
            find=functools.partial(_given, context, record, step),
            look=functools.partial(_seen, record, step),
        )


def _steps_begun(folder: Path) -> tuple[StepState, ...]:
    """None while the folder is not there, or when it was taken away."""
    try:
        found = (folder / STATE_FILE).stat()
        return _steps_at(folder, (found.st_ino, found.st_mtime_ns))
    except (OSError, RunError):
        return ()


@functools.lru_cache(maxsize=16_384)
def _steps_at(folder: Path, change: tuple[int, int]) -> tuple[StepState, ...]:
    """change: another when the file is another, which each change of the state makes it."""
    return Evaluation.open_folder(folder).state.steps


def _given(context: Context, record: ExecutionRecord, step: StepState) -> Given:
    """What the definition's step says. Raises ServiceError (ResourceNotFound) when the pipeline was deleted meanwhile."""
    steps = json.loads(version_of(context, record).definition)["Steps"]
    (arguments,) = (each["Arguments"] for each in steps if each["Name"] == step.name)
    tags = {tag["Key"]: tag["Value"] for tag in arguments.get("Tags", ())}
    return Given(arguments["JobConfigDocument"], tags_of(context.store, step.job_arn or "", tags))


def _seen(record: ExecutionRecord, step: StepState) -> Seen:
    try:
        run = Run.open(folder_for(f"{record.location}/{step.run_name}"))
    except RunError:
        run = None
    return Seen(run, is_over=step.ended_at is not None)
