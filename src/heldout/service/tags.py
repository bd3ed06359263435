"""Resource tags in the store. `heldout.service.sagemaker.tagging` has the operations that read and change them."""

from collections.abc import Iterable, Mapping

from heldout.service.store import Record, Store
from heldout.service.wire.faults import invalid


class Tags(Record):
    """Tags of a resource. A resource without tags has a record too: the record proves that the resource exists."""

    arn: str
    tags: dict[str, str]

    @property
    def key(self) -> str:
        return self.arn


def set_tags(store: Store, arn: str, given: Iterable[Mapping[str, str]] | None) -> None:
    """Stores the tags of a new resource. given: the request's `Tags` member.

    Raises ServiceError (ValidationException) like `checked_tags`.
    """
    store.put(Tags(arn=arn, tags=checked_tags((tag["Key"], tag["Value"]) for tag in given or ())))


def checked_tags(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Tags by key. The service's model has already checked lengths and characters.

    Raises ServiceError (ValidationException) for a key reserved by AWS or given twice.
    Source: "Tag naming limits and requirements" (Tagging AWS Resources user guide).
    """
    tags = dict[str, str]()
    for key, value in given:
        if key.lower().startswith("aws:"):
            raise invalid(f"Tags has the key {key!r}; keys that begin with 'aws:' are reserved by AWS")
        if key in tags:
            raise invalid(f"Tags has the key {key!r} twice; give it one value")
        tags[key] = value
    return tags


def tags_of(store: Store, arn: str, default: Mapping[str, str] | None = None) -> dict[str, str]:
    """Tags of a resource. default: tags of a resource whose tags were never changed."""
    found = store.find(Tags, arn)
    return dict(default or {}) if found is None else found.tags


def wire_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags in the form of replies, sorted by key."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def forget_tags(store: Store, arn: str) -> None:
    """Removes the tags of a deleted resource."""
    store.remove(Tags, arn)
