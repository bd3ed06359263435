"""The environment: a secret number, and the answer `higher` or `lower` to each guess. No model, no network.

A prompt holds the rules of one game, `Guess the number from 12 to 34.`. The hash of the prompt decides the secret, so every
rollout of a prompt plays the same game and the dataset needs no column for the answer.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Self

PROMPT = "Guess the number from {low} to {high}."
SPARE_GUESSES = 1
"""Guesses beyond par before a game is lost: a slow player can still win, but not by trying every number."""
_RANGE = re.compile(r"from (\d{1,9}) to (\d{1,9})")
_NUMBER = re.compile(r"\d{1,9}")


@dataclass(slots=True)
class Game:
    """One game in play."""

    low: int
    """Smallest number that is still possible."""
    high: int
    """Largest number that is still possible."""
    secret: int
    size: int = field(init=False)
    """Count of numbers in the range at the start."""
    par: int = field(init=False)
    """The most guesses that halving the range needs: the bits of its size."""
    guesses: int = 0
    wasted_guesses: int = 0
    """Guesses that could not be right: without a number, or with one that an earlier answer had excluded."""
    is_found: bool = False
    rewards: list[float] = field(default_factory=list)
    """The reward of each guess: half the share of the range that it excluded or, if it was right, the rest of the reward."""

    def __post_init__(self) -> None:
        self.size = self.high - self.low + 1
        self.par = self.size.bit_length()

    @classmethod
    def of(cls, prompt: str) -> Self:
        """Returns the game of a prompt, the same each time.

        Raises ValueError when the prompt names no range, or an empty one.
        """
        match = _RANGE.search(prompt)
        low, high = map(int, match.groups()) if match else (1, 0)
        if low > high:
            raise ValueError(f"prompt {prompt!r} has no range to guess in; expected {PROMPT.format(low=12, high=34)!r}")
        digest = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])
        return cls(low, high, secret=low + digest % (high - low + 1))

    @property
    def is_over(self) -> bool:
        """Whether the number was found or the guesses are used up."""
        return self.is_found or self.guesses >= self.par + SPARE_GUESSES

    @property
    def reward(self) -> float:
        """The sum of `rewards`: 1 for a win within par, and par / guesses for a slower one.

        A lost game earns half the share of the range that its guesses excluded: less than any win, but more than 0, so that a
        model without wins can learn.
        """
        return math.fsum(self.rewards)

    def answer(self, reply: str) -> str:
        """Returns the environment's answer to a guess, the first whole number in `reply`."""
        match = _NUMBER.search(reply)
        guess = int(match[0]) if match else None
        left = self.high - self.low + 1
        self.guesses += 1
        self.wasted_guesses += guess is None or not self.low <= guess <= self.high
        if guess == self.secret:
            self.is_found = True
            self.rewards.append(min(1.0, self.par / self.guesses) - self.reward)
            return "Correct."
        if guess is None:
            said = "That is no number."
        elif guess < self.secret:
            self.low, said = max(self.low, guess + 1), "Higher."
        else:
            self.high, said = min(self.high, guess - 1), "Lower."
        self.rewards.append(0.5 * (left - (self.high - self.low + 1)) / self.size)
        return f"{said} From {self.low} to {self.high}."
