"""The door to policies: one protocol, one module per way of reaching a model."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One OpenAI-compatible request, ready to send."""

    path: str
    """Below the policy's base URL: `/chat/completions` or `/completions`."""
    body: bytes
    """JSON; `model` already is the policy's `model_name`."""
    trajectory_id: str
    """Calls of one trajectory go to one replica, whose prefix cache then serves them."""
    is_streamed: bool
    """Whether the reply is to be relayed as server-sent events."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What the policy answered: either a whole body, or chunks as they arrive."""

    status: int
    content_type: str
    body: bytes
    """Empty when `chunks` is given."""
    chunks: AsyncIterator[bytes] | None = None
    """Raw bytes of a streamed reply. The iterator raises PolicyUnavailable if the stream breaks off."""


class PolicyUnavailable(Exception):
    """The policy could not be reached, or kept refusing with 429 or 503, after every retry; the message is one line."""


class Policy(Protocol):
    """A model under evaluation, reached through an OpenAI-compatible endpoint."""

    @property
    def model_name(self) -> str:
        """The name the policy is served under; the runtime writes it into each request's `model`."""
        ...

    async def start(self) -> None:
        """Makes the policy answer. Raises `heldout.errors.ReferenceProblem` or `MissingExtra` when it cannot be had: nothing
        at the address, no such model there (naming those that are), no weights."""
        ...

    async def stop(self) -> None:
        """Ends every process and connection; safe to call twice, and after a failed start."""
        ...

    async def call(self, call: ModelCall) -> ModelReply:
        """Sends one request, retrying 429, 503 and dropped connections with backoff and `Retry-After`; other statuses come
        back as they are. Raises PolicyUnavailable when the retries are used up."""
        ...
