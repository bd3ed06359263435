"""An agent that plays a guessing game with its model, one guess a turn, through the openai client.

It does not depend on Heldout: it takes the payload, calls the model at the given base URL and returns a reward.
"""

from functools import cache
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from game import Game

OPENING: tuple[ChatCompletionMessageParam, ...] = (
    {"role": "system", "content": "You guess a number. Reply with the number only."},
    {"role": "user", "content": "Guess the number from 3 to 17."},
    {"role": "assistant", "content": "10"},
)
"""The rules and the start of another game, which shows a small model the form of a reply."""
NEXT_GAME = "Correct. Next game. "


async def play(payload: dict[str, Any]) -> dict[str, Any]:
    """Plays the game of `payload["prompt"]` to its end.

    Returns the reward of each turn, which sum to 0 to 1 (1: found within par), and metrics: `found` (0 or 1), `guesses` and
    `wasted_guesses`. Raises ValueError for a prompt without a game, and the openai client's errors.
    """
    game = Game.of(payload["prompt"])
    model = client().with_options(base_url=payload["metadata"]["baseUrl"])
    sampling = payload["inferenceParams"]
    messages = [*OPENING, _said_by("user", NEXT_GAME + payload["prompt"])]
    while not game.is_over:
        completion = await model.chat.completions.create(
            model="default",
            messages=messages,
            temperature=sampling["temperature"],
            top_p=sampling["topP"],
            max_tokens=sampling["maxTokens"],
            stop="\n",
        )
        reply = completion.choices[0].message.content or ""
        messages += [_said_by("assistant", reply), _said_by("user", game.answer(reply))]
    return {
        "reward": game.rewards,
        "metrics": {"found": int(game.is_found), "guesses": game.guesses, "wasted_guesses": game.wasted_guesses},
    }


@cache
def client() -> AsyncOpenAI:
    """One client for the process: its connections serve every game."""
    return AsyncOpenAI(api_key="none", base_url="http://unused")


def _said_by(role: str, content: str) -> ChatCompletionMessageParam:
    return {"role": "user", "content": content} if role == "user" else {"role": "assistant", "content": content}
