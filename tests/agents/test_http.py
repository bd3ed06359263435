"""Agents at an address that speak the AgentCore contract."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from heldout.agents.base import Outcome
from heldout.agents.http import HttpAgent
from heldout.errors import ReferenceProblem
from tests.support.agents_support import attempt, served

SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


class Container:
    """An AgentCore container that does what the prompt says."""

    def __init__(self) -> None:
        self.status = "Healthy"
        self.prompts: list[str] = []
        self.cancelled = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers below `/agent`."""
        if (request.method, request.path) == ("GET", "/agent/ping"):
            return web.json_response({"status": self.status, "time_of_last_update": 0})
        if (request.method, request.path) != ("POST", "/agent/invocations"):
            return web.Response(status=404)
        payload = json.loads(await request.read())
        self.prompts.append(payload["prompt"][:10])
        match payload["prompt"].split()[0]:
            case "stream":
                return web.Response(body=b'data: 1\n\ndata: {"reward": 1}\n\n', content_type="text/event-stream")
            case "chatter":
                return web.json_response({"reward": 1, "transcript": "x" * 4_000_000})
            case "refuse":
                return web.Response(status=422, text="no such game")
            case "hang":
                await self._hang()
            case "drop":
                assert request.transport is not None
                request.transport.abort()
        return web.json_response({"session": request.headers[SESSION], "bytes": len(payload["prompt"])})

    async def _hang(self) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            self.cancelled.set()


@asynccontextmanager
async def contained(container: Container) -> AsyncIterator[HttpAgent]:
    """An HttpAgent in front of `container`, started."""
    async with served(container.handle) as url:
        agent = HttpAgent(f"{url}/agent/")
        await agent.start()
        try:
            yield agent
        finally:
            await agent.stop()


async def test_a_container_gets_the_payload_and_the_session_and_its_answer_counts() -> None:
    async with contained(Container()) as agent:
        invocation = attempt("hello")
        result = await agent.invoke(invocation)
        assert (result.outcome, result.output) == (Outcome.RETURNED, "")
        assert result.body == {"session": invocation.trajectory_id, "bytes": 5}
        assert (await agent.invoke(attempt("stream"))).body == {"reward": 1}


async def test_an_answer_may_be_many_megabytes() -> None:
    async with contained(Container()) as agent:
        async with asyncio.timeout(60):
            result = await agent.invoke(attempt("chatter"))
        assert isinstance(result.body, dict)
        assert len(result.body["transcript"]) == 4_000_000


@pytest.mark.slow
async def test_a_payload_may_be_a_hundred_megabytes() -> None:
    async with contained(Container()) as agent:
        result = await agent.invoke(attempt("x" * 100_000_000))
        assert isinstance(result.body, dict)
        assert result.body["bytes"] == 100_000_000


async def test_an_error_status_tells_the_status_and_the_body() -> None:
    async with contained(Container()) as agent:
        result = await agent.invoke(attempt("refuse"))
        assert (result.outcome, result.message) == (Outcome.RAISED, "answered 422: no such game")


async def test_a_container_that_hangs_times_out() -> None:
    async with contained(Container()) as agent:
        result = await agent.invoke(attempt("hang", timeout_seconds=0.1))
        assert (result.outcome, result.message) == (Outcome.TIMED_OUT, "no answer within 0.1 s")


async def test_an_attempt_that_may_have_been_played_is_not_sent_again() -> None:
    container = Container()
    async with contained(container) as agent:
        result = await agent.invoke(attempt("drop"))
        assert result.outcome is Outcome.UNREACHABLE
        assert container.prompts == ["drop"]


async def test_a_container_that_went_away_is_unreachable() -> None:
    async with served(Container().handle) as url:
        agent = HttpAgent(f"{url}/agent", connect_pauses_seconds=(0.0, 0.0))
        await agent.start()
    result = await agent.invoke(attempt("hello"))
    assert result.outcome is Outcome.UNREACHABLE
    assert result.message.startswith("the agent cannot be reached: ")
    assert not await agent.is_busy()
    await agent.stop()


async def test_a_container_that_works_in_the_background_is_busy() -> None:
    container = Container()
    async with contained(container) as agent:
        assert not await agent.is_busy()
        container.status = "HealthyBusy"
        assert await agent.is_busy()


async def test_an_address_where_nothing_answers_is_refused_before_anything_starts(unused_tcp_port: int) -> None:
    agent = HttpAgent(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ReferenceProblem, match=r"does not answer GET http://127.0.0.1:\d+/ping .*start it first"):
        await agent.start()
    await agent.stop()


async def test_an_address_that_is_no_agent_is_refused() -> None:
    async with served(Container().handle) as url:
        with pytest.raises(ReferenceProblem, match=r"answers GET .* with status 404; expected 200"):
            await HttpAgent(url).start()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://x", "expected http://host:port"),
        ("http://x:99999", "out of range"),
        ("http://x/agent?version=2", "without '?' and '#'"),
    ],
)
def test_an_invalid_address_of_an_agent_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ReferenceProblem) as raised:
        HttpAgent(url)
    assert f"agent {url!r} is not an address" in str(raised.value)
    assert reason in str(raised.value)


async def test_a_path_with_non_ascii_letters_is_encoded_as_in_browsers() -> None:
    asked: list[str] = []

    async def healthy(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.json_response({"status": "Healthy"})

    async with served(healthy) as url:
        agent = HttpAgent(f"{url}/über uns")
        await agent.start()
        await agent.stop()
    assert asked == ["/%C3%BCber%20uns/ping"]
