"""The same work as a verifiers taskset and harness. Runs in verifiers' own environment.

The harness plays inside verifiers' process, which its `Harness.launch` allows and which spares it a process a rollout.
"""

# verifiers is not installed where types are checked.
# mypy: disable-error-code="misc, untyped-decorator"

import json
import os
from collections.abc import Iterable
from functools import cache
from typing import Any

import aiohttp
import verifiers.v1 as vf
from openai import AsyncOpenAI

from benchmarks.workload import MODEL, observation, opening, prompt, reward, turns

PROMPTS_VARIABLE = "BENCHMARK_PROMPTS"
CLIENT_VARIABLE = "BENCHMARK_CLIENT"


class NotesTask(vf.Task[vf.TaskData]):
    """One prompt."""

    @vf.reward
    async def known_reward(self, trace: vf.Trace) -> float:
        """The reward known beforehand."""
        replies = [message.content for message in trace.branches[-1].messages if message.role == "assistant"]
        return reward(str(self.data.prompt), replies)


class NotesTaskset(vf.Taskset[NotesTask, vf.TasksetConfig]):
    """All prompts."""

    def load(self) -> Iterable[NotesTask]:
        """The prompts in order."""
        for number in range(int(os.environ[PROMPTS_VARIABLE])):
            yield NotesTask(vf.TaskData(prompt=prompt(number)), self.config.task)


class NotesHarness(vf.Harness[vf.HarnessConfig]):
    """The fixed conversation, with the openai client or with aiohttp."""

    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,  # noqa: ARG002  # the harness protocol of verifiers
        trace: vf.Trace,  # noqa: ARG002
        runtime: vf.Runtime,  # noqa: ARG002
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],  # noqa: ARG002
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Plays one rollout against the rollout's own endpoint."""
        say = _say_light if os.environ[CLIENT_VARIABLE] == "light" else _say_openai
        messages: list[Any] = [message._asdict() for message in opening(str(data.prompt))]
        for turn in range(turns()):
            reply = await say(endpoint, secret, messages)
            messages += [{"role": "assistant", "content": reply}, observation(turn)._asdict()]
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


@cache
def _openai_client() -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0)


@cache
def _light_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def _say_openai(endpoint: str, secret: str, messages: list[Any]) -> str | None:
    client = _openai_client().with_options(base_url=endpoint, api_key=secret)
    completion = await client.chat.completions.create(model=MODEL, messages=messages)
    return completion.choices[0].message.content


async def _say_light(endpoint: str, secret: str, messages: list[Any]) -> str | None:
    body = json.dumps({"model": MODEL, "messages": messages}).encode()
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    async with _light_client().post(f"{endpoint}/chat/completions", data=body, headers=headers) as response:
        reply: str = json.loads(await response.read())["choices"][0]["message"]["content"]
        return reply


__all__ = ["NotesHarness", "NotesTaskset"]
