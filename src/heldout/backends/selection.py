"""The table of backends, and the selection of one: by name, by request, by session, or by the evaluation that it started.

A backend's module is imported when it is needed, because one of them needs boto3, which takes most of a second to load.
A backend of another package is an entry point of the group `heldout.backends`: `name = "package.module:Class"`. It is
used only when the user names it, or opens an evaluation of it, so that installing a package never changes where an
evaluation runs.
"""

from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from heldout.backends.base import Backend, StartedEvaluation
from heldout.errors import InputError, ReferenceProblem, did_you_mean, shown
from heldout.pipeline.request import EvaluationRequest

if TYPE_CHECKING:
    from heldout.backends.local.backend import LocalBackend

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


def select_backend(name: str | None, request: EvaluationRequest) -> Backend:
    """Chooses the backend of a request. Without a name it is the first of Heldout's own that serves it. Raises InputError."""
    if name is not None:
        return backend_named(name)
    return next(backend for backend in _own() if backend.serves(request))


def backend_to_ask(name: str | None, session: object | None) -> Backend:
    """Chooses the backend whose evaluations and models are listed: the named one, else the first that fits the session.

    Raises InputError for an unknown name.
    """
    if name is not None:
        return backend_named(name)
    return next(backend for backend in _own() if backend.uses_session is (session is not None))


def folder_backend(name: str) -> "LocalBackend":
    """The backend of this name, which plays evaluation folders. Raises InputError for one that does not, or an unknown name."""
    from heldout.backends.local.backend import LocalBackend  # it imports what plays, which most callers do not need

    backend = backend_named(name)
    if not isinstance(backend, LocalBackend):
        raise InputError(f"backend {name!r} does not play evaluations from a folder of this machine")
    return backend


def open_evaluation(reference: str, *, session: object | None = None, region: str | None = None) -> StartedEvaluation:
    """The evaluation that an ARN, a folder or an `s3://` URI names, opened by the backend that started it.

    Raises ReferenceProblem for an ARN that no backend knows, RunError for a folder without an evaluation, CloudError when AWS
    refuses an answer.
    """
    for backend in (*reversed(list(_own())), *(_made(entry.value) for entry in _installed().values())):
        if (found := backend.open(reference, session=session, region=region)) is not None:
            return found
    from heldout.backends.local.evaluation_index import known_arns  # only for the nearest ARN

    raise ReferenceProblem(
        f"no evaluation {reference!r} was started on this machine; give the folder it is in."
        f"{did_you_mean(reference, known_arns())}"
    )


def list_evaluations(name: str | None, *, session: object | None, region: str | None) -> Iterator[StartedEvaluation]:
    """The evaluations of a backend, the latest first. With neither a name nor a session: those that were started on this machine.

    region: only those of this region. Raises InputError for an unknown name, CloudError when AWS refuses an answer.
    """
    if name is None and session is None:
        from heldout.backends.local.backend import evaluations_of_this_machine  # see `folder_backend`

        return evaluations_of_this_machine(region)
    return backend_to_ask(name, session).list(session=session, region=region)


def _own() -> Iterator[Backend]:
    return (_made(target) for _, target in _BACKENDS)


@cache
def _made(target: str) -> Backend:
    backend: Backend = resolve_name(target)()
    return backend


def _installed() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
