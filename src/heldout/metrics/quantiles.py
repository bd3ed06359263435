"""Quantiles over rollouts or turns, with intervals that respect prompts."""

from typing import NamedTuple

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.intervals import Interval, rate_interval
from heldout.metrics.table import FloatArray, Groups, IntArray


class Quantile(NamedTuple):
    """A quantile and how well it is known."""

    value: float
    """The least value that at least this share of the rows does not exceed."""
    interval: Interval | None
    """None for fewer than two prompts."""


def quantile(values: FloatArray, prompt_index: IntArray, share: float, confidence: float = 0.95) -> Quantile:
    """The `share` quantile of values, such as rewards, turns or tokens, shape (n,), of rows of these prompts, shape (n,).

    The interval runs between the quantiles at the limits for the share of rows that do not exceed the value, which is a rate
    with its clustered interval. Source: Woodruff 1952, J. Amer. Statist. Assoc. 47, 635-646.
    Raises MetricError for no rows, NaN values, shapes that differ or a share outside (0, 1).
    """
    if values.shape != prompt_index.shape or len(values) == 0 or bool(np.isnan(values).any()):
        raise MetricError(
            f"a quantile needs numbers and their prompts; got {values.shape} values, {prompt_index.shape} prompts"
        )
    if not 0 < share < 1:
        raise MetricError(f"share is {share!r}; it must lie between 0 and 1, such as 0.5 for the median")
    ordered = np.sort(values)
    value = _at(ordered, share)
    groups = Groups.of(prompt_index)
    sizes, below = groups.count(), groups.count(values <= value)
    limits = rate_interval(below / sizes, confidence, successes=below, sizes=sizes)
    if limits is None:
        return Quantile(value, None)
    reached = float((values <= value).mean())
    # Ties make the share reached overshoot the one asked for: the limits are about the latter.
    low, high = limits.low - reached + share, limits.high - reached + share
    return Quantile(value, Interval(_at(ordered, low), _at(ordered, high)))


def _at(ordered: FloatArray, share: float) -> float:
    return float(ordered[int(np.clip(np.ceil(share * len(ordered)) - 1, 0, len(ordered) - 1))])
