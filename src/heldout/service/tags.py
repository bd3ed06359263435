"""Tags of resources."""

from collections.abc import Iterable, Mapping

from heldout.service.context import Context
from heldout.service.faults import invalid
from heldout.service.operations import Params, Reply, Room
from heldout.service.paging import paged
from heldout.service.store import Record, Store

ROOM = Room("sagemaker")
_MOST = 50
"""Tags of one resource: the service's bound."""


class Tags(Record):
    """The tags of a resource; one without any has a record too, which says that it is there."""

    arn: str
    tags: dict[str, str]

    @property
    def key(self) -> str:
        return self.arn


def set_tags(store: Store, arn: str, given: Iterable[Mapping[str, str]] | None) -> None:
    """Gives a new resource its tags, as they come in a request. Every resource that can be tagged must be told of here."""
    store.put(Tags(arn=arn, tags={tag["Key"]: tag["Value"] for tag in given or ()}))


def tags_of(store: Store, arn: str) -> dict[str, str]:
    """A resource's tags; none for one that there is not."""
    found = store.find(Tags, arn)
    return {} if found is None else found.tags


def wire_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """As replies have them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def forget_tags(store: Store, arn: str) -> None:
    """To be called when a resource is deleted."""
    store.remove(Tags, arn)


@ROOM.operation("ListTags")
def list_tags(context: Context, params: Params) -> Reply:
    """A resource's tags."""
    tags = wire_tags(_existing(context, params).tags)
    return paged("Tags", tags, params, {"Key": "Key"})


@ROOM.operation("AddTags")
def add_tags(context: Context, params: Params) -> Reply:
    """Adds tags, or overwrites those of the same keys."""
    with context.store.transaction():
        tags = _existing(context, params).tags | {tag["Key"]: tag["Value"] for tag in params["Tags"]}
        if len(tags) > _MOST:
            raise invalid(f"{params['ResourceArn']} would have {len(tags)} tags; a resource has {_MOST} at most")
        context.store.put(Tags(arn=params["ResourceArn"], tags=tags))
    return {"Tags": wire_tags(tags)}


@ROOM.operation("DeleteTags")
def delete_tags(context: Context, params: Params) -> Reply:
    """Removes the tags of these keys; one that is not there is no error."""
    with context.store.transaction():
        tags = _existing(context, params).tags
        kept = {key: value for key, value in tags.items() if key not in params["TagKeys"]}
        context.store.put(Tags(arn=params["ResourceArn"], tags=kept))
    return {}


def _existing(context: Context, params: Params) -> Tags:
    found = context.store.find(Tags, params["ResourceArn"])
    if found is None:
        raise invalid(f"resource {params['ResourceArn']} does not exist")
    return found
