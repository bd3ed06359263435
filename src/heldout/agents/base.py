"""The protocol of agents. Each way of invoking them is one module; `make_agent` chooses it by the reference.

Every agent is called through the AgentCore HTTP contract.
"""

import enum
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from heldout.job.kinds.base import AgentReference


class Outcome(enum.StrEnum):
    """How an invocation ended."""

    RETURNED = "returned"
    """The agent answered; `body` holds its JSON."""
    RAISED = "raised"
    """The agent's code raised or answered with an error status; the agent still runs."""
    CRASHED = "crashed"
    """The process that played only this attempt died."""
    UNREACHABLE = "unreachable"
    """The agent could not be reached at all."""
    TIMED_OUT = "timed_out"
    """No answer within the timeout."""
    LOST = "lost"
    """A process that played several attempts died or hung, and any of them may be the cause. The attempt does not count and
    is tried again, isolated."""
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
    """The error in one line, for every outcome but RETURNED."""
    output: str = ""
    """The last 64 KiB of this attempt's stdout and stderr; empty where Heldout does not run the agent's process."""


def _ignore() -> None:
    pass


async def _let_go(result: InvocationResult) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Invocation:
    """One attempt for an agent to play."""

    trajectory_id: str
    """Also the AgentCore session id; 33 to 256 characters of `[A-Za-z0-9_.-]`."""
    payload: bytes
    """The JSON object of the wire contract: prompt, metadata, inferenceParams."""
    timeout_seconds: float
    is_isolated: bool = False
    """Play this attempt alone in a process of its own (after it was LOST with others)."""
    on_begin: Callable[[], None] = _ignore
    """Called when a worker process takes the attempt. The wait before does not count as the agent's time."""
    until_over: Callable[[InvocationResult], Awaitable[None]] = _let_go
    """Awaited with the answer of an agent in a worker process, which stays reserved for the attempt meanwhile: the agent may
    report after its answer. Cancelled when the process ends."""


@dataclass(frozen=True, slots=True)
class LoadedCode:
    """The code that an agent's processes have loaded so far."""

    folder: Path
    """The folder of the agent's own code."""
    files: Mapping[str, frozenset[str]]
    """Hashes (SHA-256) of each of the agent's own files, by absolute path. Several: processes have loaded several versions."""
    packages: frozenset[str]
    """The absolute path of one module of each installed package."""


@runtime_checkable
class HasLoadedCode(Protocol):
    """An agent whose processes Heldout starts, and whose code it therefore knows."""

    @property
    def loaded_code(self) -> LoadedCode: ...


class Agent(Protocol):
    """A way to invoke an agent.

    `start` raises `heldout.errors.ReferenceProblem` when the agent does not exist (no such file, function, host), before any
    rollout begins. `invoke` may be called concurrently; cancelling it abandons the attempt and frees its resources.
    """

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Ends every process and connection. Safe to call twice, and after a failed start."""
        ...

    async def invoke(self, invocation: Invocation) -> InvocationResult: ...

    async def is_busy(self) -> bool:
        """Whether the agent still works in the background (`/ping` answers HealthyBusy) and may report a reward later."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The arguments of a kind's `maker` in addition to the agent."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of worker processes, in addition to this process's environment."""
    concurrency: int = 1
    """The most attempts that play at once."""
    timeout_seconds: float
    """The longest an attempt may take."""


class _Maker(Protocol):
    def __call__(self, agent: AgentReference, settings: AgentSettings, /) -> Agent: ...


class _Checker(Protocol):
    def __call__(self, agent: AgentReference, folder: Path, /) -> None: ...


def make_agent(agent: AgentReference, settings: AgentSettings) -> Agent:
    """Builds the agent for a reference, without starting it. Raises ReferenceProblem for a reference that cannot be used."""
    assert agent.maker is not None  # every kind of agent has one
    return cast("_Maker", pkgutil.resolve_name(agent.maker))(agent, settings)


def check_agent(agent: AgentReference, folder: Path | None = None) -> None:
    """Checks that the agent exists, as far as its kind can without starting anything.

    folder: of relative paths; the current one by default. Raises ReferenceProblem.
    """
    if agent.checker is not None:
        cast("_Checker", pkgutil.resolve_name(agent.checker))(agent, folder or Path.cwd())
