"""Intervals and limits of work at a remote location, in one record."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTimes:
    """Intervals, limits and the clock of a remote run. All times are in seconds."""

    renew_every_seconds: float = 10.0
    """Time between two renewals of a claim."""
    watch_seconds: float = 45.0
    """A claim without a renewal for this long is taken over. The time allows for several failed renewals."""
    look_every_seconds: float = 1.0
    """Time between two looks at a claim that is watched."""
    surely_old_seconds: float = 20 * 60.0
    """A claim this old needs no watch. Amazon S3 refuses clients whose clocks differ from its own by more than 15 minutes. A
    clock that is wrong by more costs its machine the claim, and no data."""
    refusal_waits_seconds: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0)
    """Waits between tries of a write that was refused although nothing has changed."""
    seal_every_seconds: float = 10.0
    """Time between two copies of finished rollouts. A lost machine loses at most the rollouts of this time."""
    finish_waits_seconds: tuple[float, ...] = (1.0, 5.0, 15.0, 60.0, 120.0)
    """Waits between tries to copy results: a night's results survive a remote place that is away for some minutes."""
    clock: Callable[[], float] = time.monotonic
    """Seconds that never go back."""
    sleep: Callable[[float], None] = time.sleep


DEFAULT_TIMES = RemoteTimes()
