"""What a job decides about model calls, and what one client may hold of the Job Runtime."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

_SEED_STEP = 0x9E3779B1
"""Odd, so that the calls of a trajectory visit all 2**31 seeds before one repeats."""
_SEED_MASK = 0x7FFFFFFF
"""Keeps seeds within 31 bits, which every server accepts."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """The job's decisions about each model call. None: the job decides nothing, and the agent's value stands."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    enforce_sampling: bool = False
    """Write the three values into every call, instead of only counting the calls that differ."""
    wants_logprobs: bool = False
    """Ask the policy for the log-probability of each token, and hide it from an agent that did not ask."""

    def sampling(self) -> tuple[tuple[str, float], ...]:
        """Returns the sampling parameters that the job decides: name and value."""
        decided = (("temperature", self.temperature), ("top_p", self.top_p), ("max_tokens", self.max_tokens))
        return tuple((name, value) for name, value in decided if value is not None)


class JobEdits(NamedTuple):
    """The job's edits of one model call. A dialect applies them (`heldout.runtime.dialects.base.DialectCall.edit`)."""

    model_name: str
    """Replaces the agent's name of the model."""
    seed: int | None
    """For a call without a seed of its own; None adds none."""
    enforced: tuple[tuple[str, float], ...]
    """Sampling parameters to write into the call: `temperature`, `top_p`, `max_tokens`, and their values."""
    wants_logprobs: bool
    """Ask for the log-probability of each token, and hide it from an agent that did not ask."""
    wants_usage: bool = True
    """Ask for the token counts of a stream, and hide them from an agent that did not ask."""

    def without(self, fields: Collection[str]) -> "JobEdits":
        """Returns the edits that add none of these fields: `seed`, `logprobs`, `stream_options`."""
        return self._replace(
            seed=None if "seed" in fields else self.seed,
            wants_logprobs=self.wants_logprobs and "logprobs" not in fields,
            wants_usage=self.wants_usage and "stream_options" not in fields,
        )


def seed_of_call(trajectory_seed: int | None, call_number: int) -> int | None:
    """Returns the seed of a trajectory's call, in 31 bits; None without a seed. call_number: from 0."""
    return None if trajectory_seed is None else (trajectory_seed + _SEED_STEP * call_number) & _SEED_MASK


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one Job Runtime. The defaults suit every job; tests use smaller ones."""

    body_bytes: int = 64 * 2**20
    """Most bytes of a request's body: a long conversation with images, far below AgentCore's own limit (100 MB)."""
    body_seconds: float = 60.0
    """How long a request's body may take to arrive after its head."""
    reply_bytes: int = 64 * 2**20
    """Most bytes of a streamed reply: room for log-probabilities with alternatives, but not for an endless stream."""
    idle_seconds: float = 300.0
    """How long a connection may be silent, or take to send a request's head. Agents think between their turns."""
    stop_seconds: float = 2.0
    """How long current requests may take to end when the service stops."""


DEFAULT_LIMITS = Limits()
