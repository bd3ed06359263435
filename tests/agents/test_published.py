"""Agents written for the published packages, unmodified: bedrock-agentcore, sagemaker-train, Strands, openai."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest

from heldout.agents.base import Invocation, Outcome
from tests.support.agents_support import JOB_ARN, ScriptedRuntime, attempt, hosted, scripted_runtime

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDHELDOUT", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-west-2"}


@pytest.fixture
async def runtime() -> AsyncIterator[ScriptedRuntime]:
    """A scripted stand-in for the Job Runtime."""
    async with scripted_runtime() as runtime:
        yield runtime


def played_at(runtime: ScriptedRuntime, prompt: str, *, timeout_seconds: float = 60) -> Invocation:
    """An attempt whose metadata point at `runtime`."""
    metadata = {"endpoint": runtime.url, "baseUrl": f"{runtime.url}/v1"}
    return attempt(prompt, timeout_seconds=timeout_seconds, metadata=metadata)


async def test_an_agent_that_knows_only_a_base_url_plays_streaming_or_not(runtime: ScriptedRuntime) -> None:
    async with hosted("openai_agent.py:solve") as agent:
        for prompt in ("say cheese", "stream cheese"):
            assert (await agent.invoke(played_at(runtime, prompt))).body == {"reward": 1.0}
    is_streamed = [bool(body.get("stream")) for body in runtime.bodies("/v1/chat/completions")]
    assert is_streamed == [False, False, True, True]


@pytest.mark.parametrize("name", ["app", "invoke"])
async def test_an_agentcore_app_plays_as_the_app_or_by_its_function(runtime: ScriptedRuntime, name: str) -> None:
    async with hosted(f"agentcore_app.py:{name}") as agent:
        invocations = [played_at(runtime, f"number-{n} cheese") for n in range(5)]
        results = await asyncio.gather(*(agent.invoke(invocation) for invocation in invocations))
        for n, (invocation, result) in enumerate(zip(invocations, results, strict=True)):
            assert result.body == {"reward": 1.0, "session": invocation.trajectory_id}
            assert f"playing number-{n} cheese\n" in result.output
        raised = await agent.invoke(played_at(runtime, "raise"))
        assert raised.outcome is Outcome.RAISED
        assert "the agent's own words" in raised.message
        assert "ValueError" in raised.output
        assert not await agent.is_busy()
        await agent.invoke(played_at(runtime, "background"))
        assert await agent.is_busy()


@pytest.mark.slow
async def test_an_agentcore_app_whose_own_loop_is_blocked_loses_its_worker(runtime: ScriptedRuntime) -> None:
    async with hosted("agentcore_app.py:app") as agent:
        blocked = asyncio.create_task(agent.invoke(played_at(runtime, "block", timeout_seconds=1)))
        other = asyncio.create_task(agent.invoke(played_at(runtime, "block")))
        assert (await blocked).outcome is Outcome.LOST
        assert (await other).outcome is Outcome.LOST
        assert (await agent.invoke(played_at(runtime, "say cheese"))).outcome is Outcome.RETURNED


@pytest.mark.slow
async def test_an_agent_on_sagemaker_trains_handler_reports_by_itself(runtime: ScriptedRuntime) -> None:
    async with hosted("rft_handler_agent.py:app", environment=CREDENTIALS) as agent:
        invocation = played_at(runtime, "say cheese")
        result = await agent.invoke(invocation)
        assert result.body == {"reward": 1.0, "metrics": {"letters": 20}}
        await agent.invoke(played_at(runtime, "error"))
        assert (await agent.invoke(played_at(runtime, "raise"))).outcome is Outcome.RAISED
    (sent,) = runtime.headers("/v1/chat/completions")
    assert sent["x-amzn-sagemaker-job-arn"] == JOB_ARN
    assert sent["x-amzn-sagemaker-trajectory-id"] == invocation.trajectory_id
    token = sent["authorization"].removeprefix("Bearer sagemaker-api-key-")
    assert b"AKIDHELDOUT" in base64.b64decode(token)
    completed, rewarded = runtime.bodies("/complete-rollout"), runtime.bodies("/update-reward")
    assert [body["Status"] for body in completed] == ["ready", "failed", "failed"]
    assert [body["Rewards"] for body in rewarded] == [[1.0], [0.0], [0.0]]
    assert completed[0]["TrajectoryId"] == invocation.trajectory_id


@pytest.mark.slow
async def test_a_strands_agent_with_a_wrapped_model_plays_its_turns(runtime: ScriptedRuntime) -> None:
    call = {"name": "look", "arguments": json.dumps({"place": "mat"})}
    tool_call = {"index": 0, "id": "call-1", "type": "function", "function": call}
    runtime.replies.insert(0, {"role": "assistant", "content": None, "tool_calls": [tool_call]})
    async with hosted("strands_agent.py:invoke", environment=CREDENTIALS) as agent:
        invocation = played_at(runtime, "find cheese")
        result = await agent.invoke(invocation)
    assert result.body == {"reward": 1.0}, result
    first, second = runtime.bodies("/v1/chat/completions")
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.5, 0.9, 64)
    assert "There is a key under the mat." in json.dumps(second["messages"])
    sent = runtime.headers("/v1/chat/completions")
    assert {headers["x-amzn-sagemaker-trajectory-id"] for headers in sent} == {invocation.trajectory_id}
    assert runtime.bodies("/update-reward")[0]["Rewards"] == [1.0]
