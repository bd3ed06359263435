"""The work that every contender does: a conversation of fixed turns for each rollout, and a reward known beforehand.

Standard library only: the peers' programs import it inside their own environments.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

TURNS_VARIABLE = "BENCHMARK_TURNS"
DEFAULT_TURNS = 8
MODEL = "scripted"
SYSTEM = (
    "You are a careful solver. Work on the problem one step at a time, say what you did and what you will do next, and"
    " wait for the answer before you go on."
)
_STORY = (
    "A store keeps its goods on numbered shelves. Each morning a clerk moves some of them to the next shelf, notes the"
    " move, and in the evening a second clerk checks the notes against the shelves and corrects what does not fit."
)
REPLY = (
    "I went through the notes once more and compared them with the shelves. Two of the moves agree, the third is off by"
    " one shelf, so I will correct it first and then look at the remaining entries in the order in which they were made."
)


class Message(NamedTuple):
    """One message of the conversation."""

    role: str
    content: str


def prompt(number: int) -> str:
    """The text of prompt `number`, from 0."""
    return f"Problem {number}. {_STORY} Which entry of day {number} must be corrected, and to which shelf?"


def turns() -> int:
    """Model calls in one rollout."""
    return int(os.environ.get(TURNS_VARIABLE, DEFAULT_TURNS))


def opening(prompt_text: str) -> list[Message]:
    """The messages of the first call."""
    return [Message("system", SYSTEM), Message("user", prompt_text)]


def observation(turn: int) -> Message:
    """What the environment says after call `turn`, from 0."""
    return Message(
        "user", f"Entry {turn} is checked, and the shelf count is now {40 + turn}. Go on with the next entry."
    )


def reward(prompt_text: str, replies: Sequence[str | None]) -> float:
    """0, 0.25, 0.5, 0.75 or 1 by the prompt's number; -1 if a reply is missing or is not what the model server says."""
    if len(replies) != turns() or any(reply != REPLY for reply in replies):
        return -1.0
    number = int(prompt_text.split(".", 1)[0].removeprefix("Problem "))
    return number % 5 / 4


def mean_reward(prompts: int) -> float:
    """What the rewards of prompts 0 to `prompts` - 1 must come out at."""
    return sum(number % 5 / 4 for number in range(prompts)) / prompts
