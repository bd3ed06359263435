"""A dialect added to the table is served, recorded and limited like the built-in ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import aiohttp
import orjson
import pytest

from heldout.runtime import CallRules, JobRuntime, Limits, Trajectory
from heldout.runtime.dialects.table import DIALECTS
from heldout.runtime.rules import DEFAULT_LIMITS
from tests.support.runtime_support import (
    JOB_ARN,
    NO_RULES,
    REGION,
    Answer,
    Bench,
    HttpPolicy,
    Json,
    running_bench,
)
from tests.support.toy_dialect import ToyDialect

TABLE = (*DIALECTS, ToyDialect())


def bench_with_toy(
    rules: CallRules = NO_RULES, *, limits: Limits = DEFAULT_LIMITS
) -> AbstractAsyncContextManager[Bench]:
    return running_bench(rules, dialects=TABLE, limits=limits)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def ask(session: aiohttp.ClientSession, trajectory: Trajectory, **fields: object) -> tuple[int, Json]:
    async with session.post(f"{trajectory.base_url}/toy/ask", data=orjson.dumps(fields)) as answer:
        return answer.status, orjson.loads(await answer.read())


async def test_a_new_dialect_is_answered_in_its_own_form(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy() as bench:
        assert await ask(session, bench.open(), say="hi") == (200, {"id": "1", "heard": "Hello, who is there?"})
        assert bench.model.requests[0]["messages"] == [{"role": "user", "content": "hi"}]
        assert bench.model.requests[0]["model"] == "served-model"


async def test_a_turn_in_a_new_dialect_is_recorded_like_a_chat(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy(CallRules(None, None, None, wants_logprobs=True)) as bench:
        toy, chat = bench.open(seed=5), bench.open(seed=5)
        await ask(session, toy, say="hi", words=9)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
        async with session.post(f"{chat.base_url}/chat/completions", json=body) as answer:
            assert answer.status == 200
        first, second = bench.model.requests
    assert {**first, "stream": None} == {**second, "stream": None}
    (one,), (other,) = toy.turns, chat.turns
    assert (one.messages, one.reply, one.logprobs) == (other.messages, other.reply, other.logprobs)
    assert (one.finish_reason, one.prompt_tokens, one.response_tokens) == ("stop", 7, 4)
    assert orjson.loads(one.request) == {"words": 9}


async def test_a_new_dialect_streams_in_its_own_form(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy() as bench:
        trajectory = bench.open()
        body = b'{"say": "hi", "live": true}'
        async with session.post(f"{trajectory.base_url}/toy/ask", data=body) as answer:
            lines = (await answer.read()).decode().splitlines()
    assert "".join(line.removeprefix("+") for line in lines[:-1]) == "Hello, who is there?"
    assert lines[-1] == "."
    assert orjson.loads(trajectory.turns[0].reply)[0]["content"] == "Hello, who is there?"


async def test_a_stream_that_breaks_ends_with_an_error_in_the_new_dialects_form(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy() as bench:
        bench.model.script.append(Answer(breaks_after=3))
        trajectory = bench.open()
        async with session.post(f"{trajectory.base_url}/toy/ask", data=b'{"say": "hi", "live": true}') as answer:
            lines = (await answer.read()).decode().splitlines()
    assert lines[-1].startswith("!the stream broke off")
    assert trajectory.turns[0].error == "the stream broke off"


async def test_the_jobs_sampling_counts_and_is_enforced_in_a_new_dialect(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy(CallRules(None, None, 100)) as bench:
        trajectory = bench.open()
        await ask(session, trajectory, say="hi", words=100)
        assert not trajectory.sampling_differs
        await ask(session, trajectory, say="hi", words=9)
        assert (trajectory.sampling_differs, bench.runtime.differences) == (True, {"max_tokens": 1})
    async with bench_with_toy(CallRules(None, None, 100, enforce_sampling=True)) as bench:
        await ask(session, bench.open(), say="hi", words=9)
        assert bench.model.requests[0]["max_tokens"] == 100


async def test_the_job_runtimes_errors_take_the_new_dialects_form(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy(limits=Limits(body_bytes=1000)) as bench:
        trajectory = bench.open()
        assert await ask(session, trajectory) == (400, {"oh": "say is missing; it must be a text"})
        too_long = await ask(session, trajectory, say="x" * 1000)
        assert too_long == (413, {"oh": "the body is longer than 1000 bytes, the most allowed"})
        async with session.post(f"{bench.runtime.endpoint}/toy/ask", data=b"{}") as answer:
            assert answer.status == 403
            assert orjson.loads(await answer.read())["oh"].startswith("no credentials")
        bench.model.script.append(Answer(status=400, error="too much"))
        assert await ask(session, trajectory, say="hi") == (400, {"oh": "the policy answered 400: too much"})


async def test_a_rollout_that_has_ended_takes_no_calls_in_a_new_dialect(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy() as bench:
        trajectory = bench.open()
        async with session.post(f"{trajectory.base_url}/complete-rollout", data=b"{}") as answer:
            assert answer.status == 200
        status, body = await ask(session, trajectory, say="hi")
        assert (status, trajectory.turns, bench.model.requests) == (409, [], [])
    assert "not in valid status for model calls" in str(body["oh"])


async def test_a_call_that_the_end_of_the_rollout_cuts_off_gets_the_new_dialects_error(
    session: aiohttp.ClientSession,
) -> None:
    async with bench_with_toy() as bench:
        bench.model.script.append(Answer(waits_for=asyncio.Event()))
        trajectory = bench.open()
        asking = asyncio.create_task(ask(session, trajectory, say="hi"))
        await bench.model.arrived.wait()
        trajectory.close()
        status, body = await asking
    assert (status, trajectory.turns[0].status) == (409, 409)
    assert "it ended during this one" in str(body["oh"])


async def test_a_dialect_may_answer_without_the_model_from_what_it_keeps_of_a_trajectory(
    session: aiohttp.ClientSession,
) -> None:
    async with bench_with_toy() as bench:
        trajectory, other = bench.open(), bench.open()
        _, told = await ask(session, trajectory, say="hi")
        async with session.get(f"{trajectory.base_url}/toy/replies/1") as answer:
            assert (answer.status, orjson.loads(await answer.read())) == (200, told)
        async with session.get(f"{other.base_url}/toy/replies/1") as answer:
            assert (answer.status, await answer.read()) == (404, b'{"oh":"there is no reply 1"}')
        assert (len(trajectory.turns), len(bench.model.requests)) == (1, 1)


async def test_a_path_of_no_dialect_names_those_of_the_table(session: aiohttp.ClientSession) -> None:
    async with bench_with_toy() as bench, session.get(f"{bench.open().base_url}/toy/ask") as answer:
        assert answer.status == 404
        message = (await answer.json())["Message"]
    assert message.startswith("there is no operation GET '/v1/toy/ask'; there are POST /chat/completions, ")
    assert "POST /toy/ask, GET /toy/replies/, POST /complete-rollout" in message


async def test_two_dialects_cannot_serve_one_route() -> None:
    expected = "POST /toy/ask is served twice: by dialect 'toy' and dialect 'toy'"
    with pytest.raises(ValueError, match=expected):
        JobRuntime(
            job_arn=JOB_ARN,
            region=REGION,
            policy=HttpPolicy(""),
            rules=NO_RULES,
            credentials=[],
            dialects=(ToyDialect(), ToyDialect()),
        )
