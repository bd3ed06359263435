"""A Strands agent with a tool, its model wrapped by sagemaker-train, reporting through that package's handler."""

from typing import Any

from sagemaker.core.token_generator import generate_token
from sagemaker.train.rft import sagemaker_rft_handler
from sagemaker.train.rft.adapters.strands import wrap_model
from strands import Agent, tool
from strands.models.openai import OpenAIModel


@tool
def look(place: str) -> str:
    """Looks at a place.

    Args:
        place: Where to look.
    """
    return f"There is a key under the {place}."


@sagemaker_rft_handler  # type: ignore[untyped-decorator]
async def invoke(payload: dict[str, Any]) -> dict[str, Any]:
    """As many turns as the model takes; the reward is 1 when the last reply repeats the prompt's last word."""
    prompt: str = payload["prompt"]
    client_args = {"api_key": generate_token(region="us-west-2"), "base_url": f"{payload['metadata']['endpoint']}/v1"}
    model = wrap_model(OpenAIModel(client_args=client_args, model_id="default"))
    agent = Agent(model=model, tools=[look], callback_handler=None)
    result = await agent.invoke_async(prompt)
    return {"reward": float(prompt.split()[-1] in str(result))}
