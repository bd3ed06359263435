"""The registry's agents for those who invoke them by their AWS names: each is started when it is first asked for, and kept."""

import asyncio
import uuid
from collections.abc import Mapping
from weakref import WeakValueDictionary

from heldout.agents.base import Agent, Invocation, InvocationResult, Outcome
from heldout.agents.entry_point import EntryPointAgent
from heldout.agents.http import HttpAgent
from heldout.errors import HeldoutError
from heldout.job.references import AgentContainer, AgentReference, EntryPoint
from heldout.job.registry import Registry

TIMEOUT_SECONDS = 900.0
"""The longest invocation of either service."""


class HostedAgents:
    """Agents on this machine by the ARN of an AgentCore runtime or a Lambda function."""

    def __init__(self, registry: Registry, environment: Mapping[str, str]) -> None:
        """`environment` is set for entry points on top of this process's own."""
        self._registry = registry
        self._environment = environment
        self._agents: dict[AgentReference, asyncio.Task[Agent]] = {}
        self._sessions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[InvocationResult]] = set()

    async def invoke(self, arn: str, payload: bytes, session_id: str | None = None) -> InvocationResult:
        """Invokes the agent that a mapped ARN stands for. Invocations of one session come one after the other.

        session_id: 33 to 256 characters of `[A-Za-z0-9_.-]`; None is a session of its own.
        """
        session_id = session_id or str(uuid.uuid4())
        async with self._sessions.setdefault(session_id, asyncio.Lock()):
            try:
                agent = await self._started(arn)
            except HeldoutError as error:
                return InvocationResult(Outcome.UNREACHABLE, message=str(error))
            return await agent.invoke(Invocation(session_id, payload, TIMEOUT_SECONDS))

    def invoke_later(self, arn: str, payload: bytes) -> None:
        """As `invoke`, for a caller who does not wait."""
        task = asyncio.create_task(self.invoke(arn, payload))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def stop(self) -> None:
        """Ends every agent, with what it plays."""
        for task in (*self._background, *self._agents.values()):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        ended = await asyncio.gather(*self._agents.values(), return_exceptions=True)
        await asyncio.gather(*(agent.stop() for agent in ended if not isinstance(agent, BaseException)))
        self._agents.clear()

    async def _started(self, arn: str) -> Agent:
        """The agent, started once for all who ask; a start that failed is tried again by the next."""
        reference = self._registry.agent(arn)
        assert reference is not None  # callers look it up first
        task = self._agents.get(reference)
        if task is None or (task.done() and task.exception() is not None):
            task = self._agents[reference] = asyncio.create_task(self._start(reference))
        return await asyncio.shield(task)

    async def _start(self, reference: AgentReference) -> Agent:
        agent = self._made(reference)
        try:
            await agent.start()
        except BaseException:
            await agent.stop()
            raise
        return agent

    def _made(self, reference: AgentReference) -> Agent:
        match reference:
            case EntryPoint(entry_point):
                return EntryPointAgent(entry_point, environment=self._environment)
            case AgentContainer(url):
                return HttpAgent(url)
            case _:
                raise AssertionError("a registry maps to agents on this machine alone")
