"""Pipeline execution operations. Each execution is an evaluation folder that a process of its own works on."""

import functools
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from heldout.errors import HeldoutError
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import ExecutionStatus
from heldout.pipeline.steps import Definition, JobStep, parse_definition
from heldout.service.context import Context
from heldout.service.mlflow.apps import registry_with_apps
from heldout.service.sagemaker.documents import playable
from heldout.service.sagemaker.execution_views import (
    ExecutionRecord,
    execution_of_job,
    executions_of,
    forget_execution,
    opened,
    reason_of,
    status_of,
    step_view,
    summary,
    version_of,
)
from heldout.service.sagemaker.pipelines import (
    LastExecution,
    Pipeline,
    Version,
    find_pipeline,
    find_version,
    forget_pipeline,
    moment,
    parallelism,
    wire_parallelism,
)
from heldout.service.supervisor import ExecutionWork
from heldout.service.tags import forget_tags, set_tags, tags_of
from heldout.service.wire.faults import ServiceError, invalid, not_found
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import between, paged

OPERATIONS = OperationTable[Context]("sagemaker")

_MAX_NAME_CHARACTERS = 50
"""The longest name without the id: an evaluation's name has at most 63 characters, and a hyphen and the id take 13."""
_log = logging.getLogger(__name__)


@OPERATIONS.operation("StartPipelineExecution")
def start_pipeline_execution(context: Context, params: Params) -> Reply:
    """Executes a version of a pipeline, by default the latest, in a process of its own."""
    for name in ("SelectiveExecutionConfig", "MlflowExperimentName"):
        if name in params:
            raise invalid(f"{name} is not served here; leave it out")

    def put() -> ExecutionRecord:
        pipeline = find_pipeline(context, params["PipelineName"])
        version = find_version(context, pipeline, params)
        record = _record(context, pipeline, version, params)
        context.store.put(record)
        for subject in (pipeline.name, version.key):
            context.store.put(LastExecution(of=subject, arn=record.arn, at=record.created_at))
        set_tags(context.store, record.arn, None)
        return record

    reply, record = _once(context, "StartPipelineExecution", params, put)
    if record is not None:
        try:
            _make(context, record)
        except (HeldoutError, OSError) as error:
            with context.store.transaction():
                context.store.remove(ExecutionRecord, record.key)
                forget_tags(context.store, record.arn)
                context.store.forget_token("StartPipelineExecution", params["ClientRequestToken"])
            raise invalid(f"pipeline {record.pipeline!r} cannot be executed: {error}") from error
        context.supervisor.supervise(record, ExecutionWork(record.folder))
    return reply


@OPERATIONS.operation("DescribePipelineExecution")
def describe_pipeline_execution(context: Context, params: Params) -> Reply:
    """Describes an execution and its progress."""
    record = _requested(context, params)
    evaluation = opened(record)
    changed_at = record.created_at if evaluation is None else evaluation.state.changed_at
    return {
        **summary(record, evaluation),
        "PipelineArn": context.arn(f"pipeline/{record.pipeline}"),
        "FailureReason": reason_of(record, evaluation),
        "CreationTime": moment(record.created_at),
        "LastModifiedTime": moment(changed_at),
        "ParallelismConfiguration": wire_parallelism(record.parallelism),
        "PipelineVersionId": record.version,
        "RoleArn": record.role,
    }


@OPERATIONS.operation("ListPipelineExecutions")
def list_pipeline_executions(context: Context, params: Params) -> Reply:
    """Lists a pipeline's executions that pass the request's filters, newest first."""
    pipeline = find_pipeline(context, params["PipelineName"])
    records = executions_of(context, pipeline.name)
    if "PipelineVersionAlias" in params:
        version = find_version(context, pipeline, params)
        records = [record for record in records if record.version == version.number]
    found: list[Reply] = [
        {"PipelineExecutionArn": record.arn, "StartTime": moment(record.created_at), "Record": record}
        for record in records
    ]
    found = between(found, params, "StartTime", "CreatedAfter", "CreatedBefore")
    keys = {"CreationTime": "StartTime", "PipelineExecutionArn": "PipelineExecutionArn"}
    return paged("PipelineExecutionSummaries", found, params, keys, is_descending=True, view=_summary)


