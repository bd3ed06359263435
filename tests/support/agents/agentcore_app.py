"""An agent as deployed with the published bedrock-agentcore package: an app with an entry point."""

import time
from typing import Any

from bedrock_agentcore.runtime import BedrockAgentCoreApp
from openai import AsyncOpenAI

app = BedrockAgentCoreApp()


@app.entrypoint
async def invoke(payload: dict[str, Any], context: Any) -> dict[str, Any]:
    """One turn; the reward is 1 when the reply repeats the prompt's last word."""
    prompt: str = payload["prompt"]
    if prompt == "raise":
        raise ValueError("the agent's own words")
    if prompt == "block":
        time.sleep(3600)
    if prompt == "background":
        app.add_async_task("thinking on")
        return {"session": context.session_id}
    print("playing", prompt)
    async with AsyncOpenAI(base_url=payload["metadata"]["baseUrl"], api_key="unused") as client:
        answer = await client.chat.completions.create(model="default", messages=[{"role": "user", "content": prompt}])
    reply = answer.choices[0].message.content or ""
    return {"reward": float(prompt.split()[-1] in reply), "session": context.session_id}


if __name__ == "__main__":
    app.run()
