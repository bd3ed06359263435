"""Rates: means over prompts of values in [0, 1] that come from counted successes, with their limits in one run and in two."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from heldout.metrics.beta_binomial import SUCCESS_RATE, CountTables, Quantity
from heldout.metrics.differences import PairedRates
from heldout.metrics.intervals import Interval, rate_interval, rate_limits_at
from heldout.metrics.metric import Metric, PromptMean, RowMean
from heldout.metrics.sample import linearized
from heldout.metrics.table import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Rate:
    """One rate in one run, prompt by prompt; shape (num_prompts,) each."""

    values: FloatArray
    """Each prompt's unbiased estimate."""
    successes: IntArray
    sizes: IntArray
    """Rollouts."""
    quantity: Quantity = SUCCESS_RATE

    @classmethod
    def of_rows(cls, mean: RowMean, ends: Interval, places: IntArray | slice = slice(None)) -> Self:
        """The rate of rows with the greater of two values. places: the prompts to keep."""
        successes, sizes = mean.groups.count(mean.values == ends.high)[places], mean.groups.count()[places]
        return cls(linearized(successes.astype(np.float64), sizes.astype(np.float64)), successes, sizes)

    @classmethod
    def of_prompts(cls, mean: PromptMean) -> Self | None:
        """The rate of a success rate, pass@k or pass^k; None for other means."""
        if mean.quantity is None or mean.successes is None or mean.sizes is None:
            return None
        return cls(mean.values, mean.successes, mean.sizes, mean.quantity)

    def select(self, places: IntArray) -> Self:
        """The prompts at these places."""
        return type(self)(self.values[places], self.successes[places], self.sizes[places], self.quantity)

    def interval(self, confidence: float) -> Interval | None:
        """None for fewer than two prompts."""
        return rate_interval(
            self.values, confidence, successes=self.successes, sizes=self.sizes, quantity=self.quantity
        )

    def limits_at(self, tails: FloatArray) -> FloatArray:
        """Limits that leave out these tails, shape (num_tails, 2)."""
        return rate_limits_at(self.values, CountTables.of(self.successes, self.sizes), self.quantity, 1 - 2 * tails)


@dataclass(frozen=True, slots=True)
class RatePair:
    """One rate in two runs, on the same prompts."""

    base: Rate
    fine_tuned: Rate
    width: float = 1.0
    """Width of the metric's range: a difference of rates times this is a difference of the metric."""

    def limits_at(self, tails: FloatArray) -> FloatArray:
        """Limits of the metric's difference, fine-tuned minus base, shape (num_tails, 2)."""
        fewest = np.array([min(self.base.sizes.sum(), self.fine_tuned.sizes.sum())], dtype=np.float64)
        pairs = PairedRates.of(self.base.values[None, :], self.fine_tuned.values[None, :], fewest).repeat(len(tails))
        return self.width * pairs.limits(self.base.limits_at(tails), self.fine_tuned.limits_at(tails), 1 - 2 * tails)


def two_ends(metric: Metric, *values: FloatArray) -> Interval | None:
    """The two values that make a mean over rows a rate; None where the mean is not a rate.

    The ends of the metric's declared range, or 0 and 1 where both were seen. Any other two values may be two of many: rewards
    of 0 and 0.1 do not show that no reward is 1. values: of one run or of several, shape (num_rows,) each.
    """
    if metric.low is not None and metric.high is not None:
        ends = Interval(metric.low, metric.high)
    else:
        ends = Interval(0.0, 1.0)
        if not all(any(bool((rows == end).any()) for rows in values) for end in ends):
            return None
    return ends if all(bool(np.isin(rows, ends).all()) for rows in values) and ends.low < ends.high else None
