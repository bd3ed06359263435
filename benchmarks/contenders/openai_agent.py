"""The benchmark's agent with the openai client. Heldout hosts `play`; the bare loop calls `play_rollout`.

One client is shared by the rollouts of a process, as its makers advise.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from openai import AsyncOpenAI

from benchmarks.workload import MODEL, observation, opening, reward, turns


async def play(payload: Mapping[str, Any]) -> dict[str, float]:
    """The entry point."""
    return {"reward": await play_rollout(payload["prompt"], payload["metadata"]["baseUrl"])}


async def play_rollout(prompt: str, base_url: str) -> float:
    """Plays one rollout against an OpenAI-compatible server and returns its reward."""
    client = _client().with_options(base_url=base_url)
    messages: list[Any] = [message._asdict() for message in opening(prompt)]
    replies = []
    for turn in range(turns()):
        completion = await client.chat.completions.create(model=MODEL, messages=messages)
        reply = completion.choices[0].message.content
        replies.append(reply)
        messages += [{"role": "assistant", "content": reply}, observation(turn)._asdict()]
    return reward(prompt, replies)


@cache
def _client() -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0)
