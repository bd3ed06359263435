"""Pipelines and their versions. A version's definition never changes: an execution keeps the one it started with."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from heldout.errors import HeldoutError
from heldout.pipeline.steps import JobStep, parse_definition
from heldout.service.context import Context
from heldout.service.store import Record
from heldout.service.tags import checked_tags, forget_tags, set_tags
from heldout.service.wire.faults import ServiceError, invalid, not_found
from heldout.service.wire.operations import OperationTable, Params, Reply, service_model
from heldout.service.wire.paging import between, paged
from heldout.service.wire.validation import check_value
from heldout.storage import Storage

OPERATIONS = OperationTable[Context]("sagemaker")
_MAX_ALIASES = 10


class Pipeline(Record):
    """A pipeline without its definitions, which are in its versions."""

    name: str
    arn: str
    display_name: str | None
    description: str | None
    role: str
    parallelism: int | None
    created_at: float
    changed_at: float
    latest: int = 1
    """Number of the latest version."""

    @property
    def key(self) -> str:
        return self.name


class Version(Record):
    """A version of a pipeline."""

    pipeline: str
    number: int
    definition: str
    """The JSON text of the request."""
    display_name: str | None = None
    description: str | None = None
    aliases: tuple[str, ...] = ()
    created_at: float

    @property
    def key(self) -> str:
        return version_key(self.pipeline, self.number)


def version_key(pipeline: str, number: int) -> str:
    """The store key of a version; keys of a pipeline sort by number."""
    return f"{pipeline}/{number:09}"


class LastExecution(Record):
    """The latest execution of a pipeline or of one of its versions."""

    of: str
    """A pipeline's name or a version's key."""
    arn: str
    at: float

    @property
    def key(self) -> str:
        return self.of


@OPERATIONS.operation("CreatePipeline")
def create_pipeline(context: Context, params: Params) -> Reply:
    """Creates a pipeline with its first version."""
    definition = _definition(context, params)
    if definition is None:
        raise invalid("a pipeline needs PipelineDefinition or PipelineDefinitionS3Location")
    name, now = params["PipelineName"], time.time()

    def make() -> Reply:
        if context.store.find(Pipeline, name) is not None:
            raise invalid(
                "Pipeline names must be unique within an AWS account and region. Pipeline with name "
                f"({name}) already exists."
            )
        pipeline = Pipeline(
            name=name,
            arn=context.arn(f"pipeline/{name}"),
            display_name=params.get("PipelineDisplayName"),
            description=params.get("PipelineDescription"),
            role=params["RoleArn"],
            parallelism=parallelism(params),
            created_at=now,
            changed_at=now,
        )
        context.store.put(pipeline)
        aliases = tuple(params.get("PipelineVersionAliases", ()))
        context.store.put(Version(pipeline=name, number=1, definition=definition, aliases=aliases, created_at=now))
        set_tags(context.store, pipeline.arn, params.get("Tags"))
        return {"PipelineArn": pipeline.arn}

    return context.store.once("CreatePipeline", params["ClientRequestToken"], params, make)


@OPERATIONS.operation("UpdatePipeline")
def update_pipeline(context: Context, params: Params) -> Reply:
    """Changes the given members of a pipeline. A definition becomes a new version, whose number the reply has."""
    definition, now = _definition(context, params), time.time()
    aliases = tuple(params.get("PipelineVersionAliases", ()))
    with context.store.transaction():
        pipeline = find_pipeline(context, params["PipelineName"])
        if aliases and definition is None:
            raise invalid(
                "PipelineVersionAliases need a new definition; use UpdatePipelineVersion for an existing version"
            )
        if definition is not None:
            _check_aliases(context, pipeline.name, aliases)
        changed = pipeline.model_copy(
            update={
                "display_name": params.get("PipelineDisplayName", pipeline.display_name),
                "description": params.get("PipelineDescription", pipeline.description),
                "role": params.get("RoleArn", pipeline.role),
                "parallelism": parallelism(params) or pipeline.parallelism,
                "changed_at": now,
                "latest": pipeline.latest + (definition is not None),
            }
        )
        context.store.put(changed)
        if definition is not None:
            version = Version(
                pipeline=pipeline.name, number=changed.latest, definition=definition, aliases=aliases, created_at=now
            )
            context.store.put(version)
    return {"PipelineArn": pipeline.arn, "PipelineVersionId": changed.latest}


@OPERATIONS.operation("DescribePipeline")
def describe_pipeline(context: Context, params: Params) -> Reply:
    """Describes a pipeline and one of its versions, by default the latest."""
    pipeline = find_pipeline(context, params["PipelineName"])
    version = find_version(context, pipeline, params)
    last = context.store.find(LastExecution, pipeline.name)
    return {
        **_summary(pipeline),
        "PipelineDefinition": version.definition,
        "PipelineStatus": "Active",
        "LastRunTime": last and moment(last.at),
        "ParallelismConfiguration": wire_parallelism(pipeline.parallelism),
        "PipelineVersionDisplayName": version.display_name,
        "PipelineVersionDescription": version.description,
        "PipelineVersionAliases": list(version.aliases) or None,
    }


@OPERATIONS.operation("ListPipelines")
def list_pipelines(context: Context, params: Params) -> Reply:
    """Lists the pipelines that pass the request's filters, newest first."""

    def listed(summary: Reply) -> Reply:
        last = context.store.find(LastExecution, summary["PipelineName"])
        return {**summary, "LastExecutionTime": last and moment(last.at)}

    found = [_summary(pipeline) for pipeline in context.store.all(Pipeline, params.get("PipelineNamePrefix", ""))]
    if params.get("ManagedBy") == "AWS":
        found = []
    found = between(found, params, "CreationTime", "CreatedAfter", "CreatedBefore")
    keys = {"CreationTime": "CreationTime", "Name": "PipelineName"}
    return paged("PipelineSummaries", found, params, keys, is_descending=True, view=listed)


