"""Hosted agents: the registry's agents, invoked by their AWS names. Each starts on its first invocation and keeps running."""

import asyncio
import uuid
from collections.abc import Mapping
from weakref import WeakValueDictionary

from heldout.agents.base import Agent, AgentSettings, Invocation, InvocationResult, Outcome, make_agent
from heldout.errors import HeldoutError
from heldout.job.kinds.base import AgentReference
from heldout.job.registry import Registry

TIMEOUT_SECONDS = 900.0
"""The longest invocation that AgentCore and Lambda allow."""


class HostedAgents:
    """Agents on this machine, by the ARN of an AgentCore runtime or a Lambda function."""

    def __init__(self, registry: Registry, environment: Mapping[str, str]) -> None:
        """environment: variables that entry points get in addition to this process's environment."""
        self._registry = registry
        self._environment = environment
        self._agents: dict[AgentReference, asyncio.Task[Agent]] = {}
        self._sessions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[InvocationResult]] = set()

    async def invoke(self, arn: str, payload: bytes, session_id: str | None = None) -> InvocationResult:
        """Invokes the agent of a mapped ARN. Invocations of one session run one at a time.

        session_id: 33 to 256 characters of `[A-Za-z0-9_.-]`; None for a new session. An agent that does not start gives an
        UNREACHABLE result.
        """
        session_id = session_id or str(uuid.uuid4())
        async with self._sessions.setdefault(session_id, asyncio.Lock()):
            try:
                agent = await self._agent(arn)
            except HeldoutError as error:
                return InvocationResult(Outcome.UNREACHABLE, message=str(error))
            return await agent.invoke(Invocation(session_id, payload, TIMEOUT_SECONDS))

    def invoke_later(self, arn: str, payload: bytes) -> None:
        """Invokes the agent in the background and drops its result."""
        task = asyncio.create_task(self.invoke(arn, payload))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def stop(self) -> None:
        """Stops all agents and cancels their invocations."""
        for task in (*self._background, *self._agents.values()):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        started = await asyncio.gather(*self._agents.values(), return_exceptions=True)
        await asyncio.gather(*(agent.stop() for agent in started if not isinstance(agent, BaseException)))
        self._agents.clear()

    async def _agent(self, arn: str) -> Agent:
        """The running agent. Concurrent callers share one start; a failed start is retried by the next caller."""
        reference = self._registry.agent(arn)
        assert reference is not None  # callers look it up first
        task = self._agents.get(reference)
        if task is None or (task.done() and task.exception() is not None):
            task = self._agents[reference] = asyncio.create_task(self._start(reference))
        return await asyncio.shield(task)

    async def _start(self, reference: AgentReference) -> Agent:
        agent = make_agent(reference, AgentSettings(environment=self._environment, timeout_seconds=TIMEOUT_SECONDS))
        try:
            await agent.start()
        except BaseException:
            await agent.stop()
            raise
        return agent
