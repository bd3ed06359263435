"""An agent on sagemaker-train's handler, which reports to the Job Runtime by itself, with the openai client."""

from typing import Any

from bedrock_agentcore.runtime import BedrockAgentCoreApp
from openai import AsyncOpenAI
from sagemaker.core.token_generator import generate_token
from sagemaker.train.rft import make_inference_headers, sagemaker_rft_handler

app = BedrockAgentCoreApp()


@app.entrypoint
@sagemaker_rft_handler  # type: ignore[untyped-decorator]
async def invoke(payload: dict[str, Any]) -> dict[str, Any]:
    """One turn; the reward is 1 when the reply repeats the prompt's last word. `raise` and `error` fail as their names say."""
    prompt: str = payload["prompt"]
    metadata = payload["metadata"]
    if prompt == "raise":
        raise ValueError("the agent's own words")
    if prompt == "error":
        return {"status": "error", "error": "gave up"}
    client = AsyncOpenAI(
        base_url=f"{metadata['endpoint']}/v1",
        api_key=generate_token(region="us-west-2"),
        default_headers=make_inference_headers(metadata),
    )
    async with client:
        answer = await client.chat.completions.create(model="default", messages=[{"role": "user", "content": prompt}])
    reply = answer.choices[0].message.content or ""
    return {"reward": float(prompt.split()[-1] in reply), "metrics": {"letters": len(reply)}}
