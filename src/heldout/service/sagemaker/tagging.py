"""Tag operations on every resource whose ARN this server returns, whether a client or the registry created it."""

from collections.abc import Mapping

from heldout.service.context import Context
from heldout.service.mlflow.apps import mlflow_apps
from heldout.service.sagemaker.execution_views import is_lineage
from heldout.service.sagemaker.jobs import find_job
from heldout.service.sagemaker.packages import package_arns
from heldout.service.tags import Tags, checked_tags, tags_of, wire_tags
from heldout.service.wire.faults import invalid
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import paged

OPERATIONS = OperationTable[Context]("sagemaker")
_MAX_TAGS = 50
"""Tags of one resource: the service's limit."""


@OPERATIONS.operation("ListTags")
def list_tags(context: Context, params: Params) -> Reply:
    """Lists a resource's tags."""
    return paged("Tags", wire_tags(_tags(context, params)), params, {"Key": "Key"})


@OPERATIONS.operation("AddTags")
def add_tags(context: Context, params: Params) -> Reply:
    """Adds tags. A tag with an existing key replaces the old value."""
    with context.store.transaction():
        given = checked_tags((tag["Key"], tag["Value"]) for tag in params["Tags"])
        tags = _tags(context, params) | given
        if len(tags) > _MAX_TAGS:
            raise invalid(f"{params['ResourceArn']} would have {len(tags)} tags; a resource has {_MAX_TAGS} at most")
        context.store.put(Tags(arn=params["ResourceArn"], tags=tags))
    return {"Tags": wire_tags(tags)}


@OPERATIONS.operation("DeleteTags")
def delete_tags(context: Context, params: Params) -> Reply:
    """Removes the tags with these keys. Missing keys are ignored."""
    with context.store.transaction():
        kept = {key: value for key, value in _tags(context, params).items() if key not in params["TagKeys"]}
        context.store.put(Tags(arn=params["ResourceArn"], tags=kept))
    return {}


def _tags(context: Context, params: Params) -> dict[str, str]:
    """Raises ServiceError (ValidationException) if the resource does not exist."""
    arn = params["ResourceArn"]
    initial = _initial_tags(context, arn)
    if initial is None:
        raise invalid(f"resource {arn} does not exist")
    return tags_of(context.store, arn, initial)


def _initial_tags(context: Context, arn: str) -> Mapping[str, str] | None:
    """Tags of a resource before the first change; None if the resource does not exist."""
    match arn.split(":", 5)[-1].partition("/")[0]:
        case "job":
            job = find_job(context, arn.rpartition("/")[2])
            return None if job is None or job.arn != arn else job.arguments.tags
        case "pipeline":
            exists = context.store.find(Tags, arn) is not None
        case "mlflow-app":
            exists = any(app.arn == arn for app in mlflow_apps(context))
        case "model-package" | "model-package-group":
            exists = arn in package_arns(context)
        case _:
            exists = is_lineage(context, arn)
    return {} if exists else None
