"""The table of backends, by name.

A backend's module is imported when it is needed, because one of them needs boto3, which takes most of a second to load.
A backend of another package is an entry point of the group `heldout.backends`: `name = "package.module:Class"`. It is
used only when the user names it, or opens an evaluation of it, so that installing a package never changes where an
evaluation runs.
"""

from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pkgutil import resolve_name

from heldout.backends.base import Backend
from heldout.errors import InputError, did_you_mean, shown

ENTRY_POINTS = "heldout.backends"
"""The entry point group in which other packages register backends."""
_BACKENDS = (
    ("sagemaker", "heldout.backends.sagemaker.backend:SageMakerBackend"),
    ("local", "heldout.backends.local.backend:LocalBackend"),
)
"""Name and class of each backend of Heldout. When the user names none, the first that serves the request runs it: the last serves
every request."""


def backend_named(name: str) -> Backend:
    """The backend of this name. Raises InputError for an unknown name."""
    if (target := dict(_BACKENDS).get(name)) is not None:
        return _made(target)
    if (entry := _installed().get(name)) is not None:
        try:
            return _made(entry.value)
        except (ImportError, AttributeError) as error:
            raise InputError(f"backend {name!r} cannot be loaded from {entry.value!r}: {error}") from error
    names = [*dict(_BACKENDS), *_installed()]
    raise InputError(
        f"backend {shown(name)} is unknown; there are: {', '.join(sorted(names))}.{did_you_mean(name, names)}"
    )


def own_backends() -> Iterator[Backend]:
    """Heldout's own backends, in the order in which they are asked whether they serve a request."""
    return (_made(target) for _, target in _BACKENDS)


def installed_backends() -> Iterator[Backend]:
    """The backends of other packages."""
    return (_made(entry.value) for entry in _installed().values())


@cache
def _made(target: str) -> Backend:
    backend: Backend = resolve_name(target)()
    return backend


def _installed() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