@OPERATIONS.operation("ListPipelineVersions")
def list_pipeline_versions(context: Context, params: Params) -> Reply:
    """Lists a pipeline's versions, newest first."""
    pipeline = find_pipeline(context, params["PipelineName"])
    found = [_version_summary(context, pipeline, version) for version in _versions(context, pipeline.name)]
    found = between(found, params, "CreationTime", "CreatedAfter", "CreatedBefore")
    return paged("PipelineVersionSummaries", found, params, {"": "PipelineVersionId"}, is_descending=True)


@OPERATIONS.operation("UpdatePipelineVersion")
def update_pipeline_version(context: Context, params: Params) -> Reply:
    """Changes a version's display name, description and aliases."""
    change = params.get("PipelineVersionAliasOperations", {})
    added, removed = tuple(change.get("Add", ())), change.get("Remove", ())
    with context.store.transaction():
        pipeline = find_pipeline(context, params["PipelineArn"])
        version = find_version(context, pipeline, params)
        for alias in removed:
            if alias not in version.aliases:
                raise invalid(f"version {version.number} of pipeline {pipeline.name!r} has no alias {alias!r}")
        _check_aliases(context, pipeline.name, added)
        aliases = (*(alias for alias in version.aliases if alias not in removed), *added)
        if len(aliases) > _MAX_ALIASES:
            raise invalid(f"a version has {_MAX_ALIASES} aliases at most; this one would have {len(aliases)}")
        changed = version.model_copy(
            update={
                "display_name": params.get("PipelineVersionDisplayName", version.display_name),
                "description": params.get("PipelineVersionDescription", version.description),
                "aliases": aliases,
            }
        )
        context.store.put(changed)
    return {"PipelineArn": pipeline.arn, "PipelineVersionId": version.number}


def find_pipeline(context: Context, name_or_arn: str) -> Pipeline:
    """The pipeline of this name or ARN. Raises ServiceError (ResourceNotFound) if it does not exist."""
    name = name_or_arn.partition(":pipeline/")[2] or name_or_arn
    pipeline = context.store.find(Pipeline, name)
    if pipeline is None or name_or_arn not in (pipeline.name, pipeline.arn):
        raise not_found(f"Pipeline '{name_or_arn}' does not exist.")
    return pipeline


