"""The selection of a backend: by name, by request, by session, or by the evaluation that it started."""

from collections.abc import Iterator

from heldout.backends.base import Backend, StartedEvaluation
from heldout.backends.table import backend_named, installed_backends, own_backends
from heldout.errors import ReferenceProblem, did_you_mean
from heldout.pipeline.request import EvaluationRequest


def select_backend(name: str | None, request: EvaluationRequest) -> Backend:
    """Chooses the backend of a request. Without a name it is the first of Heldout's own that serves it. Raises InputError."""
    if name is not None:
        return backend_named(name)
    return next(backend for backend in own_backends() if backend.serves(request))


def backend_to_ask(name: str | None, session: object | None) -> Backend:
    """Chooses the backend whose evaluations and models are listed: the named one, else the first that fits the session.

    Raises InputError for an unknown name.
    """
    if name is not None:
        return backend_named(name)
    return next(backend for backend in own_backends() if backend.uses_session is (session is not None))


def open_evaluation(reference: str, *, session: object | None = None, region: str | None = None) -> StartedEvaluation:
    """The evaluation that an ARN, a folder or an `s3://` URI names, opened by the backend that started it.

    Raises ReferenceProblem for an ARN that no backend knows, RunError for a folder without an evaluation, CloudError when AWS
    refuses an answer.
    """
    for backend in (*reversed(list(own_backends())), *installed_backends()):
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
        from heldout.backends.local.backend import (
            evaluations_of_this_machine,  # it imports what plays, which most callers do not need
        )

        return evaluations_of_this_machine(region)
    return backend_to_ask(name, session).list(session=session, region=region)
