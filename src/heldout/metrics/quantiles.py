"""Quantiles over rollouts or turns, with intervals that respect prompts."""

import math
from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.intervals import Interval, rate_interval
from heldout.metrics.table import BoolArray, FloatArray, Groups, IntArray


class Quantile(NamedTuple):
    """A quantile and how well it is known."""

    value: float
    """The least value that at least this share of the rows does not exceed."""
    interval: Interval | None
    no_interval: str | None
    """Why there is no interval; None when there is one."""


def quantile(values: FloatArray, prompt_index: IntArray, share: float, confidence: float = 0.95) -> Quantile:
    """The `share` quantile of values, such as rewards, turns or tokens, shape (n,), of rows of these prompts, shape (n,).

    The interval holds the values at which the clustered interval for the rate of rows at or below them holds `share`. Source:
    Woodruff 1952, J. Amer. Statist. Assoc. 47, 635-646; inverted as a test, as in Francisco and Fuller 1991, Ann. Statist. 19,
    454-469, since his shortcut is short of coverage in the tails. There is none where so few prompts do not show that anything
    lies beyond the quantile: with fewer than 6 prompts for the median, 36 for the 0.9 quantile (at 95%).
    Raises MetricError for no rows, NaN values, shapes that differ or a share outside (0, 1).
    """
    if values.shape != prompt_index.shape or len(values) == 0 or bool(np.isnan(values).any()):
        raise MetricError(
            f"a quantile needs numbers and their prompts; got {values.shape} values, {prompt_index.shape} prompts"
        )
    if not 0 < share < 1:
        raise MetricError(f"share is {share!r}; it must lie between 0 and 1, such as 0.5 for the median")
    ordered = np.sort(values)
    value = float(ordered[math.ceil(share * len(ordered)) - 1])
    groups = Groups.of(prompt_index)
    if groups.num_prompts < 2:
        return Quantile(value, None, "one prompt: no interval, since nothing shows how prompts differ")
    if ((1 - confidence) / 2) ** (1 / groups.num_prompts) <= max(share, 1 - share):
        reason = f"{groups.num_prompts} prompts: no interval, since values beyond all of these cannot be ruled out"
        return Quantile(value, None, reason)
    different, sizes = np.unique(ordered), groups.count()

    def limits(is_counted: BoolArray) -> Interval:
        counted = groups.count(is_counted)
        found = rate_interval(counted / sizes, confidence, successes=counted, sizes=sizes)
        return found if found is not None else Interval(0.0, 1.0)

    # The least value at which the rate at or below it may be the share, and the greatest at which the rate below it may be.
    low = bisect_left(different, True, key=lambda x: limits(values <= x).high >= share)
    high = bisect_left(different, True, key=lambda x: limits(values < x).low > share) - 1
    low, high = min(low, int(np.searchsorted(different, value))), max(high, int(np.searchsorted(different, value)))
    return Quantile(value, Interval(float(different[low]), float(different[high])), None)
