"""The environment: a secret number, and an answer of higher or lower to each guess. No model, no network.

A prompt is the rules of one game, `Guess the number from 12 to 34.`; the secret is drawn from the prompt's own hash, so every
rollout of a prompt is the same game and no row has to carry the answer.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Self

PROMPT = "Guess the number from {low} to {high}."
SPARE_GUESSES = 1
"""Guesses beyond par before a game is lost: room to be slow, at a price, but not to try every number."""
_RANGE = re.compile(r"from (\d{1,9}) to (\d{1,9})")
_NUMBER = re.compile(r"\d{1,9}")


@dataclass(slots=True)
class Game:
    """One game in play."""

    low: int
    """Smallest number that the answers so far leave possible."""
    high: int
    """Largest such number."""
    secret: int
    size: int = field(init=False)
    """How many numbers the range held at the start."""
    par: int = field(init=False)
    """Guesses that halving the range needs at worst: the bits of its size."""
    guesses: int = 0
    wasted_guesses: int = 0
    """Guesses that could not be right: no number, or one that an earlier answer had ruled out."""
    is_found: bool = False
    rewards: list[float] = field(default_factory=list)
    """What each guess brought: half the share of the range that it ruled out or, if it was right, the rest of the reward."""

    def __post_init__(self) -> None:
        self.size = self.high - self.low + 1
        self.par = self.size.bit_length()

    @classmethod
    def of(cls, prompt: str) -> Self:
        """The game that a prompt describes; the same one each time.

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
        """1 for the number within par, and less for each guess more (par / guesses); the sum of `rewards`.

        A lost game earns half the share of the range that its guesses ruled out: less than any win, but better than nothing
        for a model that has yet to win one.
        """
        return math.fsum(self.rewards)

    def answer(self, reply: str) -> str:
        """What the environment says to a guess: the first whole number in `reply` counts."""
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
