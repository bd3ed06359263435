"""An agent that uses only the openai client and a base URL. It streams if the prompt says so."""

from typing import Any

from openai import AsyncOpenAI


async def solve(payload: dict[str, Any]) -> dict[str, Any]:
    """Two turns; the reward is 1 when the last reply repeats the prompt's last word."""
    prompt: str = payload["prompt"]
    messages: list[Any] = [{"role": "user", "content": prompt}]
    async with AsyncOpenAI(base_url=payload["metadata"]["baseUrl"], api_key="unused") as client:
        for _ in range(2):
            reply = await _ask(client, messages, is_streamed="stream" in prompt)
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "Go on."}]
    return {"reward": float(prompt.split()[-1] in reply)}


async def _ask(client: AsyncOpenAI, messages: list[Any], *, is_streamed: bool) -> str:
    if not is_streamed:
        answer = await client.chat.completions.create(model="default", messages=messages)
        return answer.choices[0].message.content or ""
    stream = await client.chat.completions.create(model="default", messages=messages, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
