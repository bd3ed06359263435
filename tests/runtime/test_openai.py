"""Agents that use the real openai client, with the trajectory's own base URL or the job's secret."""

import asyncio
import logging
from collections.abc import AsyncIterator

import openai
import orjson
import pytest
from openai import AsyncOpenAI

from heldout.job.conversations import conversation
from heldout.runtime import CallRules, Trajectory
from tests.support.runtime_support import Answer, Bench, Json, running_bench, turns_of

ASK: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "who is there?"}]
TOOL: openai.types.chat.ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "guess", "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}}},
}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "guess", "arguments": '{"number": 5}'}}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_bench() as running:
        yield running


def client(trajectory: Trajectory) -> AsyncOpenAI:
    """Returns the client of an agent that knows only its base URL."""
    return AsyncOpenAI(base_url=trajectory.base_url, api_key="unused")


async def ask(trajectory: Trajectory, **fields: object) -> openai.types.chat.ChatCompletion:
    async with client(trajectory) as agent:
        answer: openai.types.chat.ChatCompletion = await agent.chat.completions.create(
            model="default",
            messages=ASK,
            **fields,  # type: ignore[call-overload]
        )
        return answer


def message_of(trajectory: Trajectory) -> str | None:
    """Returns the message of the policy's latest failure."""
    return None if trajectory.policy_error is None else trajectory.policy_error.message


async def ask_once(trajectory: Trajectory) -> None:
    """Returns the client without its own retries."""
    async with client(trajectory) as agent:
        await agent.with_options(max_retries=0).chat.completions.create(model="default", messages=ASK)


async def test_an_agent_with_only_its_base_url_is_answered_and_recorded(bench: Bench) -> None:
    trajectory = bench.open()
    answer = await ask(trajectory, temperature=0.3)
    assert answer.choices[0].message.content == "Hello, who is there?"
    (turn,) = trajectory.turns
    assert orjson.loads(turn.messages) == ASK
    assert orjson.loads(turn.request) == {"model": "default", "temperature": 0.3}
    assert orjson.loads(turn.reply) == [{"role": "assistant", "content": "Hello, who is there?"}]
    assert (turn.index, turn.parent, turn.finish_reason, turn.status, turn.error) == (0, None, "stop", 200, None)
    assert (turn.prompt_tokens, turn.response_tokens, turn.logprobs) == (7, 4, None)
    assert turn.seconds > 0


async def test_an_agent_with_the_jobs_secret_names_its_trajectory_in_a_header(bench: Bench) -> None:
    trajectory = bench.open()
    agent = AsyncOpenAI(
        base_url=f"{bench.runtime.endpoint}/v1",
        api_key=bench.runtime.secret,
        default_headers={"X-Amzn-SageMaker-Trajectory-Id": trajectory.id},
    )
    async with agent:
        await agent.chat.completions.create(model="default", messages=ASK)
    assert len(trajectory.turns) == 1


async def test_only_the_served_models_name_is_changed(bench: Bench) -> None:
    sent: Json = {
        "temperature": 0.1,
        "tools": [TOOL],
        "user": "ü",
        "extra_body": {"chat_template_kwargs": {"a": [1, None]}},
    }
    await ask(bench.open(), **sent)
    assert bench.model.requests == [
        {
            "model": "served-model",
            "messages": ASK,
            "temperature": 0.1,
            "tools": [TOOL],
            "user": "ü",
            "chat_template_kwargs": {"a": [1, None]},
        }
    ]


async def test_a_streamed_reply_arrives_while_it_is_generated(bench: Bench) -> None:
    trajectory = bench.open()
    last_chunk = asyncio.Event()
    bench.model.script.append(Answer(waits_for=last_chunk))
    async with client(trajectory) as agent:
        stream = await agent.chat.completions.create(model="default", messages=ASK, stream=True)
        first = await anext(stream)
        assert first.choices[0].delta.role == "assistant"
        assert trajectory.turns == []
        last_chunk.set()
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, who is there?"
    assert all(chunk.usage is None for chunk in chunks)
    (turn,) = trajectory.turns
    assert orjson.loads(turn.reply) == [{"role": "assistant", "content": "Hello, who is there?"}]
    assert (turn.finish_reason, turn.prompt_tokens, turn.response_tokens) == ("stop", 7, 4)