@OPERATIONS.operation("ListPipelineExecutionSteps")
def list_pipeline_execution_steps(context: Context, params: Params) -> Reply:
    """Lists the started steps of an execution, newest first."""
    if "PipelineExecutionArn" not in params:
        raise invalid("1 validation error detected: Value null at 'pipelineExecutionArn': Member must not be null")
    record = _requested(context, params)
    evaluation = opened(record)
    found = [] if evaluation is None else [step_view(record, evaluation, step) for step in evaluation.state.steps]
    keys = {"": "StartTime", "Name": "StepName"}
    return paged("PipelineExecutionSteps", found, params, keys, is_descending=True)


@OPERATIONS.operation("StopPipelineExecution")
def stop_pipeline_execution(context: Context, params: Params) -> Reply:
    """Stops an execution. Rollouts in flight may finish for two minutes."""

    def mark() -> ExecutionRecord:
        record = _requested(context, params)
        status = status_of(record, opened(record))
        if status.is_final:
            raise invalid(
                f"Pipeline execution with ARN {record.arn} status '{status}'. Only pipelines with 'Executing' status can be "
                "stopped."
            )
        context.store.change(ExecutionRecord, record.key, is_stopping=True)
        return record

    reply, record = _once(context, "StopPipelineExecution", params, mark)
    if record is not None:
        context.supervisor.stop(record.arn)
    return reply


@OPERATIONS.operation("RetryPipelineExecution")
def retry_pipeline_execution(context: Context, params: Params) -> Reply:
    """Resumes an execution that failed or was stopped. Finished rollouts are kept."""

    def mark() -> ExecutionRecord:
        record = _requested(context, params)
        status = status_of(record, opened(record))
        if not status.is_final:
            raise ServiceError("ConflictException", f"Pipeline execution with ARN {record.arn} is {status}")
        if status is ExecutionStatus.SUCCEEDED:
            raise invalid(f"Pipeline execution with ARN {record.arn} has succeeded; there is nothing to retry")
        context.store.change(ExecutionRecord, record.key, is_stopping=False)
        return record

    reply, record = _once(context, "RetryPipelineExecution", params, mark)
    if record is not None:
        try:
            context.supervisor.resume(record, ExecutionWork(record.folder))
        except (HeldoutError, OSError) as error:
            context.store.forget_token("RetryPipelineExecution", params["ClientRequestToken"])
            raise ServiceError("ConflictException", str(error)) from error
    return reply


@OPERATIONS.operation("DescribePipelineDefinitionForExecution")
def describe_pipeline_definition_for_execution(context: Context, params: Params) -> Reply:
    """Returns the definition that an execution runs."""
    record = _requested(context, params)
    version = version_of(context, record)
    return {"PipelineDefinition": version.definition, "CreationTime": moment(version.created_at)}


@OPERATIONS.operation("DeletePipeline")
def delete_pipeline(context: Context, params: Params) -> Reply:
    """Deletes a pipeline and its executions. Their evaluations stay at their output locations."""

    def make() -> Reply:
        pipeline = find_pipeline(context, params["PipelineName"])
        records = executions_of(context, pipeline.name)
        for record in records:
            if not (status := status_of(record, opened(record))).is_final:
                raise ServiceError(
                    "ConflictException",
                    f"Pipeline '{pipeline.name}' cannot be deleted: execution {record.arn} is {status}; stop it first",
                )
        for record in records:
            forget_execution(context, record)
        forget_pipeline(context, pipeline)
        return {"PipelineArn": pipeline.arn}

    return context.store.once("DeletePipeline", params["ClientRequestToken"], params, make)


def unfinished(context: Context) -> list[Callable[[], None]]:
    """One function for each execution, which resumes the execution unless it has ended or a process works on it."""
    return [functools.partial(_resume, context, record.key) for record in context.store.all(ExecutionRecord)]


def stop_execution_of(context: Context, job_arn: str) -> None:
    """Stops the execution that a job belongs to. Has no effect on one that has ended."""
    record = execution_of_job(context, job_arn.rpartition("/")[2])
    if record is not None:
        context.store.change(ExecutionRecord, record.key, is_stopping=True)
        context.supervisor.stop(record.arn)


