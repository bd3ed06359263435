"""Reward and success so far, with intervals, for a live display: updated as each rollout finishes.

Memory is one small entry for each prompt in play; adding a rollout and reading the estimate take constant time. The values
equal those of `heldout.metrics.summary`; the intervals use the plain clustered standard error. Imports neither numpy nor scipy,
so that a job starts without waiting for them.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from heldout.metrics.settings import MetricSettings


@dataclass(frozen=True, slots=True)
class RunningEstimate:
    """The estimate so far. NaN and None: not known yet."""

    num_prompts: int
    num_rollouts: int
    """Rollouts that count: all finished ones, or the scored ones when failed rollouts are excluded."""
    reward_mean: float
    reward_interval: tuple[float, float] | None
    """None with fewer than two prompts, while all rewards are equal, or when they are too large to be squared."""
    success_rate: float
    success_interval: tuple[float, float] | None
    """None with fewer than two prompts."""


@dataclass(slots=True)
class _Group:
    """One prompt's rollouts so far."""

    finished: int = 0
    counted: int = 0
    reward: float = 0.0
    success: float = 0.0


class RunningTotals:
    """Sums over the rollouts so far."""

    def __init__(self, settings: MetricSettings, group_size: int) -> None:
        """group_size: rollouts of each prompt; a prompt that has them all is forgotten."""
        self._settings = settings
        self._group_size = group_size
        self._groups: dict[int, _Group] = {}
        self._reward = _RatioSums()
        self._success = _RatioSums()

    def add(self, prompt_index: int, reward: float | None) -> None:
        """Counts one finished rollout; `reward` is None when it failed for good."""
        group = self._groups.setdefault(prompt_index, _Group())
        group.finished += 1
        if reward is not None or self._settings.failed_rollouts == "zero":
            self._count(group, reward)
        if group.finished == self._group_size:
            del self._groups[prompt_index]

    def _count(self, group: _Group, reward: float | None) -> None:
        success = float(reward is not None and reward >= self._settings.least_success)
        self._reward.add(reward or 0.0, total=group.reward, count=group.counted)
        self._success.add(success, total=group.success, count=group.counted)
        group.reward += reward or 0.0
        group.success += success
        group.counted += 1

    def estimate(self) -> RunningEstimate:
        """The numbers so far."""
        confidence = self._settings.confidence
        return RunningEstimate(
            num_prompts=self._reward.num_prompts,
            num_rollouts=self._reward.count,
            reward_mean=self._reward.mean,
            reward_interval=_reward_interval(self._reward, confidence),
            success_rate=self._success.mean,
            success_interval=_success_interval(self._success, confidence),
        )


class _RatioSums:
    """What the mean over rollouts and its clustered standard error need, kept up to date in constant time."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._sum_squares = 0.0
        self._sum_products = 0.0
        self._count_squares = 0.0
        self.count = 0
        self.num_prompts = 0

    def add(self, value: float, *, total: float, count: int) -> None:
        """total, count: of the rollouts that its prompt has so far."""
        self._sum += value
        self._sum_squares += (2 * total + value) * value
        self._sum_products += total + value * (count + 1)
        self._count_squares += 2 * count + 1
        self.count += 1
        self.num_prompts += count == 0

    @property
    def mean(self) -> float:
        return self._sum / self.count if self.count else float("nan")

    @property
    def variance(self) -> float:
        """Of the mean, clustered by prompt; needs two prompts."""
        mean = self.mean
        scatter = self._sum_squares - 2 * mean * self._sum_products + mean * mean * self._count_squares
        variance = scatter / self.count**2 * self.num_prompts / (self.num_prompts - 1)
        return 0.0 if variance < 1e-15 else variance


def _reward_interval(sums: _RatioSums, confidence: float) -> tuple[float, float] | None:
    if sums.num_prompts < 2 or (variance := sums.variance) == 0:
        return None
    half = _student_quantile(confidence, sums.num_prompts - 1) * math.sqrt(variance)
    if not math.isfinite(half):
        return None  # squares of rewards that are beyond what a float can hold
    return sums.mean - half, sums.mean + half


def _success_interval(sums: _RatioSums, confidence: float) -> tuple[float, float] | None:
    """Wilson's limits at the effective number of rollouts: what would scatter as this rate does, at least one a prompt."""
    if sums.num_prompts < 2:
        return None
    rate, variance = sums.mean, sums.variance
    size = float(sums.num_prompts)
    if variance > 0:
        size = min(max(rate * (1 - rate) / variance, size), float(sums.count))
    z = (
        _student_quantile(confidence, sums.num_prompts - 1)
        if variance > 0
        else NormalDist().inv_cdf(0.5 + confidence / 2)
    )
    middle = (rate + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(rate * (1 - rate) / size + z * z / (4 * size * size))
    return max(0.0, middle - half) if rate > 0 else 0.0, min(1.0, middle + half) if rate < 1 else 1.0


def _student_quantile(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t: exact for 1 and 2 degrees of freedom, Cornish and Fisher's series above."""
    tail = confidence / 2
    if freedom == 1:
        return math.tan(math.pi * tail)
    if freedom == 2:
        return 2 * tail * math.sqrt(2 / (1 - 4 * tail * tail))
    z = NormalDist().inv_cdf(0.5 + tail)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom ** (power + 1)) for power, term in enumerate(terms))
