"""Policies behind endpoints, against real servers that speak HTTP."""

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest

from heldout.errors import ReferenceProblem
from heldout.policies.base import ModelCall, ModelReply, PolicyUnavailable
from heldout.policies.endpoint import EndpointPolicy
from heldout.policies.retries import Retries
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, Rule, by_rules
from tests.support.model_servers import hanging_server, refusing_server

NOW = 1_700_000_000.0


class Waits(list[float]):
    """Stands in for sleep: notes each wait and lets other tasks run."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


def _call(
    trajectory_id: str = "t", *, is_streamed: bool = False, content: str = "hello", **fields: object
) -> ModelCall:
    body = {"model": "scripted", "messages": [{"role": "user", "content": content}], "stream": is_streamed, **fields}
    return ModelCall("/chat/completions", orjson.dumps(body), trajectory_id, is_streamed)


def _said(reply: ModelReply) -> str:
    return str(orjson.loads(reply.body)["choices"][0]["message"]["content"])


@asynccontextmanager
async def _serving(
    *servers: ScriptedServer, waits: Waits | None = None, max_tries: int = 4
) -> AsyncIterator[EndpointPolicy]:
    """A started policy with these servers as its replicas."""
    retries = Retries(
        max_tries=max_tries, sleep=waits if waits is not None else Waits(), now=lambda: NOW, chance=lambda: 0.0
    )
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        policy = EndpointPolicy([server.url for server in servers], "scripted", retries=retries)
        await policy.start()
        stack.push_async_callback(policy.stop)
        yield policy


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_a_call_reaches_the_server_byte_for_byte_and_its_reply_comes_back() -> None:
    server = ScriptedServer(lambda call: Reply(content=f"you said {call.last_message}"))
    async with _serving(server) as policy:
        reply = await policy.call(_call(content="ünïcode", n=2))
    assert (reply.status, reply.content_type, reply.chunks) == (200, "application/json", None)
    assert _said(reply) == "you said ünïcode"
    assert server.calls[0].body["n"] == 2


async def test_a_reply_of_many_megabytes_comes_back_whole() -> None:
    said = "0123456789abcdef" * 300_000  # as long as the log-probabilities of a long reply can be
    async with _serving(ScriptedServer(lambda _: Reply(content=said))) as policy:
        for _ in range(2):  # the second on the connection that the first left
            async with asyncio.timeout(60):
                reply = await policy.call(_call())
            assert _said(reply) == said


async def test_a_streamed_reply_comes_in_chunks_as_the_model_writes() -> None:
    server = ScriptedServer(lambda _: Reply(content="one two three", seconds_per_token=0.01))
    async with _serving(server) as policy:
        reply = await policy.call(_call(is_streamed=True))
        assert reply.chunks is not None
        chunks = [chunk async for chunk in reply.chunks]
    assert reply.content_type == "text/event-stream"
    assert len(chunks) > 1
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_429_and_503_are_waited_out(is_streamed: bool) -> None:
    rules = [Rule(Reply(status=429), calls=(0, 1)), Rule(Reply(status=503), calls=(1, 2))]
    waits = Waits()
    async with _serving(ScriptedServer(by_rules(rules)), waits=waits) as policy:
        assert (await policy.call(_call(is_streamed=is_streamed))).status == 200
    assert waits == [0.125, 0.25]  # half of 0.25 s and 0.5 s: the chance drawn here is 0


@pytest.mark.parametrize("header", ["7", "Tue, 14 Nov 2023 22:13:27 GMT"])  # NOW is 22:13:20
async def test_retry_after_is_honoured(header: str) -> None:
    rules = [Rule(Reply(status=429, headers=(("Retry-After", header),)), calls=(0, 1))]
    waits = Waits()
    async with _serving(ScriptedServer(by_rules(rules)), waits=waits) as policy:
        assert (await policy.call(_call())).status == 200
    assert waits == [7.0]


async def test_a_server_that_keeps_refusing_is_unavailable_with_its_own_words() -> None:
    server = ScriptedServer(lambda _: Reply(status=503, content="model is loading"))
    async with _serving(server) as policy:
        with pytest.raises(
            PolicyUnavailable, match=r"policy 'scripted': http://127.0.0.1:\d+/v1 answers 503 .*model is loading"
        ):
            await policy.call(_call())
    assert server.num_calls == 4


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
async def test_other_statuses_are_returned_unchanged(status: int) -> None:
    server = ScriptedServer(lambda _: Reply(status=status, content="no"))
    async with _serving(server) as policy:
        reply = await policy.call(_call(is_streamed=True))
    assert (reply.status, reply.chunks, server.num_calls) == (status, None, 1)
    assert orjson.loads(reply.body)["error"]["message"] == "no"


@pytest.mark.parametrize("dropped_after", [0, 10, 150])  # before a byte, in the head, in the body
async def test_a_dropped_connection_is_tried_again(dropped_after: int) -> None:
    rules = [Rule(Reply(dropped_after=dropped_after), calls=(0, 2))]
    server = ScriptedServer(by_rules(rules))
    async with _serving(server) as policy:
        assert _said(await policy.call(_call())) == "ok"
    assert server.num_calls == 3


async def test_a_stream_that_breaks_off_is_not_started_again() -> None:
    server = ScriptedServer(lambda _: Reply(content="one two three four", dropped_after=400))
    async with _serving(server) as policy:
        reply = await policy.call(_call(is_streamed=True))
        assert reply.chunks is not None
        assert (await anext(reply.chunks)).startswith(b"data: ")
        with pytest.raises(PolicyUnavailable, match="broke off a streamed reply"):
            await anext(reply.chunks)
    assert server.num_calls == 1


async def test_a_stream_that_breaks_off_before_its_first_chunk_is_tried_again() -> None:
    rules = [Rule(Reply(content="one two", dropped_after=80), calls=(0, 1))]  # the head is longer
    async with _serving(ScriptedServer(by_rules(rules))) as policy:
        reply = await policy.call(_call(is_streamed=True))
        assert reply.chunks is not None
        assert b"[DONE]" in b"".join([chunk async for chunk in reply.chunks])


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_stream_given_up_by_the_agent_closes_its_connection(is_begun: bool) -> None:
    server = ScriptedServer(lambda _: Reply(content="word " * 1000, seconds_per_token=1.0))
    async with _serving(server) as policy:
        reply = await policy.call(_call(is_streamed=True))
        assert isinstance(reply.chunks, AsyncGenerator)
        if is_begun:
            assert (await anext(reply.chunks)).startswith(b"data: ")
        assert server.num_open == 1
        await reply.chunks.aclose()
        async with asyncio.timeout(5):
            while server.num_open:
                await asyncio.sleep(0)


async def test_a_cancelled_call_leaves_the_policy_usable() -> None:
    server = ScriptedServer(by_rules([Rule(Reply(seconds=60), contains="slow")]))
    async with _serving(server) as policy:
        slow = asyncio.create_task(policy.call(_call(content="slow")))
        while not server.num_calls:
            await asyncio.sleep(0)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert _said(await policy.call(_call())) == "ok"


async def test_many_calls_share_few_connections() -> None:
    server = ScriptedServer()
    async with server:
        policy = EndpointPolicy([server.url], "scripted", max_connections=3)
        await policy.start()
        replies = await asyncio.gather(*(policy.call(_call()) for _ in range(50)))
        await policy.stop()
    assert {reply.status for reply in replies} == {200}
    assert server.num_connections <= 3


async def test_a_conversation_of_several_megabytes_is_sent_whole() -> None:
    server = ScriptedServer(lambda call: Reply(content=str(len(call.last_message))))
    async with _serving(server) as policy:
        assert _said(await policy.call(_call(content="x" * 3_000_000))) == "3000000"


async def test_a_trajectory_stays_with_its_replica() -> None:
    servers = [ScriptedServer(), ScriptedServer(), ScriptedServer()]
    async with _serving(*servers) as policy:
        for number in range(30):
            for _ in range(3):
                await policy.call(_call(f"trajectory-{number}", user=f"trajectory-{number}"))
    seen = [{call.body["user"] for call in server.calls} for server in servers]
    assert sum(map(len, seen)) == 30  # none at two replicas
    assert all(seen)


async def test_trajectories_of_a_replica_that_dies_move_to_another(caplog: pytest.LogCaptureFixture) -> None:
    servers = [ScriptedServer(lambda _: Reply(content="a")), ScriptedServer(lambda _: Reply(content="b"))]
    waits = Waits()
    async with _serving(*servers, waits=waits) as policy:
        before = {f"t{number}": _said(await policy.call(_call(f"t{number}"))) for number in range(20)}
        await servers[0].stop()
        with caplog.at_level(logging.WARNING):
            after = {trajectory: _said(await policy.call(_call(trajectory))) for trajectory in before}
    assert set(before.values()) == {"a", "b"}
    assert set(after.values()) == {"b"}
    assert len(waits) <= 1  # at most the connection that dropped; a replica that is down costs no waiting
    assert [message for message in caplog.messages if servers[0].url in message] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("sick", [Reply(dropped_after=0), Reply(status=503), Reply(status=429)])
async def test_trajectories_of_a_replica_without_answers_move_to_another(
    sick: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [ScriptedServer(lambda _: sick), ScriptedServer(lambda _: Reply(content="well"))]
    async with _serving(*servers, waits=(waits := Waits())) as policy:
        said = [_said(await policy.call(_call(f"t{number}"))) for number in range(20)]
    assert said == ["well"] * 20
    assert len(waits) == 2  # the first call's before it gave the replica up
    assert caplog.text.count(f"replica {servers[0].url}") == 1


async def test_a_replica_that_sheds_load_keeps_its_trajectories(caplog: pytest.LogCaptureFixture) -> None:
    servers = [_shedding(), _shedding()]
    async with _serving(*servers, max_tries=50) as policy:
        replies = await asyncio.gather(*(policy.call(_call(f"t{number}")) for number in range(20)))
    assert {reply.status for reply in replies} == {200}
    assert sum(len(server.calls) for server in servers) >= 50  # two of three are refused
    assert not caplog.messages


def _shedding() -> ScriptedServer:
    statuses = itertools.cycle([503, 503, 200])
    return ScriptedServer(lambda _: Reply(status=next(statuses)))


async def test_a_server_that_comes_back_at_another_address_is_found_by_calls_in_flight() -> None:
    new = ScriptedServer(lambda _: Reply(content="new"))
    old = ScriptedServer()

    async def move(_: float) -> None:
        policy.move([new.url])

    async with new, old:
        policy = EndpointPolicy([old.url], "scripted", retries=Retries(sleep=move))
        await policy.start()
        await old.stop()
        assert _said(await policy.call(_call())) == "new"
        await policy.stop()


async def test_the_key_goes_along_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_KEY", " sk-secret \n")
    server = ScriptedServer(lambda _: Reply(status=503, content="bad key sk-secret"), key="sk-secret")
    async with server:
        policy = EndpointPolicy([server.url], "scripted", api_key_variable="MODEL_KEY", retries=Retries(max_tries=1))
        await policy.start()
        with pytest.raises(PolicyUnavailable) as caught:
            await policy.call(_call())
        await policy.stop()
    assert server.calls[0].headers["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value) + repr(policy)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "environment variable 'MODEL_KEY' is not set; it must hold the API key of the model endpoint"),
        ("a\nb", "environment variable 'MODEL_KEY' holds characters that an API key cannot have"),
        ("wrong", "answers 401: it refuses the API key in environment variable 'MODEL_KEY'"),
    ],
)
async def test_an_invalid_key_is_refused_before_any_rollout(
    monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv("MODEL_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MODEL_KEY", value)
    async with ScriptedServer(key="right") as server:
        with pytest.raises(ReferenceProblem) as caught:
            await EndpointPolicy([server.url], "scripted", api_key_variable="MODEL_KEY").start()
    assert message in str(caught.value)


async def test_a_server_that_needs_a_key_is_refused_without_one() -> None:
    async with ScriptedServer(key="right") as server:
        with pytest.raises(ReferenceProblem, match="answers 401: it wants an API key"):
            await EndpointPolicy([server.url], "scripted").start()


async def test_an_unserved_model_is_named_with_the_served_ones() -> None:
    async with ScriptedServer(models=["base", "tuned"]) as server:
        with pytest.raises(ReferenceProblem) as caught:
            await EndpointPolicy([server.url], "tunde").start()
    assert str(caught.value) == (
        f"model 'tunde' is not served at {server.url}, which has 'base', 'tuned'. Did you mean 'tuned'?"
    )


async def test_without_a_name_the_only_model_is_taken() -> None:
    async with ScriptedServer(models=["only"]) as server:
        policy = EndpointPolicy([server.url], "")
        await policy.start()
        await policy.stop()
    assert policy.model_name == "only"


@pytest.mark.parametrize(
    ("models", "message"),
    [(["a", "b"], "serves 'a', 'b'; name the model"), ([], "lists no models"), (None, "lists no models")],
)
async def test_without_a_name_several_models_or_none_are_a_question(models: list[str] | None, message: str) -> None:
    async with ScriptedServer(models=models) as server:
        with pytest.raises(ReferenceProblem, match=message):
            await EndpointPolicy([server.url], "").start()


async def test_a_server_without_a_model_list_is_accepted() -> None:
    async with ScriptedServer(models=None) as server:
        policy = EndpointPolicy([server.url], "any")
        await policy.start()
        assert (await policy.call(_call())).status == 200
        await policy.stop()


async def test_an_address_without_a_server_is_named_with_the_remedy() -> None:
    url = f"http://127.0.0.1:{_free_port()}/v1"
    with pytest.raises(ReferenceProblem) as caught:
        await EndpointPolicy([url], "m").start()
    assert str(caught.value) == (
        f"no model server at {url}: it refuses connections (nothing is listening); start an OpenAI-compatible server there"
        " (such as vllm serve, llama-server) or correct the URL"
    )


async def test_a_resumed_job_waits_for_its_server_to_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ScriptedServer(port=_free_port())
    waits = Waits()

    async def starting(seconds: float) -> None:
        await waits(seconds)
        if len(waits) == 3:
            await server.start()

    policy = EndpointPolicy([server.url], "scripted", retries=Retries(sleep=starting), was_there=True)
    await policy.start()
    assert (await policy.call(_call())).status == 200
    await policy.stop()
    await server.stop()
    assert len(waits) == 3
    assert caplog.text.count(f"model server {server.url} refuses connections (nothing is listening); waiting") == 1


async def test_the_wait_for_a_server_to_come_back_ends() -> None:
    url = f"http://127.0.0.1:{_free_port()}/v1"
    retries = Retries(max_tries=4, sleep=(waits := Waits()))
    with pytest.raises(ReferenceProblem, match=f"no model server at {url}: it refuses connections"):
        await EndpointPolicy([url], "m", retries=retries, was_there=True).start()
    assert len(waits) == 3


async def test_a_start_with_one_replica_down_uses_the_others(caplog: pytest.LogCaptureFixture) -> None:
    down = f"http://127.0.0.1:{_free_port()}/v1"
    async with ScriptedServer() as server:
        policy = EndpointPolicy([down, server.url], "scripted")
        await policy.start()
        replies = [await policy.call(_call(f"t{number}")) for number in range(10)]
        await policy.stop()
    assert {reply.status for reply in replies} == {200}
    assert down in caplog.text


async def test_a_server_that_never_lists_its_models_is_named_with_the_timeout() -> None:
    async with hanging_server() as (url, _):
        with pytest.raises(ReferenceProblem) as caught:
            await EndpointPolicy([url], "m", listing_seconds=0.02).start()
    assert str(caught.value).startswith(f"no model server at {url}: it does not list its models within 0.02 s; start")


async def test_a_start_with_one_replica_hanging_uses_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with hanging_server() as (hanging, _), ScriptedServer() as server:
        policy = EndpointPolicy([hanging, server.url], "scripted", listing_seconds=1.0)
        await policy.start()
        replies = [await policy.call(_call(f"t{number}")) for number in range(10)]
        await policy.stop()
    assert {reply.status for reply in replies} == {200}
    assert f"replica {hanging} does not list its models within 1 s; its trajectories move" in caplog.text


async def test_a_start_with_one_replica_still_loading_uses_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with refusing_server() as loading, ScriptedServer() as server:
        policy = EndpointPolicy([loading, server.url], "scripted", retries=Retries(sleep=(waits := Waits())))
        await policy.start()
        await policy.stop()
    assert f"replica {loading} answers 503 'Loading model'; its trajectories move" in caplog.text
    assert not waits


async def test_a_server_that_never_becomes_ready_is_quoted() -> None:
    async with refusing_server() as loading:
        policy = EndpointPolicy([loading], "m", retries=Retries(max_tries=3, sleep=(waits := Waits())))
        with pytest.raises(ReferenceProblem, match=f"{loading} answers 503 'Loading model'; gave up after 3 tries"):
            await policy.start()
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000/v1", "is not an http"),
        ("ftp://host/v1", "is not an http"),
        ("http://", "is not an http"),
        ("http://host:port/v1", "is not a URL"),
        ("http://user:secret@host/v1", "has a user or password in its URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_a_password(url: str, message: str) -> None:
    with pytest.raises(ReferenceProblem, match=message) as caught:
        EndpointPolicy([url], "m")
    assert "secret" not in str(caught.value)


async def test_stopping_twice_or_before_a_start_is_fine() -> None:
    policy = EndpointPolicy(["http://127.0.0.1:1/v1"], "m")
    await policy.stop()
    await policy.stop()
    with pytest.raises(PolicyUnavailable, match="is not started"):
        await policy.call(_call())
