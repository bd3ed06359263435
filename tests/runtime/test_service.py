"""The service itself: its names and addresses, its limits, and its answers to clients that misbehave."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from heldout.policies.base import ModelCall, ModelReply
from heldout.runtime import JobRuntime, Limits, Report
from tests.support.runtime_support import JOB_ARN, NO_RULES, REGION, Bench, HttpPolicy, running_bench

BODY = orjson.dumps({"model": "default", "messages": [{"role": "user", "content": "hi"}]})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_bench() as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def ignore(_: Report) -> None:
    pass


def unstarted(**fields: str) -> JobRuntime:
    policy = HttpPolicy("http://127.0.0.1:1/v1")
    return JobRuntime(job_arn=JOB_ARN, region=REGION, policy=policy, rules=NO_RULES, credentials=[], **fields)  # type: ignore[arg-type]


async def test_an_id_can_be_a_session_id_and_a_path_segment(bench: Bench) -> None:
    trajectory = bench.runtime.open("x", seed=None, on_report=ignore)
    assert trajectory.id.startswith("x-")
    assert 33 <= len(trajectory.id) <= 256
    longest = bench.runtime.open("x" * 200, seed=None, on_report=ignore)
    assert len(longest.id) <= 256


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä", "x" * 201])
async def test_a_name_that_cannot_be_in_a_path_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(ValueError, match=r"trajectory name .* must be 1 to 200 characters"):
        bench.runtime.open(name, seed=None, on_report=ignore)


async def test_two_open_trajectories_cannot_have_one_name(bench: Bench) -> None:
    bench.open("p1").close()
    bench.open("p1")
    with pytest.raises(ValueError, match="is open already"):
        bench.open("p1")


async def test_agents_receive_the_public_url() -> None:
    runtime = unstarted(public_url="https://runtime.example:8443/")
    assert runtime.endpoint == "https://runtime.example:8443"
    assert runtime.open("p1", seed=None, on_report=ignore).base_url.startswith(
        "https://runtime.example:8443/trajectories/p1-"
    )


async def test_without_a_start_there_is_no_endpoint() -> None:
    runtime = unstarted()
    with pytest.raises(RuntimeError, match="no endpoint before it is started"):
        _ = runtime.endpoint
    await runtime.stop()


async def test_stopping_twice_is_harmless() -> None:
    runtime = unstarted()
    await runtime.start()
    await runtime.stop()
    await runtime.stop()


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_anyone_may_ask_whether_it_is_healthy(bench: Bench, session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(bench.runtime.endpoint + path) as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "Healthy"})


async def test_an_unknown_operation_lists_the_known_ones(bench: Bench, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{bench.runtime.endpoint}/v1/embeddings") as answer:
        assert answer.status == 404
        assert answer.headers["x-amzn-errortype"] == "ResourceNotFoundException"
        said = (await answer.json())["Message"]
    assert said.startswith("there is no operation POST '/v1/embeddings'; there are POST /chat/completions, ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"[]", "the body is []; expected a JSON object, an OpenAI-compatible request"),
        (b'{"messages": [' + b"[" * 300 + b"]" * 300 + b"]}", "the body is nested too deeply"),
        (b'{"messages": ' + b"[" * 254 + b"]" * 254 + b"}", "the body is nested too deeply"),
        (b"{}", "messages is None; it must be a list of messages"),
        (b'{"messages": "hi"}', "messages is 'hi'; it must be a list of messages"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_before_the_policy(
    bench: Bench, session: aiohttp.ClientSession, body: bytes, message: str
) -> None:
    trajectory = bench.open()
    async with session.post(f"{trajectory.base_url}/chat/completions", data=body) as answer:
        said = await answer.json()
    assert answer.status == 400
    assert message in said["Message"]
    assert said["error"]["message"] == said["Message"]
    assert (trajectory.turns, bench.model.requests) == ([], [])


async def test_a_call_without_a_trajectory_explains_how_to_name_one(
    bench: Bench, session: aiohttp.ClientSession
) -> None:
    headers = {"Authorization": f"Bearer {bench.runtime.secret}"}
    async with session.post(f"{bench.runtime.endpoint}/v1/chat/completions", data=BODY, headers=headers) as answer:
        assert answer.status == 400
        assert (await answer.json())["Message"].startswith(
            "the request names no trajectory: send the header X-Amzn-SageMaker-Trajectory-Id"
        )


async def test_a_call_that_names_another_job_is_refused_also_at_the_trajectorys_own_url(
    bench: Bench, session: aiohttp.ClientSession
) -> None:
    headers = {"X-Amzn-SageMaker-Job-Arn": JOB_ARN + "-2"}
    async with session.post(f"{bench.open().base_url}/chat/completions", data=BODY, headers=headers) as answer:
        assert answer.status == 403
        assert (await answer.json())["Message"].startswith(f"this is the Job Runtime of {JOB_ARN}, not of ")
    assert bench.model.requests == []


async def test_a_long_conversation_passes(bench: Bench, session: aiohttp.ClientSession) -> None:
    trajectory = bench.open()
    text = "long " * 500_000
    body = orjson.dumps({"messages": [{"role": "user", "content": text}]})
    async with session.post(f"{trajectory.base_url}/chat/completions", data=io.BytesIO(body)) as answer:
        assert answer.status == 200
    assert bench.model.requests[0]["messages"] == [{"role": "user", "content": text}]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused_with_the_limit(
    bench: Bench, session: aiohttp.ClientSession, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield b" " * 2**20

    data = pieces() if chunked else io.BytesIO(b" " * (65 * 2**20))
    async with session.post(f"{bench.open().base_url}/chat/completions", data=data) as answer:
        assert answer.status == 413
        assert (await answer.json())["Message"] == "the body is longer than 64 MiB, the most allowed"


async def test_a_client_that_asks_before_it_sends_its_body_may_continue(
    bench: Bench, session: aiohttp.ClientSession
) -> None:
    async with session.post(f"{bench.open().base_url}/chat/completions", data=BODY, expect100=True) as answer:
        assert answer.status == 200


async def test_a_client_too_slow_with_its_body_is_refused() -> None:
    async with running_bench(limits=Limits(body_seconds=0.05)) as bench:
        path = bench.open().base_url.removeprefix(bench.runtime.endpoint)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(bench.runtime.endpoint.rpartition(":")[2]))
        writer.write(f"POST {path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
        writer.close()
        await writer.wait_closed()


async def test_a_page_in_place_of_a_completion_is_an_error_with_its_beginning(session: aiohttp.ClientSession) -> None:
    async with running_with(ModelReply(200, "text/html", b"<html>")) as runtime:
        trajectory = runtime.open("p1", seed=None, on_report=ignore)
        async with session.post(f"{trajectory.base_url}/chat/completions", data=BODY) as answer:
            assert (answer.status, answer.content_type) == (502, "application/json")
            assert "<html>" in (await answer.json())["error"]["message"]
        assert trajectory.turns[0].error == "the policy's answer is not a completion: 200 with <html>"


async def test_a_whole_body_in_answer_to_a_call_for_a_stream_is_passed_on_and_recorded(
    session: aiohttp.ClientSession,
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"choices": [{"message": {"role": "assistant",'
        yield b' "content": "whole"}}]}'

    async with running_with(ModelReply(200, "application/json", b"", pieces())) as runtime:
        trajectory = runtime.open("p1", seed=None, on_report=ignore)
        body = b'{"messages": [], "stream": true}'
        async with session.post(f"{trajectory.base_url}/chat/completions", data=body) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == "whole"
        assert orjson.loads(trajectory.turns[0].reply) == [{"role": "assistant", "content": "whole"}]


async def test_a_stream_without_a_completion_has_an_error_before_its_end(session: aiohttp.ClientSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"data: [DONE]\n\n"

    async with running_with(ModelReply(200, "text/event-stream", b"", pieces())) as runtime:
        trajectory = runtime.open("p1", seed=None, on_report=ignore)
        body = b'{"messages": [], "stream": true}'
        async with session.post(f"{trajectory.base_url}/chat/completions", data=body) as answer:
            error, done = (await answer.read()).removesuffix(b"\n\n").split(b"\n\n")
        assert (b"not a completion" in error, done) == (True, b"data: [DONE]")
        assert (
            trajectory.turns[0].error
            == "the policy's answer is not a completion: the stream ended without a completion"
        )


async def test_a_streamed_turn_is_recorded_before_its_agent_sees_the_end(session: aiohttp.ClientSession) -> None:
    is_over = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n'
        await is_over.wait()

    async with running_with(ModelReply(200, "text/event-stream", b"", pieces())) as runtime:
        trajectory = runtime.open("p1", seed=None, on_report=ignore)
        body = b'{"messages": [], "stream": true}'
        async with session.post(f"{trajectory.base_url}/chat/completions", data=body) as answer:
            assert (await answer.content.readany()).endswith(b"[DONE]\n\n")
            assert len(trajectory.turns) == 1
            is_over.set()


async def test_a_stream_that_the_agent_gives_up_is_closed_at_the_policy(session: aiohttp.ClientSession) -> None:
    is_closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b'data: {"choices": []}\n\n' * 1000
        finally:
            is_closed.set()

    held = pieces()  # or the garbage collector would close it
    async with running_with(ModelReply(200, "text/event-stream", b"", held)) as runtime:
        trajectory = runtime.open("p1", seed=None, on_report=ignore)
        body = b'{"messages": [], "stream": true}'
        answer = await session.post(f"{trajectory.base_url}/chat/completions", data=body)
        answer.close()  # the Job Runtime is held up in writing, since nothing is read here
        await asyncio.wait_for(is_closed.wait(), 5)


async def test_a_bug_in_a_policy_costs_one_call_and_is_logged(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_with(ZeroDivisionError("by zero")) as runtime:
        trajectory = runtime.open("p1", seed=None, on_report=ignore)
        for _ in range(2):
            async with session.post(f"{trajectory.base_url}/chat/completions", data=BODY) as answer:
                assert answer.status == 500
                assert (await answer.json())["Message"] == "ZeroDivisionError: by zero"
        assert [turn.error for turn in trajectory.turns] == ["ZeroDivisionError: by zero"] * 2
    assert "ZeroDivisionError" in caplog.text


class FixedPolicy(HttpPolicy):
    """Answers every call the same way."""

    def __init__(self, outcome: ModelReply | Exception) -> None:
        super().__init__("")
        self._outcome = outcome

    async def call(self, call: ModelCall) -> ModelReply:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@asynccontextmanager
async def running_with(outcome: ModelReply | Exception) -> AsyncIterator[JobRuntime]:
    runtime = JobRuntime(job_arn=JOB_ARN, region=REGION, policy=FixedPolicy(outcome), rules=NO_RULES, credentials=[])
    await runtime.start()
    yield runtime
    await runtime.stop()