async def test_an_agent_that_asks_for_usage_in_its_stream_gets_it(bench: Bench) -> None:
    async with client(bench.open()) as agent:
        stream = await agent.chat.completions.create(
            model="default", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


async def test_a_conversation_with_tools_is_stored_message_by_message(bench: Bench) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer({"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}, "tool_calls"))
    async with client(trajectory) as agent:
        messages = list(ASK)
        answer = await agent.chat.completions.create(model="default", messages=messages, tools=[TOOL])
        messages.append(answer.choices[0].message.model_dump())  # type: ignore[arg-type]
        messages.append({"role": "tool", "tool_call_id": "call_1", "content": "higher"})
        await agent.chat.completions.create(model="default", messages=messages, tools=[TOOL])
    first, second = trajectory.turns
    assert first.finish_reason == "tool_calls"
    assert (second.parent, second.shared_messages, second.request) == (0, 2, b"")
    assert orjson.loads(second.messages) == [{"role": "tool", "tool_call_id": "call_1", "content": "higher"}]
    assert conversation(trajectory.turns, 1)[1]["tool_calls"] == [TOOL_CALL]


async def test_a_streamed_tool_call_sent_back_is_the_same_message(bench: Bench) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer({"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}, "tool_calls"))
    async with client(trajectory) as agent:
        async with agent.chat.completions.stream(model="default", messages=ASK) as stream:
            message = (await stream.get_final_completion()).choices[0].message
        again = {"role": "assistant", "tool_calls": [TOOL_CALL]}
        await agent.chat.completions.create(model="default", messages=[*ASK, again])  # type: ignore[list-item]
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"number": 5}'
    assert trajectory.turns[1].shared_messages == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_all_choices_are_recorded_and_the_conversation_continues_from_the_first(
    bench: Bench, stream: bool
) -> None:
    trajectory = bench.open()
    async with client(trajectory) as agent:
        answer = await agent.chat.completions.create(model="default", messages=ASK, n=3, stream=stream)
        if isinstance(answer, openai.AsyncStream):
            assert {choice.index async for chunk in answer for choice in chunk.choices} == {0, 1, 2}
        else:
            assert len(answer.choices) == 3
    assert len(orjson.loads(trajectory.turns[0].reply)) == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("agent_asks", [False, True])
async def test_logprobs_are_recorded_and_sent_only_to_an_agent_that_requested_them(
    stream: bool, agent_asks: bool
) -> None:
    rules = CallRules(temperature=None, top_p=None, max_tokens=None, wants_logprobs=True)
    async with running_bench(rules) as bench:
        trajectory = bench.open()
        asked: Json = {"logprobs": True} if agent_asks else {}
        async with client(trajectory) as agent:
            answer = await agent.chat.completions.create(
                model="default",
                messages=ASK,
                stream=stream,
                **asked,  # type: ignore[call-overload]
            )
            chunks = [chunk async for chunk in answer] if stream else [answer]
        assert any(chunk.choices[0].logprobs for chunk in chunks) == agent_asks
        assert bench.model.requests[0]["logprobs"] is True
        assert trajectory.turns[0].logprobs == (-0.5, -0.5, -0.5, -0.5)


async def test_plain_completions_are_passed_on_and_recorded_too() -> None:
    rules = CallRules(temperature=None, top_p=None, max_tokens=None, wants_logprobs=True)
    async with running_bench(rules) as bench:
        trajectory = bench.open()
        async with client(trajectory) as agent:
            answer = await agent.completions.create(model="default", prompt="Once upon")
            await agent.completions.create(model="default", prompt=f"Once upon{answer.choices[0].text} Me.")
        assert answer.choices[0].text == "Hello, who is there?"
        assert answer.choices[0].logprobs is None
        prompts = ["Once upon", "Once uponHello, who is there? Me."]
        assert [request["prompt"] for request in bench.model.requests] == prompts
        turn = trajectory.turns[1]
        said = ["Once upon", "Hello, who is there?", " Me."]
        assert [message["content"] for message in conversation(trajectory.turns, 1)] == said
        assert orjson.loads(turn.messages) == [{"role": "user", "content": " Me."}]
        assert orjson.loads(turn.reply) == [{"role": "assistant", "content": "Hello, who is there?"}]
        assert turn.logprobs == (-0.5, -0.5, -0.5, -0.5)


@pytest.mark.parametrize("prompt", [[[1, 2], [3]], ["a", "b"], [5, 6]])
async def test_a_completions_token_ids_and_several_prompts_reach_the_model_as_they_are(
    bench: Bench, prompt: list[object]
) -> None:
    async with client(bench.open()) as agent:
        await agent.completions.create(model="default", prompt=prompt)  # type: ignore[arg-type]
    assert bench.model.requests[0]["prompt"] == prompt


async def test_a_trajectorys_seed_gives_each_call_its_own_and_yields_to_the_agents(bench: Bench) -> None:
    for trajectory in (bench.open(seed=11), bench.open(seed=11)):
        await ask(trajectory)
        await ask(trajectory)
        await ask(trajectory, seed=5)
    await ask(bench.open(seed=12))
    await ask(bench.open(seed=None))
    seeds = [request.get("seed") for request in bench.model.requests]
    assert seeds[:3] == seeds[3:6]
    assert seeds[2] == 5
    assert seeds[7] is None
    own = [seeds[0], seeds[1], seeds[6]]
    assert len(set(own)) == 3
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in own)


async def test_an_agents_own_sampling_stands_and_is_counted_and_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rules = CallRules(temperature=0.7, top_p=1.0, max_tokens=64)
    async with running_bench(rules) as bench:
        same, other = bench.open(), bench.open()
        await ask(same, temperature=0.7, top_p=1, max_completion_tokens=64)
        assert not same.sampling_differs
        with caplog.at_level(logging.WARNING, "heldout"):
            await ask(other, temperature=0.2, top_p=1)
            await ask(other, temperature=0.2, top_p=1)
        assert other.sampling_differs
        assert dict(bench.runtime.differences) == {"temperature": 2, "max_tokens": 2}
        assert bench.model.requests[1]["temperature"] == 0.2
        assert "max_tokens" not in bench.model.requests[1]
        assert [record.getMessage().split(";")[0] for record in caplog.records] == [
            "an agent calls the model with temperature 0.2 where the job has 0.7",
            "an agent calls the model with max_tokens left out where the job has 64",
        ]


async def test_enforced_sampling_is_written_into_each_call_in_the_agents_spelling() -> None:
    rules = CallRules(temperature=0.7, top_p=None, max_tokens=64, enforce_sampling=True)
    async with running_bench(rules) as bench:
        trajectory = bench.open()
        await ask(trajectory, temperature=0.2, top_p=0.5, max_completion_tokens=9000)
        await ask(trajectory)
        first, second = bench.model.requests
        assert (first["temperature"], first["top_p"], first["max_completion_tokens"]) == (0.7, 0.5, 64)
        assert "max_tokens" not in first
        assert (second["temperature"], second["max_tokens"]) == (0.7, 64)
        assert dict(bench.runtime.differences) == {}
        assert orjson.loads(trajectory.turns[0].request)["temperature"] == 0.2


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_the_policy_reaches_the_agent_unchanged_and_is_recorded(bench: Bench, stream: bool) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer(status=400, error="context length exceeded"))
    with pytest.raises(openai.BadRequestError, match="context length exceeded"):
        await ask(trajectory, stream=stream)
    (turn,) = trajectory.turns
    assert (turn.status, turn.error, turn.reply) == (400, "the policy answered 400: context length exceeded", b"")


async def test_an_unreachable_policy_is_reported_once_and_recorded_as_the_reason() -> None:
    async with running_bench(policy_url="http://127.0.0.1:1/v1") as bench:
        trajectory = bench.open()
        with pytest.raises(openai.InternalServerError, match="the policy is unavailable: no answer from") as told:
            await ask(trajectory)
        assert told.value.status_code == 503
        (turn,) = trajectory.turns
        assert turn.status == 503
        assert turn.error == message_of(trajectory) == "no answer from http://127.0.0.1:1/v1: ClientConnectorError"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_policy_that_answers_again_is_no_longer_a_reason_for_failures(bench: Bench, stream: bool) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer(status=500, error="out of memory"))
    with pytest.raises(openai.InternalServerError):
        await ask_once(trajectory)
    assert message_of(trajectory) == "the policy answered 500: out of memory"
    async with client(trajectory) as agent:
        answer = await agent.chat.completions.create(model="default", messages=ASK, stream=stream)
        if isinstance(answer, openai.AsyncStream):
            assert [chunk async for chunk in answer]
    assert trajectory.policy_error is None


async def test_an_answer_to_an_earlier_call_does_not_say_that_the_policy_is_back(bench: Bench) -> None:
    trajectory = bench.open()
    answers = asyncio.Event()
    bench.model.script += [Answer(waits_for=answers), Answer(status=500, error="out of memory")]
    earlier = asyncio.create_task(ask(trajectory))
    await bench.model.arrived.wait()
    with pytest.raises(openai.InternalServerError):
        await ask_once(trajectory)
    answers.set()
    await earlier
    assert message_of(trajectory) == "the policy answered 500: out of memory"


async def test_a_stream_that_breaks_off_raises_in_the_agent_and_keeps_what_came(bench: Bench) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer(breaks_after=3))
    async with client(trajectory) as agent:
        stream = await agent.chat.completions.create(model="default", messages=ASK, stream=True)
        with pytest.raises(openai.APIError, match="the stream broke off"):
            _ = [chunk async for chunk in stream]
    (turn,) = trajectory.turns
    assert orjson.loads(turn.reply) == [{"role": "assistant", "content": "Hello, who "}]
    assert turn.error == message_of(trajectory) == "the stream broke off"


