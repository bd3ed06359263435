"""The protocol of policies, one module per way of reaching a model; `make_policy` builds the one for a reference."""

import pkgutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from heldout.errors import ReferenceProblem
from heldout.job.kinds.base import ModelReference
from heldout.job.references import MODEL_KINDS


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One OpenAI-compatible request, ready to send."""

    path: str
    """Below the policy's base URL: `/chat/completions` or `/completions`."""
    body: bytes
    """JSON; `model` already is the policy's `model_name`."""
    trajectory_id: str
    """Calls of one trajectory go to the same replica, so that its prefix cache serves them."""
    is_streamed: bool
    """Whether the agent wants the reply as server-sent events."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """The policy's answer: a whole body, or chunks as they arrive."""

    status: int
    content_type: str
    body: bytes
    """Empty when `chunks` is given."""
    chunks: AsyncIterator[bytes] | None = None
    """Raw bytes of a streamed reply. The iterator raises PolicyUnavailable if the stream breaks off."""


class PolicyUnavailable(Exception):
    """The policy could not be reached, or kept refusing with 429 or 503, after every retry; the message is one line."""

    kind = "unreachable"
    """As in `heldout.job.records.Failure`."""


class PolicyGivenUp(PolicyUnavailable):
    """The policy answers no more calls in this start of the job, which therefore stops."""

    kind = "given_up"


class HarnessExhausted(PolicyUnavailable):
    """This process has no descriptor, port or memory left for a call."""

    kind = "exhausted"


class Policy(Protocol):
    """A model under evaluation, reached through an OpenAI-compatible endpoint."""

    @property
    def model_name(self) -> str:
        """The served name of the policy; the Job Runtime writes it into each request's `model`."""
        ...

    async def start(self) -> None:
        """Start the policy. Raises `heldout.errors.ReferenceProblem` or `MissingExtra` when that fails: nothing
        answers at the address, the server has no such model (the error names those it has), or weights are missing."""
        ...

    async def stop(self) -> None:
        """End every process and connection. Safe to call twice, and after a failed start."""
        ...

    async def call(self, call: ModelCall) -> ModelReply:
        """Send one request. Retries 429, 503 and dropped connections with backoff and `Retry-After`; returns any other status.

        Raises PolicyUnavailable when the retries are used up.
        """
        ...


@runtime_checkable
class HasListing(Protocol):
    """A policy whose server lists its models."""

    @property
    def listing(self) -> Mapping[str, Any] | None:
        """The model's entry in the answer to `GET /v1/models`; None before the start, and where the server lists none."""
        ...


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The arguments of a kind's `maker` in addition to the model."""

    was_there: bool = False
    """Whether the job has called the model before: then a server that is down at the start may still come back."""


class _Maker(Protocol):
    def __call__(self, model: ModelReference, settings: PolicySettings, /) -> Policy: ...


def make_policy(model: ModelReference, settings: PolicySettings | None = None) -> Policy:
    """Builds the policy for `model`, without starting it.

    Raises ReferenceProblem for a model that only AWS can serve and that no registry mapped to this machine.
    """
    if model.maker is None:
        raise ReferenceProblem(
            f"model {model.text!r} is not on this machine; give an endpoint (http://host:port/v1#served-name) or an "
            "embedded model, or map it in a registry (--registry FILE or HELDOUT_REGISTRY)."
            + "".join(kind.hint(model.text) for kind in MODEL_KINDS)
        )
    maker = cast("_Maker", pkgutil.resolve_name(model.maker))
    return maker(model, settings or PolicySettings())
