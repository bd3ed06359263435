"""Tags as clients read and change them, of everything whose ARN this server hands out, made by a request or not."""

from collections.abc import Mapping

from heldout.service.context import Context
from heldout.service.mlflow.apps import mlflow_apps
from heldout.service.operations import Params, Reply, Room
from heldout.service.paging import paged
from heldout.service.sagemaker.execution_views import is_lineage
from heldout.service.sagemaker.jobs import find_job
from heldout.service.sagemaker.packages import package_arns
from heldout.service.sagemaker.tags import Tags, checked_tags, tags_of, wire_tags
from heldout.service.wire.faults import invalid

ROOM = Room("sagemaker")
_MOST = 50
"""Tags of one resource: the service's bound."""


@ROOM.operation("ListTags")
def list_tags(context: Context, params: Params) -> Reply:
    """A resource's tags."""
    return paged("Tags", wire_tags(_tags(context, params)), params, {"Key": "Key"})


@ROOM.operation("AddTags")
def add_tags(context: Context, params: Params) -> Reply:
    """Adds tags, or overwrites those of the same keys."""
    with context.store.transaction():
        given = checked_tags((tag["Key"], tag["Value"]) for tag in params["Tags"])
        tags = _tags(context, params) | given
        if len(tags) > _MOST:
            raise invalid(f"{params['ResourceArn']} would have {len(tags)} tags; a resource has {_MOST} at most")
        context.store.put(Tags(arn=params["ResourceArn"], tags=tags))
    return {"Tags": wire_tags(tags)}


@ROOM.operation("DeleteTags")
def delete_tags(context: Context, params: Params) -> Reply:
    """Removes the tags of these keys; one that is not there is no error."""
    with context.store.transaction():
        kept = {key: value for key, value in _tags(context, params).items() if key not in params["TagKeys"]}
        context.store.put(Tags(arn=params["ResourceArn"], tags=kept))
    return {}


def _tags(context: Context, params: Params) -> dict[str, str]:
    """Raises ServiceError (ValidationException) when there is no such resource."""
    arn = params["ResourceArn"]
    born_with = _born_with(context, arn)
    if born_with is None:
        raise invalid(f"resource {arn} does not exist")
    return tags_of(context.store, arn, born_with)


def _born_with(context: Context, arn: str) -> Mapping[str, str] | None:
    """The tags that a resource has until someone changes them; None when there is no such resource."""
    match arn.split(":", 5)[-1].partition("/")[0]:
        case "job":
            job = find_job(context, arn.rpartition("/")[2])
            return None if job is None or job.arn != arn else job.given.tags
        case "pipeline":
            is_there = context.store.find(Tags, arn) is not None
        case "mlflow-app":
            is_there = any(app.arn == arn for app in mlflow_apps(context))
        case "model-package" | "model-package-group":
            is_there = arn in package_arns(context)
        case _:
            is_there = is_lineage(context, arn)
    return {} if is_there else None