async def test_a_disconnected_agent_frees_the_policy_and_its_turn_is_recorded(bench: Bench) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer(waits_for=asyncio.Event()))
    asking = asyncio.create_task(ask(trajectory))
    await bench.model.arrived.wait()
    asking.cancel()
    (turn,) = await turns_of(trajectory, 1)
    assert (turn.status, turn.error) == (499, "the agent hung up before the answer was complete")
    await asyncio.wait_for(bench.model.hung_up.wait(), 5)


async def test_the_part_of_a_stream_before_a_disconnect_is_recorded(bench: Bench) -> None:
    trajectory = bench.open()
    never = asyncio.Event()
    bench.model.script.append(Answer(waits_for=never))
    async with client(trajectory) as agent:
        stream = await agent.chat.completions.create(model="default", messages=ASK, stream=True)
        await anext(stream)
        await anext(stream)
        await stream.close()
    (turn,) = await turns_of(trajectory, 1)
    assert orjson.loads(turn.reply)[0]["content"].startswith("Hello, ")
    assert turn.status == 200
    never.set()


async def test_a_call_in_flight_ends_with_its_trajectory(bench: Bench) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer(waits_for=asyncio.Event()))
    asking = asyncio.create_task(ask(trajectory))
    await bench.model.arrived.wait()
    trajectory.close()
    assert [(turn.status, turn.error) for turn in trajectory.turns] == [(409, "the trajectory ended during this call")]
    with pytest.raises(openai.ConflictError, match="not in valid status"):
        await asking
    await asyncio.wait_for(bench.model.hung_up.wait(), 5)


