"""The benchmark's agent with aiohttp and orjson. Heldout hosts `play`; the bare loop calls `play_rollout`."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import aiohttp
import orjson

from benchmarks.workload import MODEL, observation, opening, reward, turns

_JSON = {"Content-Type": "application/json"}


async def play(payload: Mapping[str, Any]) -> dict[str, float]:
    """The entry point."""
    return {"reward": await play_rollout(payload["prompt"], payload["metadata"]["baseUrl"])}


async def play_rollout(prompt: str, base_url: str) -> float:
    """Plays one rollout against an OpenAI-compatible server and returns its reward."""
    messages: list[Any] = [message._asdict() for message in opening(prompt)]
    replies = []
    for turn in range(turns()):
        body = orjson.dumps({"model": MODEL, "messages": messages})
        async with _client().post(f"{base_url}/chat/completions", data=body, headers=_JSON) as response:
            reply = orjson.loads(await response.read())["choices"][0]["message"]["content"]
        replies.append(reply)
        messages += [{"role": "assistant", "content": reply}, observation(turn)._asdict()]
    return reward(prompt, replies)


@cache
def _client() -> aiohttp.ClientSession:
    """Shared by the rollouts of a process; made inside its loop, on first use."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
