"""Whatever a model server replies is relayed as it is, and recorded as it was relayed."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from heldout.job.json_values import read_json
from heldout.job.kinds.endpoint import EndpointModel
from heldout.policies.endpoint import EndpointPolicy
from heldout.runtime import CallRules, JobRuntime, Limits, Trajectory
from heldout.runtime.rules import DEFAULT_LIMITS
from tests.support.runtime_support import JOB_ARN, KEY_PAIR, NO_RULES, REGION

Handler = Callable[[bytes], web.Response]
"""Takes the body of a request."""
_CHAT = b'{"choices": [{"index": 0, "finish_reason": "stop", "message": %b}], "usage": %b}'
_USAGE = b'{"prompt_tokens": 3, "completion_tokens": 2}'


@asynccontextmanager
async def runtime_before(
    handler: Handler, *, rules: CallRules = NO_RULES, limits: Limits = DEFAULT_LIMITS, max_connections: int = 8
) -> AsyncIterator[JobRuntime]:
    """A Job Runtime in front of a model server that answers as `handler` does."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return handler(await request.read())

    async def models(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_post("/v1/{rest:.*}", handle)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model = EndpointModel((f"http://127.0.0.1:{runner.addresses[0][1]}/v1",), "m")
    policy = EndpointPolicy(model.urls, model.name, max_connections=max_connections)
    await policy.start()
    runtime = JobRuntime(
        job_arn=JOB_ARN, region=REGION, policy=policy, rules=rules, credentials=[KEY_PAIR], limits=limits
    )
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()
        await policy.stop()
        await runner.cleanup()


def opened(runtime: JobRuntime) -> Trajectory:
    async def take(_: object) -> None: ...

    return runtime.open("p0-r0-a1", seed=None, on_report=take)


def body(content: bytes, content_type: str = "application/json", **headers: str) -> Handler:
    return lambda _: web.Response(body=content, content_type=content_type, headers=headers)


def replied(trajectory: Trajectory) -> Any:
    [message] = cast("list[Any]", read_json(trajectory.turns[0].reply))
    return message


async def called(
    trajectory: Trajectory, *, path: str = "chat/completions", **fields: object
) -> tuple[int, bytes, dict[str, str]]:
    sent = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(f"{trajectory.base_url}/{path}", json=sent) as answer,
    ):
        return answer.status, await answer.read(), dict(answer.headers)


@pytest.mark.parametrize(
    ("message", "recorded"),
    [
        (b'{"role": "assistant", "content": "a", "score": NaN}', {"score": "NaN"}),
        (b'{"role": "assistant", "content": "a", "score": -Infinity}', {"score": float("-inf")}),
        (b'{"role": "assistant", "content": "a", "id": 18446744073709551616}', {"id": 2**64}),
        (b'{"role": "assistant", "content": "a \\ud800"}', {"content": "a \N{REPLACEMENT CHARACTER}"}),
    ],
)
async def test_a_reply_that_only_python_reads_is_recorded(message: bytes, recorded: dict[str, object]) -> None:
    reply = _CHAT % (message, _USAGE)
    async with runtime_before(body(reply)) as runtime:
        trajectory = opened(runtime)
        assert (await called(trajectory))[:2] == (200, reply)
    [turn] = trajectory.turns
    assert turn.error is None
    assert read_json(turn.reply) == [{"role": "assistant", "content": "a", **recorded}]
    assert (turn.prompt_tokens, turn.response_tokens, turn.finish_reason) == (3, 2, "stop")


async def test_a_chunk_that_only_python_reads_is_recorded() -> None:
    deltas = [b'{"role": "assistant", "content": "one "}', b'{"content": "two", "p": NaN}', b'{"content": " three"}']
    events = b"".join(b'data: {"choices": [{"index": 0, "delta": %b}]}\n\n' % delta for delta in deltas)
    async with runtime_before(body(events + b"data: [DONE]\n\n", "text/event-stream")) as runtime:
        trajectory = opened(runtime)
        assert (await called(trajectory, stream=True))[1] == events + b"data: [DONE]\n\n"
    assert read_json(trajectory.turns[0].reply) == [{"role": "assistant", "content": "one two three", "p": "NaN"}]


async def test_a_reply_that_is_nested_too_deeply_for_json_is_recorded_as_text() -> None:
    deep = b"[" * 400 + b"]" * 400
    async with runtime_before(body(_CHAT % (b'{"role": "assistant", "content": %b}' % deep, _USAGE))) as runtime:
        trajectory = opened(runtime)
        assert (await called(trajectory))[0] == 200
    assert deep.decode() in replied(trajectory)