async def test_a_stream_in_flight_ends_with_its_trajectory(bench: Bench) -> None:
    trajectory = bench.open()
    bench.model.script.append(Answer(waits_for=asyncio.Event()))
    async with client(trajectory) as agent:
        stream = await agent.chat.completions.create(model="default", messages=ASK, stream=True)
        await anext(stream)
        trajectory.close()
        with pytest.raises(openai.APIError, match="not in valid status"):
            _ = [chunk async for chunk in stream]
    assert trajectory.turns[0].index == 0


async def test_calls_made_at_once_keep_their_order_and_find_their_conversations(bench: Bench) -> None:
    trajectory = bench.open()
    slow = asyncio.Event()
    bench.model.script.append(Answer(waits_for=slow))
    first = asyncio.create_task(ask(trajectory))
    await bench.model.arrived.wait()
    await ask(trajectory)
    slow.set()
    await first
    assert [turn.index for turn in trajectory.turns] == [0, 1]
    assert [len(conversation(trajectory.turns, index)) for index in (0, 1)] == [1, 1]


async def test_a_closed_trajectory_takes_no_calls(bench: Bench) -> None:
    trajectory = bench.open()
    await ask(trajectory)
    trajectory.close()
    with pytest.raises(openai.ConflictError, match="not in valid status"):
        await ask(trajectory)
    assert len(trajectory.turns) == 1


async def test_the_served_model_is_listed(bench: Bench) -> None:
    async with client(bench.open()) as agent:
        assert [model.id async for model in agent.models.list()] == ["served-model"]
