"""What resources are tagged with. The operations that clients read and change it by are in `tagging`."""

from collections.abc import Iterable, Mapping

from heldout.service.store import Record, Store


class Tags(Record):
    """The tags of a resource; one without any has a record too, which says that it is there."""

    arn: str
    tags: dict[str, str]

    @property
    def key(self) -> str:
        return self.arn


def set_tags(store: Store, arn: str, given: Iterable[Mapping[str, str]] | None) -> None:
    """Gives a new resource its tags, as they come in a request. Those that no request makes `tagging` knows to look for."""
    store.put(Tags(arn=arn, tags={tag["Key"]: tag["Value"] for tag in given or ()}))


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