def _resume(context: Context, key: str) -> None:
    record = context.store.find(ExecutionRecord, key)
    if record is None:
        return  # deleted meanwhile
    try:
        if not record.is_made:
            _make(context, record)
    except (ServiceError, HeldoutError, OSError) as error:
        _log.warning("execution %s was not resumed: %s", record.arn, error)
        return
    # Also without its folder, which may be away for a moment.
    context.supervisor.supervise(record, ExecutionWork(record.folder))


class _Once(NamedTuple):
    reply: Reply
    record: ExecutionRecord | None
    """The record that this request changed; None if an earlier request with the same token did."""


def _once(context: Context, operation: str, params: Params, change: Callable[[], ExecutionRecord]) -> _Once:
    """Calls `change` in a transaction, unless its client token was used for the same request before."""
    changed: list[ExecutionRecord] = []

    def make() -> Reply:
        changed.append(change())
        return {"PipelineExecutionArn": changed[0].arn}

    reply = context.store.once(operation, params["ClientRequestToken"], params, make)
    return _Once(reply, changed[0] if changed else None)


def _record(context: Context, pipeline: Pipeline, version: Version, params: Params) -> ExecutionRecord:
    """A new record. Raises ServiceError (ValidationException) if the definition cannot be executed with these parameters."""
    definition = parse_definition(version.definition)
    outputs = [playable(context, step.document, where=f"step {step.name!r}").output for step in _job_steps(definition)]
    execution_id = secrets.token_hex(6)
    display_name = params.get("PipelineExecutionDisplayName")
    name = f"{(display_name or pipeline.name)[:_MAX_NAME_CHARACTERS].rstrip('-')}-{execution_id}"
    output = outputs[0] if outputs else str(context.state / "executions")
    return ExecutionRecord(
        execution_id=execution_id,
        arn=f"{pipeline.arn}/execution/{execution_id}",
        pipeline=pipeline.name,
        version=version.number,
        location=f"{output}/{name}",
        name=name,
        parameters=_parameters(definition, params),
        display_name=display_name,
        description=params.get("PipelineExecutionDescription"),
        role=params.get("RoleArn", pipeline.role),
        parallelism=parallelism(params) or pipeline.parallelism,
        created_at=time.time(),
    )


def _parameters(definition: Definition, params: Params) -> dict[str, str]:
    given = {parameter["Name"]: parameter["Value"] for parameter in params.get("PipelineParameters", ())}
    for name in given:
        if name not in definition.parameters:
            raise invalid(f"Invalid request provided: Unknown Pipeline parameter {name!r}")
    for name, default in definition.parameters.items():
        if default is None and name not in given:
            raise invalid(f"Parameter {name!r} has no default and was not given")
    return given


def _make(context: Context, record: ExecutionRecord) -> None:
    definition = json.loads(version_of(context, record).definition)
    steps = _job_steps(parse_definition(definition))
    if not (record.folder / "execution.json").exists():
        Evaluation.create(
            record.location,
            name=record.name,
            region=context.region,
            definition=definition,
            registry=registry_with_apps(context),
            parameters=record.parameters,
            tags=_tags(context, record, steps),
            pipeline_name=record.pipeline,
            kms_key=next((key for step in steps if (key := step.document.output_data_config.kms_key_arn)), None),
            execution_id=record.execution_id,
        )
    context.store.change(ExecutionRecord, record.key, is_made=True)


def _tags(context: Context, record: ExecutionRecord, steps: Sequence[JobStep]) -> dict[str, str]:
    """Tags of an execution's MLflow runs: the pipeline's tags and those of its jobs."""
    own = {key: value for step in steps for key, value in step.tags}
    return tags_of(context.store, context.arn(f"pipeline/{record.pipeline}")) | own


def _job_steps(definition: Definition) -> list[JobStep]:
    return [step for step in definition.steps if isinstance(step, JobStep)]


def _summary(entry: Reply) -> Reply:
    record: ExecutionRecord = entry["Record"]
    return summary(record, opened(record))


def _requested(context: Context, params: Params) -> ExecutionRecord:
    arn = params["PipelineExecutionArn"]
    record = context.store.find(ExecutionRecord, arn.rpartition("/")[2])
    if record is None or record.arn != arn:
        raise not_found(f"Pipeline execution with ARN {arn} does not exist.")
    return record
