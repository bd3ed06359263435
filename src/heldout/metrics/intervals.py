"""Intervals for means, rates and quantiles when prompts are what was sampled.

Every function takes one value for each prompt: rollouts of a prompt belong together, so they enter as their prompt's value
and their number only shows in how much these values scatter. docs/statistics.md says which method is used where, why, and
what coverage was measured.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from heldout.metrics.table import FloatArray


class Interval(NamedTuple):
    """Both ends belong to the interval."""

    low: float
    high: float


def rate_interval(values: FloatArray, confidence: float, *, num_rollouts: int) -> Interval | None:
    """Interval for the mean of per-prompt values in [0, 1]: success rates, pass@k, pass^k.

    values: shape (num_prompts,). num_rollouts: rollouts behind them; no interval is narrower than that many independent
    rollouts would give. None for fewer than two prompts.

    Clopper-Pearson limits at an effective number of rollouts: the number of independent rollouts whose mean would scatter
    as these prompts' mean does, reduced for the uncertainty of that scatter (Korn and Graubard 1998, Survey Methodology
    24, 193-201), and never below the number of prompts, since no distribution on [0, 1] scatters more than one all-or-nothing
    rollout a prompt.
    """
    num_prompts = len(values)
    if num_prompts < 2:
        return None
    mean = float(np.clip(values.mean(), 0.0, 1.0))
    variance = float(values.var(ddof=1)) / num_prompts
    freedom = _degrees_of_freedom(values) if variance > 0 else num_prompts - 1.0
    return limits_at_size(mean, variance, freedom, confidence, num_prompts, num_rollouts)


def limits_at_size(
    mean: float, variance: float, freedom: float, confidence: float, num_prompts: int, num_rollouts: int
) -> Interval:
    """The interval of `rate_interval` from a mean in [0, 1], the variance of that mean and the variance's degrees of freedom."""
    if variance == 0:
        size = float(num_prompts if mean in (0.0, 1.0) else num_rollouts)
    else:
        z = special.ndtri(0.5 + confidence / 2)
        t = special.stdtrit(freedom, 0.5 + confidence / 2)
        size = float(np.clip(mean * (1 - mean) / variance * (z / t) ** 2, num_prompts, num_rollouts))
    return _clopper_pearson(mean * size, size, confidence)


def mean_interval(values: FloatArray, confidence: float) -> Interval | None:
    """Interval for the mean of per-prompt values of any size, skewness respected.

    values: shape (num_prompts,). None for fewer than two prompts or when all values are equal.

    Student's t with Hall's cubic correction for skewness (Hall 1992, J. R. Statist. Soc. B 54, 221-228).
    """
    num_prompts = len(values)
    if num_prompts < 2 or float(values.min()) == float(values.max()):
        return None
    error = float(values.std(ddof=1)) / np.sqrt(num_prompts)
    slope = _skewness(values) / np.sqrt(num_prompts)
    quantile = float(special.stdtrit(num_prompts - 1, 0.5 + confidence / 2))
    mean = float(values.mean())
    return Interval(mean - error * _inverse_hall(quantile, slope), mean - error * _inverse_hall(-quantile, slope))


def _degrees_of_freedom(values: FloatArray) -> float:
    """Of the sample variance, by matching its variance to that of a chi-square: 2 n / (kurtosis - 1), at most n - 1."""
    num_prompts = len(values)
    squares = np.square(values - values.mean())
    kurtosis = float(np.square(squares).mean()) / float(squares.mean()) ** 2
    if kurtosis <= 1:
        return num_prompts - 1.0
    return float(np.clip(2 * num_prompts / (kurtosis - 1), 1.0, num_prompts - 1))


def _clopper_pearson(successes: float, size: float, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low = 0.0 if successes <= 0 else float(special.betaincinv(successes, size - successes + 1, tail))
    high = 1.0 if successes >= size else float(special.betaincinv(successes + 1, size - successes, 1 - tail))
    return Interval(low, high)


def _skewness(values: FloatArray) -> float:
    centred = values - values.mean()
    return float(np.mean(centred**3) / np.mean(centred**2) ** 1.5)


def _inverse_hall(quantile: float, slope: float) -> float:
    if abs(slope) < 1e-9:
        return quantile
    return float(3 / slope * (np.cbrt(1 + slope * (quantile - slope / 6)) - 1))