@pytest.mark.parametrize("count", [b"18446744073709551615", b"true", b"-1", b'"7"', b"1.5", b"NaN", b"1e400"])
async def test_what_is_no_count_of_tokens_is_unknown(count: bytes) -> None:
    usage = b'{"prompt_tokens": %b, "completion_tokens": 2}' % count
    async with runtime_before(body(_CHAT % (b'{"role": "assistant", "content": "a"}', usage))) as runtime:
        trajectory = opened(runtime)
        await called(trajectory)
    assert (trajectory.turns[0].prompt_tokens, trajectory.turns[0].response_tokens) == (None, 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_compressed_reply_reaches_the_agent_readable_and_is_recorded(stream: bool) -> None:
    if stream:
        plain = (
            b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        )
        kind = "text/event-stream"
    else:
        plain, kind = _CHAT % (b'{"role": "assistant", "content": "a"}', _USAGE), "application/json"
    headers = {"Content-Encoding": "gzip"}
    async with runtime_before(
        lambda _: web.Response(body=gzip.compress(plain), content_type=kind, headers=headers)
    ) as r:
        trajectory = opened(r)
        status, given, answered = await called(trajectory, stream=stream)
    assert (status, given) == (200, plain)
    assert "Content-Encoding" not in answered
    assert read_json(trajectory.turns[0].reply) == [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_in_an_unknown_encoding_is_an_error_of_the_policy(stream: bool) -> None:
    headers = {"Content-Encoding": "br"}
    async with runtime_before(lambda _: web.Response(body=b"\x0b\x02\x80", headers=headers)) as runtime:
        trajectory = opened(runtime)
        status, given, _ = await called(trajectory, stream=stream)
    assert status == 503
    assert b"Content-Encoding is 'br'; it must be identity, gzip or deflate" in given


async def test_an_over_long_reply_to_a_streamed_call_frees_its_connection() -> None:
    long = _CHAT % (b'{"role": "assistant", "content": "%b"}' % (b"a" * 5_000_000), _USAGE)
    async with runtime_before(body(long), limits=Limits(reply_bytes=1000), max_connections=2) as runtime:
        trajectory = opened(runtime)
        async with asyncio.timeout(20):
            statuses = [(await called(trajectory, stream=True))[0] for _ in range(5)]
    assert statuses == [503] * 5


@pytest.mark.parametrize("asked", [0, 1, True])
async def test_logprobs_that_the_agent_asked_for_reach_it(asked: int) -> None:
    """In completions, `logprobs: 0` asks for the log-probability of each token without alternatives."""
    logprobs = b'{"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": null, "text_offset": [0]}'
    reply = b'{"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": %b}]}' % logprobs
    rules = CallRules(temperature=None, top_p=None, max_tokens=None, wants_logprobs=True)
    async with runtime_before(body(reply), rules=rules) as runtime:
        trajectory = opened(runtime)
        given = (await called(trajectory, path="completions", prompt="p", logprobs=asked))[1]
    assert given == reply
    assert trajectory.turns[0].logprobs == (-0.5,)


async def test_a_log_probability_of_minus_infinity_keeps_its_place() -> None:
    tokens = b'[{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -Infinity}]'
    reply = (
        b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"}, "logprobs": {"content": %b}}]}'
    )
    async with runtime_before(body(reply % tokens)) as runtime:
        trajectory = opened(runtime)
        await called(trajectory, logprobs=True)
    assert trajectory.turns[0].logprobs == (-0.5, float("-inf"))


async def test_a_request_that_only_python_writes_reaches_the_policy_as_it_was_sent() -> None:
    received: list[bytes] = []

    def keep(sent: bytes) -> web.Response:
        received.append(sent)
        return web.Response(body=_CHAT % (b'{"role": "assistant", "content": "a"}', _USAGE))

    sent = b'{"messages": [{"role": "user", "content": "half \\ud800"}], "x": [NaN, -Infinity]}'
    async with runtime_before(keep) as runtime, aiohttp.ClientSession() as session:
        trajectory = opened(runtime)
        async with session.post(f"{trajectory.base_url}/chat/completions", data=sent) as answer:
            assert answer.status == 200
    assert b"[NaN,-Infinity]" in received[0]
    assert b'"half \\ud800"' in received[0]
    assert "half \N{REPLACEMENT CHARACTER}" in trajectory.turns[0].messages.decode()


def pieces(*parts: Mapping[str, object]) -> bytes:
    events = [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]} for part in parts]
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events) + b"data: [DONE]\n\n"


CALLS: list[Mapping[str, object]] = [
    {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
    {"id": "2", "type": "function", "function": {"name": "look", "arguments": '{"at": 2}'}},
]


@pytest.mark.parametrize(
    "parts",
    [
        CALLS,
        [
            {"id": "1", "function": {"name": "look", "arguments": ""}},
            {"function": {"arguments": '{"at"'}},
            {"function": {"arguments": ": 1}"}},
            {"id": "2", "function": {"name": "look", "arguments": '{"at"'}},
            {"id": "2", "function": {"arguments": ": 2}"}},
        ],
    ],
)
async def test_streamed_tool_calls_without_an_index_stay_apart(parts: list[Mapping[str, object]]) -> None:
    async with runtime_before(body(pieces(*parts), "text/event-stream")) as runtime:
        trajectory = opened(runtime)
        await called(trajectory, stream=True)
    assert replied(trajectory)["tool_calls"] == CALLS


async def test_streamed_tool_calls_with_neither_index_nor_id_are_parted_by_their_names() -> None:
    parts = [{"function": one["function"]} for one in CALLS]
    async with runtime_before(body(pieces(*parts), "text/event-stream")) as runtime:
        trajectory = opened(runtime)
        await called(trajectory, stream=True)
    assert [call["function"] for call in replied(trajectory)["tool_calls"]] == [one["function"] for one in CALLS]
