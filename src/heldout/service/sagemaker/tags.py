"""What resources are tagged with. The operations that clients read and change it by are in `tagging`."""

from collections.abc import Iterable, Mapping

from heldout.service.store import Record, Store
from heldout.service.wire.faults import invalid


class Tags(Record):
    """The tags of a resource; one without any has a record too, which says that it is there."""

    arn: str
    tags: dict[str, str]

    @property
    def key(self) -> str:
        return self.arn


def set_tags(store: Store, arn: str, given: Iterable[Mapping[str, str]] | None) -> None:
    """Gives a new resource its tags, as they come in a request. Those that no request makes `tagging` knows to look for.

    Raises as `checked_tags` does.
    """
    store.put(Tags(arn=arn, tags=checked_tags((tag["Key"], tag["Value"]) for tag in given or ())))


def checked_tags(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Tags whose lengths and characters were checked. Raises ServiceError (ValidationException) for a key of AWS's own, or one
    that comes twice. Source: "Tag naming limits and requirements" (Tagging AWS Resources user guide)."""
    tags = dict[str, str]()
    for key, value in given:
        if key.lower().startswith("aws:"):
            raise invalid(f"Tags has the key {key!r}; keys that begin with 'aws:' are AWS's own")
        if key in tags:
            raise invalid(f"Tags has the key {key!r} twice; give it one value")
        tags[key] = value
    return tags


def tags_of(store: Store, arn: str, born_with: Mapping[str, str] | None = None) -> dict[str, str]:
    """A resource's tags. born_with: of one that no request made, until they are changed."""
    found = store.find(Tags, arn)
    return dict(born_with or {}) if found is None else found.tags


def wire_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """As replies have them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def forget_tags(store: Store, arn: str) -> None:
    """To be called when a resource is deleted."""
    store.remove(Tags, arn)
