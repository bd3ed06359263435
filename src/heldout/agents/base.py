"""The protocol of agents, one module per way of invoking; `make_agent` builds the one for a reference.

Every agent stands behind the AgentCore HTTP contract.
"""

import enum
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from heldout.job.kinds.base import AgentReference


class Outcome(enum.StrEnum):
    """How an invocation ended."""

    RETURNED = "returned"
    """The agent answered; `body` holds its JSON."""
    RAISED = "raised"
    """The agent's code raised or answered with an error status; the agent is still there."""
    CRASHED = "crashed"
    """The process that played this attempt, and no other, died."""
    UNREACHABLE = "unreachable"
    """The agent could not be reached at all."""
    TIMED_OUT = "timed_out"
    """No answer within the timeout."""
    LOST = "lost"
    """A process that played several attempts died or hung: this one may or may not be the cause. Try it again, isolated;
    that costs it nothing."""
    EXHAUSTED = "exhausted"
    """The machine ran out of descriptors, ports, memory, threads or disk: of the engine, a worker or the agent's own code."""
    DISCONNECTED = "disconnected"
    """The agent's connection to the Job Runtime was refused or reset."""


@dataclass(frozen=True, slots=True)
class InvocationResult:
    """The result of an invocation. Failures are data here: `invoke` raises only for bugs."""

    outcome: Outcome
    body: object = None
    """The parsed JSON answer (for an SSE answer: the last data event that parses); None when there is none."""
    message: str = ""
    """One line on what went wrong, for every outcome but RETURNED."""
    output: str = ""
    """The last 64 KiB of this attempt's stdout and stderr; empty where Heldout does not run the agent's process."""


def _ignore() -> None:
    pass


async def _let_go(result: InvocationResult) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Invocation:
    """One attempt, as handed to an agent."""

    trajectory_id: str
    """Also the AgentCore session id; 33 to 256 characters of `[A-Za-z0-9_.-]`."""
    payload: bytes
    """The JSON object of the wire contract: prompt, metadata, inferenceParams."""
    timeout_seconds: float
    is_isolated: bool = False
    """Play this attempt alone in a process of its own (after it was LOST with others)."""
    on_begin: Callable[[], None] = _ignore
    """Called when a worker process takes the attempt. The time before was spent waiting for one and is not the agent's."""
    until_over: Callable[[InvocationResult], Awaitable[None]] = _let_go
    """Awaited with the answer of an agent in a process of ours, while that is held for the attempt: the agent may go on after it
    has answered, and report later. Cancelled when the process ends."""


class Agent(Protocol):
    """A way to invoke an agent.

    `start` raises `heldout.errors.ReferenceProblem` when the agent cannot be there (no such file, function, host), before any
    rollout begins. `invoke` may be called concurrently; cancelling it abandons the attempt and frees what it held.
    """

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """End every process and connection. Safe to call twice, and after a failed start."""
        ...

    async def invoke(self, invocation: Invocation) -> InvocationResult: ...

    async def is_busy(self) -> bool:
        """Whether the agent says it still works in the background (`/ping` answers HealthyBusy): a reward may yet come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What a kind's `maker` is given beside the agent."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Set in worker processes, on top of this process's own environment."""
    concurrency: int = 1
    """Attempts that may play at once."""
    timeout_seconds: float
    """The longest an attempt may take."""


class _Maker(Protocol):
    def __call__(self, agent: AgentReference, settings: AgentSettings, /) -> Agent: ...


class _Checker(Protocol):
    def __call__(self, agent: AgentReference, folder: Path, /) -> None: ...


def make_agent(agent: AgentReference, settings: AgentSettings) -> Agent:
    """Build the way to invoke `agent`, not yet started. Raises ReferenceProblem for a reference that cannot be used."""
    assert agent.maker is not None  # every kind of agent has one
    return cast("_Maker", pkgutil.resolve_name(agent.maker))(agent, settings)


def check_agent(agent: AgentReference, folder: Path | None = None) -> None:
    """Check that the agent can be there, as far as its kind can tell without starting anything.

    folder: of relative paths; the current one by default. Raises ReferenceProblem.
    """
    if agent.checker is not None:
        cast("_Checker", pkgutil.resolve_name(agent.checker))(agent, folder or Path.cwd())