def find_version(context: Context, pipeline: Pipeline, params: Params) -> Version:
    """The version that the request names by number or alias; by default the latest.

    Raises ServiceError: ResourceNotFound if it does not exist, ValidationException if both are given.
    """
    number, alias = params.get("PipelineVersionId"), params.get("PipelineVersionAlias")
    if number is not None and alias is not None:
        raise invalid("give PipelineVersionId or PipelineVersionAlias, not both")
    if alias is not None:
        found = next((v for v in _versions(context, pipeline.name) if alias in v.aliases), None)
    else:
        found = context.store.find(Version, version_key(pipeline.name, number or pipeline.latest))
    if found is None:
        raise not_found(f"Pipeline '{pipeline.name}' has no version {number if alias is None else repr(alias)}.")
    return found


def forget_pipeline(context: Context, pipeline: Pipeline) -> None:
    """Removes a pipeline with its versions. Call it inside a transaction."""
    for version in _versions(context, pipeline.name):
        context.store.remove(Version, version.key)
        context.store.remove(LastExecution, version.key)
    context.store.remove(LastExecution, pipeline.name)
    context.store.remove(Pipeline, pipeline.name)
    forget_tags(context.store, pipeline.arn)


def parallelism(params: Params) -> int | None:
    """The request's limit of concurrent steps. It is stored and returned; steps run one at a time here."""
    given = params.get("ParallelismConfiguration")
    return None if given is None else int(given["MaxParallelExecutionSteps"])


def wire_parallelism(limit: int | None) -> Reply | None:
    """A limit of concurrent steps in the form of replies."""
    return None if limit is None else {"MaxParallelExecutionSteps": limit}


def moment(seconds: float) -> datetime:
    """Unix seconds as the datetime of replies, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _definition(context: Context, params: Params) -> str | None:
    """The definition that a request holds as text or names in S3; None if it has neither.

    Raises ServiceError (ValidationException) if it has both, or if the definition cannot be read or executed here.
    """
    text, place = params.get("PipelineDefinition"), params.get("PipelineDefinitionS3Location")
    if text is not None and place is not None:
        raise invalid("give PipelineDefinition or PipelineDefinitionS3Location, not both")
    if text is None and place is None:
        return None
    try:
        if place is not None:
            folder, _, key = f"{place['Bucket']}/{place['ObjectKey']}".rpartition("/")
            text = Storage.at(context.registry.location(f"s3://{folder}")).read(key).decode()
        steps = parse_definition(text or "").steps
    except (HeldoutError, OSError, ValueError, RecursionError) as error:
        raise invalid(f"Invalid pipeline definition: {error}") from error
    for step in steps:
        if isinstance(step, JobStep):
            _check_tags(step)
    return text


def _check_tags(step: JobStep) -> None:
    """Checks a step's tags as CreateJob checks a job's. Raises ServiceError (ValidationException)."""
    shape = service_model("sagemaker").shape_for("TagList")
    check_value(shape, [{"Key": key, "Value": value} for key, value in step.tags], f"step {step.name!r}: tags")
    checked_tags(step.tags)


def _check_aliases(context: Context, pipeline: str, aliases: Sequence[str]) -> None:
    for version in _versions(context, pipeline):
        for alias in aliases:
            if alias in version.aliases:
                raise ServiceError(
                    "ConflictException", f"alias {alias!r} belongs to version {version.number}; remove it there first"
                )
    for alias in aliases:
        if alias.isdecimal():
            raise invalid(f"alias {alias!r} consists of digits only, like a version number; choose another alias")


def _versions(context: Context, pipeline: str) -> list[Version]:
    return context.store.all(Version, f"{pipeline}/")


def _summary(pipeline: Pipeline) -> Reply:
    return {
        "PipelineArn": pipeline.arn,
        "PipelineName": pipeline.name,
        "PipelineDisplayName": pipeline.display_name,
        "PipelineDescription": pipeline.description,
        "RoleArn": pipeline.role,
        "CreationTime": moment(pipeline.created_at),
        "LastModifiedTime": moment(pipeline.changed_at),
    }


def _version_summary(context: Context, pipeline: Pipeline, version: Version) -> Reply:
    last = context.store.find(LastExecution, version.key)
    return {
        "PipelineArn": pipeline.arn,
        "PipelineVersionId": version.number,
        "CreationTime": moment(version.created_at),
        "PipelineVersionDescription": version.description,
        "PipelineVersionDisplayName": version.display_name,
        "LastExecutionPipelineExecutionArn": last and last.arn,
        "PipelineVersionAliases": list(version.aliases) or None,
    }
