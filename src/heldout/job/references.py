"""Models and agents as a person writes them, parsed into references; the table of kinds.

Each kind is one module of `heldout.job.kinds`, listed here. Further kinds come from installed packages, through entry
points in the groups `heldout.policies` and `heldout.agents`; they are looked up only for text or a section of no listed kind, and
for lists of every kind. Parsing reads the text alone: the policy or agent checks that the thing exists.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from heldout.errors import ReferenceProblem, shown
from heldout.job.kinds.agentcore import AgentCoreRuntime
from heldout.job.kinds.base import AgentReference, ModelReference, Reference
from heldout.job.kinds.embedded import EmbeddedModel
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.entry_point import EntryPoint
from heldout.job.kinds.http_agent import AgentContainer
from heldout.job.kinds.hub_model import HubModel
from heldout.job.kinds.lambda_function import LambdaAgent
from heldout.job.kinds.model_package import ModelPackage

R = TypeVar("R", bound=Reference)

MODEL_KINDS: tuple[type[ModelReference], ...] = (EndpointModel, EmbeddedModel, HubModel, ModelPackage)
"""The kinds of model that ship with Heldout, in the order in which they try to parse text. A hub model takes any plain name."""
AGENT_KINDS: tuple[type[AgentReference], ...] = (EntryPoint, AgentContainer, AgentCoreRuntime, LambdaAgent)
"""The kinds of agent that ship with Heldout, in the order in which they try to parse text."""

MODEL_GROUP = "heldout.policies"
"""Entry-point group of further kinds of model."""
AGENT_GROUP = "heldout.agents"
"""Entry-point group of further kinds of agent."""


def parse_model(text: str) -> ModelReference:
    """Read the model that `text` names, in any form of any kind (`model_kinds`).

    Raises ReferenceProblem: the text is of no kind (the error lists every form), or of one but not valid.
    """
    model = _first(model_kinds(), text)
    if model is None:
        raise _not_one_of("model", text, model_kinds())
    return model


def parse_agent(text: str, qualifier: str | None = None) -> AgentReference:
    """Read the agent that `text` names, in any form of any kind (`agent_kinds`).

    `qualifier` applies to an AgentCore ARN; other kinds ignore it. Raises ReferenceProblem: the text is of no kind (the error
    lists every form), or of one but not valid.
    """
    agent = _first(agent_kinds(), text)
    if agent is not None:
        return agent.qualified(qualifier)
    if text.startswith("arn:"):
        expected = " or ".join(form.text for kind in AGENT_KINDS for form in kind.forms if form.text.startswith("arn:"))
        raise ReferenceProblem(
            f"agent {shown(text, 160)} is not a recognized Bedrock AgentCore ARN or Lambda ARN; expected {expected}"
        )
    raise _not_one_of("agent", text, agent_kinds())


def model_kinds() -> Iterator[type[ModelReference]]:
    """Every kind of model. Those of installed packages come last and are loaded only when the iterator reaches them.

    Leaves out an entry point that cannot be loaded; `problems_of_packages` names it.
    """
    yield from MODEL_KINDS
    yield from cast("tuple[type[ModelReference], ...]", _installed(MODEL_GROUP, ModelReference).kinds)


def agent_kinds() -> Iterator[type[AgentReference]]:
    """Every kind of agent. Those of installed packages come last and are loaded only when the iterator reaches them.

    Leaves out an entry point that cannot be loaded; `problems_of_packages` names it.
    """
    yield from AGENT_KINDS
    yield from cast("tuple[type[AgentReference], ...]", _installed(AGENT_GROUP, AgentReference).kinds)


def forms_of(kinds: Iterable[type[Reference]]) -> str:
    """List every way to write a reference of these kinds, for help texts."""
    return ", ".join(form.text for kind in kinds for form in kind.forms)


def problems_of_packages() -> str:
    """Name each entry point of installed packages that cannot be used, as the end of an error line; empty without any."""
    found = (_installed(MODEL_GROUP, ModelReference), _installed(AGENT_GROUP, AgentReference))
    return "".join(problem for installed in found for problem in installed.problems)


def named_models() -> Mapping[str, str]:
    """The models that have a fixed name on this machine, each with a description."""
    return {name: description for kind in model_kinds() for name, description in kind.names().items()}


def checked_tracking_uri(uri: str) -> str:
    """Returns `uri`, anything MLflow takes, unchanged. A run stores the URI, so a password is refused.

    Raises ReferenceProblem for a URI with a password, which the error does not repeat, and for text that is no URI.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ReferenceProblem(f"the MLflow tracking URI cannot be read: {error}") from error
    if parts.password:
        raise ReferenceProblem(
            f"the MLflow tracking URI at {parts.hostname!r} has a password in it, which would be written into the run; a "
            "server's goes into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a database's where its client looks"
        )
    return uri


def _first(kinds: Iterable[type[R]], text: str) -> R | None:
    return next((found for kind in kinds if (found := kind.parse(text)) is not None), None)


def _not_one_of(role: str, text: str, kinds: Iterable[type[Reference]]) -> ReferenceProblem:
    kinds = tuple(kinds)
    forms = ", ".join(form.text for kind in kinds for form in kind.forms)
    hints = "".join(kind.hint(text) for kind in kinds)
    return ReferenceProblem(f"{role} {shown(text)} is not one of: {forms}.{hints}{problems_of_packages()}")


class _Installed(NamedTuple):
    """The kinds that installed packages add to an entry-point group."""

    kinds: tuple[type[Reference], ...]
    problems: tuple[str, ...]
    """One sentence for each entry point that cannot be used."""


@functools.cache
def _installed(group: str, base: type[Reference]) -> _Installed:
    kinds: list[type[Reference]] = []
    problems: list[str] = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        origin = f"{point.name} = {point.value!r}" + (f" of package {point.dist.name}" if point.dist else "")
        try:
            kind = point.load()
        except Exception as error:  # noqa: BLE001 - a third-party module may raise anything; errors of its kind repeat this one
            problems.append(f" Entry point {origin} cannot be loaded: {type(error).__name__}: {error}.")
            continue
        if isinstance(kind, type) and issubclass(kind, base):
            kinds.append(kind)
        else:
            expected = f"heldout.job.kinds.base.{base.__name__}"
            problems.append(f" Entry point {origin} names {shown(kind)}; expected a subclass of {expected}.")
    return _Installed(tuple(kinds), tuple(problems))
