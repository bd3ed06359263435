"""Reward and success so far, for a display that may be read, and acted on, at any time.

Easy rollouts end early, so the rollouts that have ended are not a fair sample of all. So prompts are played in random order, and
the estimate covers the prompts up to the first one in that order that is still playing. It then does not matter how long a prompt
takes. Its intervals are valid at every look (`heldout.metrics.confidence_sequence`).

Memory is one small entry for each prompt that has begun and does not count yet. numpy is imported when a run begins, so that
a job starts without waiting for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heldout.metrics.settings import MetricSettings

if TYPE_CHECKING:
    from heldout.metrics.confidence_sequence import ConfidenceSequence

REWARD_RANGE = (0.0, 1.0)
"""The range of rewards that an interval is shown for: no limit holds at every look without a known range."""


@dataclass(frozen=True, slots=True)
class RunningEstimate:
    """The estimate so far: means over prompts. NaN and None: not known yet."""

    num_prompts: int
    """The prompts that count: whole groups, from the first in the order of play on."""
    reward_mean: float
    reward_interval: tuple[float, float] | None
    """Holds at every look; None before the first prompt counts, and where `no_reward_interval` has a reason."""
    no_reward_interval: str
    success_rate: float
    success_interval: tuple[float, float] | None
    """Holds at every look; None before the first prompt counts."""


@dataclass(slots=True)
class _Group:
    """One prompt's rollouts so far."""

    finished: int = 0
    counted: int = 0
    reward: float = 0.0
    successes: int = 0


class RunningTotals:
    """The estimate of one job, brought up to date as each rollout finishes."""

    def __init__(self, settings: MetricSettings, group_size: int, order: Iterable[int]) -> None:
        """group_size: rollouts of each prompt. order: prompt indices in the order of play, read as prompts are completed."""
        from heldout.metrics.confidence_sequence import ConfidenceSequence

        self._settings = settings
        self._group_size = group_size
        self._order = iter(order)
        self._next = next(self._order, None)
        self._groups: dict[int, _Group] = {}
        low, high = REWARD_RANGE
        self._reward = _RunningMean(ConfidenceSequence(confidence=settings.confidence, low=low, high=high))
        self._success = _RunningMean(ConfidenceSequence(confidence=settings.confidence))

    def add(self, prompt_index: int, reward: float | None) -> None:
        """Counts one finished rollout; `reward` is None when it failed for good."""
        group = self._groups.setdefault(prompt_index, _Group())
        group.finished += 1
        if reward is not None or self._settings.failed_rollouts == "zero":
            group.counted += 1
            group.reward += reward or 0.0
            group.successes += reward is not None and reward >= self._settings.least_success
            self._reward.check(reward or 0.0)
        if prompt_index == self._next:
            self._count_complete()

    def estimate(self) -> RunningEstimate:
        """The numbers so far."""
        return RunningEstimate(
            num_prompts=self._reward.count,
            reward_mean=self._reward.mean,
            reward_interval=self._reward.interval(),
            no_reward_interval=self._reward.no_interval,
            success_rate=self._success.mean,
            success_interval=self._success.interval(),
        )

    def _count_complete(self) -> None:
        """Counts the prompts that are complete, up to the first one in the order of play that is not."""
        while self._next is not None:
            group = self._groups.get(self._next)
            if group is None or group.finished < self._group_size:
                return
            del self._groups[self._next]
            self._next = next(self._order, None)
            if group.counted:
                self._reward.add(group.reward / group.counted)
                self._success.add(group.successes / group.counted)


class _RunningMean:
    """A mean over prompts, and its interval for as long as no value leaves the range."""

    def __init__(self, sequence: "ConfidenceSequence") -> None:
        self._sequence = sequence
        self._sum = 0.0
        self.count = 0
        self.no_interval = ""

    def check(self, value: float) -> None:
        """Gives up the interval if a rollout's value is outside the range."""
        low, high = self._sequence.range
        if not low <= value <= high:
            self.no_interval = f"rewards leave [{low:g}, {high:g}], so their range is not known"

    def add(self, value: float) -> None:
        """value: the mean of a prompt's rollouts."""
        self._sum += value
        self.count += 1
        if not self.no_interval:
            low, high = self._sequence.range
            self._sequence.add(min(max(value, low), high))  # rounding may take a mean over the end

    @property
    def mean(self) -> float:
        return self._sum / self.count if self.count else float("nan")

    def interval(self) -> tuple[float, float] | None:
        return self._sequence.interval() if self.count and not self.no_interval else None
