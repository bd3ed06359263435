"""Retries of model calls: backoff, Retry-After and their limits. Opens no connection."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from heldout.background import backoff_seconds
from heldout.http.headers import retry_after_seconds
from heldout.policies.base import HarnessExhausted, PolicyUnavailable


@dataclass(frozen=True, slots=True)
class Retries:
    """The limits of one call's retries, with the clock, sleep and random numbers to use."""

    max_tries: int = 10
    max_waiting_seconds: float = 120.0
    """The longest total wait of one call; the model's time to answer does not count."""
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 15.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], float] = time.time
    """Unix time, seconds; read for a Retry-After that is a date."""
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    """A number in [0, 1) that spreads the waits of many calls."""


class TryFailed(Exception):
    """A try failed and may be repeated. The message continues a sentence that begins with the server's address."""

    def __init__(
        self, reason: str, *, retry_after: str | None = None, is_down: bool = False, is_exhausted: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """The Retry-After header of the reply, if there was one."""
        self.is_down = is_down
        """No connection could be made: the server is not there, rather than busy."""
        self.is_exhausted = is_exhausted
        """No connection could be made: this process has no descriptor, port or memory for one."""


class Budget:
    """The tries and waits that one call has left."""

    def __init__(self, retries: Retries, name: str) -> None:
        """name: the policy's name in error messages."""
        self._retries = retries
        self._name = name
        self.num_tries = 0
        """Tries that have failed so far."""
        self._waited = 0.0

    def spend_try(self, address: str, failure: TryFailed) -> None:
        """Count a failed try. Raises PolicyUnavailable when it was the last."""
        self.num_tries += 1
        if self.num_tries >= self._retries.max_tries:
            raise self._end(address, failure, "the most tries") from failure

    async def wait(self, address: str, failure: TryFailed) -> None:
        """Sleeps before the next try: for the server's Retry-After, else twice as long each time, with jitter.

        Raises PolicyUnavailable when the call's total wait would be too long.
        """
        asked = retry_after_seconds(failure.retry_after, self._retries.now())
        seconds = self._backoff_seconds() if asked is None else asked
        if self._waited + seconds > self._retries.max_waiting_seconds:
            limit = (
                f"the next wait of {seconds:.3g} s would pass the most waiting, {self._retries.max_waiting_seconds:g} s"
            )
            raise self._end(address, failure, limit) from failure
        self._waited += seconds
        await self._retries.sleep(seconds)

    def _backoff_seconds(self) -> float:
        first, longest = self._retries.first_wait_seconds, self._retries.longest_wait_seconds
        return backoff_seconds(first, self.num_tries - 1, longest) * (0.5 + self._retries.chance() / 2)

    def _end(self, address: str, failure: TryFailed, limit: str) -> PolicyUnavailable:
        kind = HarnessExhausted if failure.is_exhausted else PolicyUnavailable
        tries = f"{self.num_tries} {'try' if self.num_tries == 1 else 'tries'}"
        return kind(
            f"policy {self._name!r}: {address} {failure}; gave up after {tries} and {self._waited:.3g} s of waiting ({limit})"
        )
