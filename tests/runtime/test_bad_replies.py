"""A model server that answers with status 200 and no completion, or refuses a field that Heldout adds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import orjson
import pytest
from openai import AsyncOpenAI

from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, ScriptedCall
from heldout.runtime import CallRules, Trajectory
from tests.support.runtime_support import NO_RULES, Bench, running_bench

ASK: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "who is there?"}]
ERROR = b'{"error": {"message": "overloaded", "code": 529}}'
NO_COMPLETIONS = {
    ERROR: "overloaded",
    b'{"error": "no such lora"}': "no such lora",
    b'{"choices": []}': "choices",
    b'{"choices": [{}]}': "choices",
    b'{"choices": [null]}': "choices",
    b'{"choices": [{"message": null, "finish_reason": "stop"}]}': "choices",
    b'{"choices": [{"message": {"content": ""}, "error": {"message": "provider down"}}]}': "provider down",
    b'{"object": "list", "data": []}': "object",
    b"<html>sign in</html>": "sign in",
    b"null": "null",
    b"": "an empty body",
}
DELTA = b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": null}]}\n\n'
NO_STREAMS = {
    b"data: " + ERROR + b"\n\n": "overloaded",
    DELTA + b"data: " + ERROR + b"\n\ndata: [DONE]\n\n": "overloaded",
    DELTA: "neither a finish reason nor [DONE]",
    b"data: [DONE]\n\n": "without a completion",
    b'data: {"choices": [], "usage": {"prompt_tokens": 3}}\n\ndata: [DONE]\n\n': "without a completion",
    b'data: {"choices": []}\n\n': "neither a finish reason nor [DONE]",
}


@asynccontextmanager
async def bench_with(*replies: Reply, rules: CallRules = NO_RULES) -> AsyncIterator[tuple[Bench, ScriptedServer]]:
    """A Job Runtime in front of a server with these replies, then `ok`."""

    def script(call: ScriptedCall) -> Reply:
        return replies[call.number] if call.number < len(replies) else Reply()

    async with ScriptedServer(script) as server, running_bench(rules, policy_url=server.url) as bench:
        yield bench, server


def client(trajectory: Trajectory, max_retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=trajectory.base_url, api_key="unused", max_retries=max_retries)


async def streamed_text(trajectory: Trajectory) -> str:
    """The text of a streamed reply, as an agent adds it up."""
    async with client(trajectory) as agent:
        stream = await agent.chat.completions.create(model="default", messages=ASK, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@pytest.mark.parametrize("body", NO_COMPLETIONS)
async def test_a_200_that_is_no_completion_is_an_error_of_the_policy_that_the_agent_sees(body: bytes) -> None:
    async with bench_with(Reply(raw=body)) as (bench, _):
        trajectory = bench.open()
        async with client(trajectory) as agent:
            with pytest.raises(openai.InternalServerError, match="not a completion") as caught:
                await agent.chat.completions.create(model="default", messages=ASK)
    assert caught.value.status_code == 502
    assert NO_COMPLETIONS[body] in str(caught.value)
    (turn,) = trajectory.turns
    assert (turn.status, turn.is_answered, turn.reply) == (502, False, b"")
    assert trajectory.policy_error is not None
    assert trajectory.policy_error.kind == "bad_reply"
    assert trajectory.policy_error.message == turn.error
    assert NO_COMPLETIONS[body] in str(turn.error)


@pytest.mark.parametrize("body", NO_STREAMS)
async def test_a_stream_that_is_no_completion_raises_in_the_agent_and_is_no_turn(body: bytes) -> None:
    async with bench_with(Reply(raw=body)) as (bench, _):
        trajectory = bench.open()
        with pytest.raises(openai.APIError, match=r"overloaded|not a completion"):
            await streamed_text(trajectory)
    (turn,) = trajectory.turns
    assert (turn.status, turn.is_answered) == (502, False)
    assert NO_STREAMS[body] in str(turn.error)
    assert trajectory.policy_error is not None
    assert trajectory.policy_error.kind == "bad_reply"
    said = orjson.loads(turn.reply)[0]["content"] if turn.reply else None
    assert said == ("Hel" if body.startswith(DELTA) else None)


async def test_an_error_in_place_of_a_stream_is_an_error_too() -> None:
    async with bench_with(Reply(raw=ERROR)) as (bench, _):
        trajectory = bench.open()
        with pytest.raises(openai.InternalServerError, match="overloaded"):
            await streamed_text(trajectory)
    assert trajectory.turns[0].status == 502


async def test_a_stream_with_a_finish_reason_and_no_done_is_whole() -> None:
    end = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    async with bench_with(Reply(raw=DELTA + end)) as (bench, _):
        trajectory = bench.open()
        assert await streamed_text(trajectory) == "Hel"
    assert (trajectory.turns[0].status, trajectory.policy_error) == (200, None)


async def test_a_stream_with_done_and_no_finish_reason_is_whole() -> None:
    async with bench_with(Reply(raw=DELTA + b"data: [DONE]\n\n")) as (bench, _):
        trajectory = bench.open()
        assert await streamed_text(trajectory) == "Hel"
    assert (trajectory.turns[0].status, trajectory.policy_error) == (200, None)


async def test_the_openai_client_asks_again_and_the_rollout_keeps_the_sign() -> None:
    async with bench_with(Reply(raw=b'{"choices": []}')) as (bench, _):
        trajectory = bench.open()
        async with client(trajectory, max_retries=2) as agent:
            answer = await agent.chat.completions.create(model="default", messages=ASK)
    assert answer.choices[0].message.content == "ok"
    assert [turn.status for turn in trajectory.turns] == [502, 200]
    assert (trajectory.policy_error, trajectory.has_bad_reply) == (None, True)


@pytest.mark.parametrize("names_field", [True, False])
@pytest.mark.parametrize("refused", ["seed", "stream_options", "logprobs"])
async def test_a_field_that_heldout_adds_and_a_server_refuses_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture, refused: str, names_field: bool
) -> None:
    def script(call: ScriptedCall) -> Reply:
        if refused in call.body:
            return Reply(f"Unrecognized argument: {refused}" if names_field else "bad request", status=400)
        return Reply("fine")

    rules = CallRules(temperature=None, top_p=None, max_tokens=None, wants_logprobs=True)
    async with ScriptedServer(script) as server, running_bench(rules, policy_url=server.url) as bench:
        trajectory = bench.open(seed=7)
        assert await streamed_text(trajectory) == "fine"
        num_first = server.num_calls
        assert await streamed_text(trajectory) == "fine"
    added = {"seed", "stream_options", "logprobs"}
    assert [turn.status for turn in trajectory.turns] == [200, 200]
    assert added & set(server.calls[-1].body) == added - {refused}
    assert num_first <= (2 if names_field else 4)
    assert server.num_calls == num_first + 1
    (warning,) = [record for record in caplog.records if "refuses" in record.getMessage()]
    assert f"the model server refuses {refused} (" in warning.getMessage()


async def test_a_field_that_the_agent_sent_stays_and_its_refusal_reaches_the_agent() -> None:
    async with bench_with(Reply("no seed here", status=400)) as (bench, server):
        trajectory = bench.open(seed=7)
        async with client(trajectory) as agent:
            with pytest.raises(openai.BadRequestError, match="no seed here"):
                await agent.chat.completions.create(model="default", messages=ASK, seed=3)
    assert server.num_calls == 1


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ("maximum context length is 4096 tokens", [1, 2, 3]),  # says what is wrong
        ("bad request", [2, 3, 4]),  # sent once more without the seed, and then no more
    ],
)
async def test_refusals_for_another_reason_cost_at_most_one_search_for_a_refused_field(
    refusal: str, expected: list[int]
) -> None:
    async with (
        ScriptedServer(lambda _: Reply(refusal, status=400)) as server,
        running_bench(policy_url=server.url) as bench,
    ):
        trajectory = bench.open(seed=7)
        for calls_so_far in expected:
            async with client(trajectory) as agent:
                with pytest.raises(openai.BadRequestError, match=refusal):
                    await agent.chat.completions.create(model="default", messages=ASK)
            assert server.num_calls == calls_so_far


async def test_a_field_that_the_server_once_took_is_not_the_reason_of_a_later_refusal() -> None:
    async with bench_with(Reply(), Reply("too long", status=400)) as (bench, server):
        trajectory = bench.open(seed=7)
        async with client(trajectory) as agent:
            await agent.chat.completions.create(model="default", messages=ASK)
            with pytest.raises(openai.BadRequestError, match="too long"):
                await agent.chat.completions.create(model="default", messages=ASK)
    assert server.num_calls == 2
