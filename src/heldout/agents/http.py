"""Invokes an agent at an address that serves the AgentCore HTTP contract, such as a container."""

import asyncio
from collections.abc import Sequence

from heldout.agents.agentcore_contract import one_line, read_answer, says_busy
from heldout.agents.base import Agent, AgentSettings, Invocation, InvocationResult, Outcome
from heldout.agents.worker_protocol import SESSION_HEADER
from heldout.errors import ReferenceProblem, shown
from heldout.http.connections import Connections, NotConnected, Site
from heldout.job.kinds.http_agent import AgentContainer

_PING_SECONDS = 10.0
_CONNECT_SECONDS = 30.0
_KEEP_SECONDS = 2.0
"""Idle connections close before uvicorn closes them at 5 s. A request on a connection that the server closes looks like one in
play, which is not sent twice."""


def make(agent: AgentContainer, _settings: AgentSettings) -> "HttpAgent":
    """Builds the agent at an address. Raises ReferenceProblem when it is not an http or https address."""
    return HttpAgent(agent.url)


class HttpAgent(Agent):
    """Any AgentCore-contract agent at `http(s)://host:port[/path]`: POST /invocations and GET /ping below it."""

    def __init__(self, url: str, *, connect_pauses_seconds: Sequence[float] = (0.1, 0.4, 1.6)) -> None:
        """connect_pauses_seconds: between tries to connect. By default a container that takes two seconds to restart is reached.

        Raises ReferenceProblem when `url` is not an http or https address.
        """
        self._connect_pauses_seconds = connect_pauses_seconds
        self._url = url.rstrip("/")
        try:
            self._site = Site(self._url)
        except ValueError as problem:
            raise ReferenceProblem(f"agent {shown(url)} is not an address: {problem}") from problem
        self._connections: Connections | None = None

    async def start(self) -> None:
        """Checks that the agent answers GET /ping. Raises ReferenceProblem when it does not."""
        self._connections = Connections(keep_alive_seconds=_KEEP_SECONDS, connect_seconds=_CONNECT_SECONDS)
        try:
            status, _ = await self._ping()
        except OSError as error:  # TimeoutError is one
            await self.stop()
            reason = str(error) or f"no answer within {_PING_SECONDS:g} s"
            raise ReferenceProblem(
                f"agent {self._url!r} does not answer GET {self._url}/ping ({one_line(reason)}); start it first, "
                "or give an entry point (agent.py:function) to have it hosted here"
            ) from error
        if status != 200:
            await self.stop()
            raise ReferenceProblem(
                f"agent {self._url!r} answers GET {self._url}/ping with status {status}; expected 200, as AgentCore agents do"
            )

    async def stop(self) -> None:
        """Closes the connections."""
        if self._connections is not None:
            self._connections.close()

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        """Plays one attempt. Sends it once; only a failed connection is retried."""
        for pause_seconds in (*self._connect_pauses_seconds, None):
            try:
                return await self._post(invocation)
            except TimeoutError:
                return InvocationResult(Outcome.TIMED_OUT, message=f"no answer within {invocation.timeout_seconds:g} s")
            except NotConnected as error:
                if pause_seconds is None:
                    return _unreachable(error)
                await asyncio.sleep(pause_seconds)
            except OSError as error:
                return _unreachable(error)
        raise AssertionError("the last try returns")

    async def is_busy(self) -> bool:
        """Whether GET /ping answers HealthyBusy."""
        try:
            _, body = await self._ping()
        except OSError:
            return False
        return says_busy(body)

    async def _post(self, invocation: Invocation) -> InvocationResult:
        headers = {
            SESSION_HEADER: invocation.trajectory_id,
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        request = self._site.request("POST", "/invocations", headers, invocation.payload)
        async with asyncio.timeout(invocation.timeout_seconds):
            status, content_type, body = await self._ask(request)
        return read_answer(status, content_type, body)

    async def _ping(self) -> tuple[int, bytes]:
        async with asyncio.timeout(_PING_SECONDS):
            status, _, body = await self._ask(self._site.request("GET", "/ping", {}))
        return status, body

    async def _ask(self, request: bytes) -> tuple[int, str, bytes]:
        assert self._connections is not None  # `start` comes before `invoke`
        response = await self._connections.request(self._site.origin, request)
        body = await response.read()
        return response.status, response.headers.get("content-type", ""), body


def _unreachable(error: OSError) -> InvocationResult:
    return InvocationResult(
        Outcome.UNREACHABLE, message=one_line(f"the agent cannot be reached: {error or type(error).__name__}")
    )
