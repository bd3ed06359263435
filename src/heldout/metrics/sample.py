"""The rollouts that count, grouped by prompt: the input of every reward metric, in one run and in a comparison."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import BoolArray, FloatArray, Groups, IntArray, RolloutTable

OVERFLOW = "added up or squared, the values are beyond what a 64-bit float can hold"
"""The reason for a number that is left out, as with rewards near 1e308."""


@dataclass(frozen=True)
class Sample:
    """Counted rollouts; a failed one that counts has reward 0 and no success."""

    rewards: FloatArray
    """Shape (n,)."""
    is_success: BoolArray
    """Shape (n,)."""
    groups: Groups

    @classmethod
    def of(cls, rollouts: RolloutTable, settings: MetricSettings) -> Self:
        """Select the rollouts that count under `settings.failed_rollouts`; there may be none."""
        counted = rollouts.is_scored if settings.failed_rollouts == "exclude" else np.ones_like(rollouts.is_scored)
        is_scored = rollouts.is_scored[counted]
        rewards = np.where(is_scored, rollouts.reward[counted], 0.0)
        is_success = is_scored & (rewards >= settings.least_success)
        return cls(rewards, is_success, Groups.of(rollouts.prompt_index[counted]))

    @property
    def num_rollouts(self) -> int:
        return len(self.rewards)

    @cached_property
    def sizes(self) -> IntArray:
        """Rollouts of each prompt, shape (num_prompts,)."""
        return self.groups.count()

    @cached_property
    def successes(self) -> IntArray:
        """Successful rollouts of each prompt, shape (num_prompts,)."""
        return self.groups.count(self.is_success)

    @cached_property
    def success_rates(self) -> FloatArray:
        """Share of each prompt's rollouts that succeeded, shape (num_prompts,)."""
        return self.successes / self.sizes

    @cached_property
    def reward_means(self) -> FloatArray:
        """Mean reward of each prompt, shape (num_prompts,)."""
        return self.groups.sum(self.rewards) / self.sizes


def linearized(sums: FloatArray, counts: FloatArray) -> FloatArray:
    """One value for each prompt; their mean is sum(sums) / sum(counts), and they scatter as this ratio does.

    sums, counts: shape (num_prompts,). The usual linearization of a ratio; for equal counts, each prompt's own mean.
    Source: Cochran 1977, Sampling Techniques, section 6.3; the clustered standard error of Miller 2024, arXiv:2411.00640,
    section 2.2, is the standard deviation of these values over the root of the number of prompts, but for a factor
    sqrt((n - 1) / n).
    """
    ratio = sums.sum() / counts.sum()
    values: FloatArray = ratio + (sums - ratio * counts) / counts.mean()
    return values
