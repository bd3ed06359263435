"""Intervals for means, rates and quantiles when prompts are what was sampled.

Rollouts of a prompt belong together: they enter as their prompt's value or counts, and their number only shows in how much
prompts scatter. docs/statistics.md says which method is used where, why, and what coverage was measured.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from heldout.metrics.beta_binomial import SUCCESS_RATE, CountTables, Quantity, posterior
from heldout.metrics.table import FloatArray, IntArray

INFORMATIVE_PROMPTS = 6
"""How many prompts that tell something (num_prompts times rate times 1 - rate) make their own scatter as trustworthy as the
beta-binomial model: with fewer the model counts for more, with many it hardly counts."""


class Interval(NamedTuple):
    """Both ends belong to the interval."""

    low: float
    high: float


def rate_interval(
    values: FloatArray, confidence: float, *, successes: IntArray, sizes: IntArray, quantity: Quantity = SUCCESS_RATE
) -> Interval | None:
    """Interval for the mean over prompts of a success rate, pass@k or pass^k.

    values: each prompt's unbiased estimate in [0, 1]; successes, sizes: the counts behind it; shape (num_prompts,) each.
    quantity: what the values estimate. None for fewer than two prompts.
    With all values 0 (or 1) the one limit that remains is exact: whatever the distribution of values on [0, 1], all n are
    0 with probability at most (1 - mean)^n.
    """
    if len(values) < 2:
        return None
    low, high = rate_limits(values[None, :], CountTables.of(successes, sizes), quantity, confidence)[0]
    return Interval(float(low), float(high))


def rate_limits(values_RP: FloatArray, counts: CountTables, quantity: Quantity, confidence: float) -> FloatArray:
    """The limits of `rate_interval` for several evaluations at once, shape (num_evaluations, 2).

    values_RP: shape (num_evaluations, num_prompts), at least two prompts. counts: the same evaluations.

    On the logit scale, between the limits of the beta-binomial model, moved so that they are about the unbiased estimate
    and not the model's, and the limits from the prompts' own scatter; the more towards the latter, the more prompts tell
    something. So few prompts get intervals that hold where scatter cannot be judged, and many get intervals that hold
    whatever the distribution of difficulty.
    """
    num_prompts = values_RP.shape[1]
    means = values_RP.mean(axis=1)
    informative = num_prompts * means * (1 - means)
    weight = (informative**2 / (informative**2 + INFORMATIVE_PROMPTS**2))[:, None]
    model = posterior(counts, quantity, confidence)
    away = (_logit(means) - _logit(model.likeliest_R))[:, None]
    moved = _logit(model.limits_R2) + (away if quantity.k == 1 else weight * away)
    scatter = _logit(_scatter_limits(values_RP, counts.rollouts_R, confidence))
    limits: FloatArray = special.expit((1 - weight) * moved + weight * scatter)
    limits = np.stack([np.minimum(limits[:, 0], means), np.maximum(limits[:, 1], means)], axis=1)
    if all(n == 1 for _, n in counts.pairs):
        limits = _clopper_pearson(means * num_prompts, np.full_like(means, num_prompts), confidence)
    bound = ((1 - confidence) / 2) ** (1 / num_prompts)
    limits[means <= 0] = 0.0, 1 - bound
    limits[means >= 1] = bound, 1.0
    return limits


def mean_interval(values: FloatArray, confidence: float) -> Interval | None:
    """Interval for the mean of per-prompt values of any size.

    values: shape (num_prompts,). None for fewer than two prompts or when all values are equal.
    """
    if len(values) < 2 or float(values.min()) == float(values.max()):
        return None
    low, high = mean_limits(values[None, :], confidence)[0]
    return Interval(float(low), float(high))


def mean_limits(values_RP: FloatArray, confidence: float) -> FloatArray:
    """The limits of `mean_interval` for several evaluations at once, shape (num_evaluations, 2).

    values_RP: shape (num_evaluations, num_prompts), not all equal in any evaluation.

    Student's t with Hall's cubic correction for skewness. On the side of the long tail, the limit is as if one more prompt had
    been seen out there: at the farthest value when the skewness is 2 or more, nearer the mean when it is less. A sample
    from a long tail shows less of the tail than there is. Source: Hall 1992, J. R. Statist. Soc. B 54, 221-228, with
    Student's quantiles in place of normal ones; the added prompt is in the spirit of Gaffke 2005, Math. Methods
    Statist. 14, 451-467.
    """
    means = values_RP.mean(axis=1)
    skewness = _skewness(values_RP)
    is_long_above = skewness > 0
    farthest = np.where(is_long_above, values_RP.max(axis=1), values_RP.min(axis=1))
    added = means + (farthest - means) * np.minimum(np.abs(skewness) / 2, 1)
    plain = _hall_limits(values_RP, confidence)
    padded = _hall_limits(np.concatenate([values_RP, added[:, None]], axis=1), confidence)
    low = np.where(is_long_above, plain[:, 0], np.minimum(plain[:, 0], padded[:, 0]))
    high = np.where(is_long_above, np.maximum(plain[:, 1], padded[:, 1]), plain[:, 1])
    return np.stack([low, high], axis=1)


def _hall_limits(values_RP: FloatArray, confidence: float) -> FloatArray:
    num_prompts = values_RP.shape[1]
    means, errors = values_RP.mean(axis=1), values_RP.std(axis=1) / np.sqrt(num_prompts - 1)
    slopes = _skewness(values_RP) / np.sqrt(num_prompts)
    quantile = float(special.stdtrit(num_prompts - 1, 0.5 + confidence / 2))
    return np.stack(
        [means - errors * _inverse_hall(quantile, slopes), means - errors * _inverse_hall(-quantile, slopes)], axis=1
    )


def _skewness(values_RP: FloatArray) -> FloatArray:
    centred = values_RP - values_RP.mean(axis=1, keepdims=True)
    skewness: FloatArray = (centred**3).mean(axis=1) / np.square(centred).mean(axis=1) ** 1.5
    return skewness


def _scatter_limits(values_RP: FloatArray, rollouts_R: FloatArray, confidence: float) -> FloatArray:
    """Clopper and Pearson's limits at an effective number of rollouts, shape (num_evaluations, 2).

    That number is how many independent rollouts would have a mean that scatters as these prompts' mean does, reduced for the
    uncertainty of that scatter. It is never below the number of prompts, since no distribution on [0, 1] scatters more than
    one all-or-nothing rollout a prompt. Source: Korn and Graubard 1998, Survey Methodology 24, 193-201; the degrees of
    freedom are those of a chi-square with the variance that the values' kurtosis gives their sample variance.
    """
    num_prompts = values_RP.shape[1]
    means = values_RP.mean(axis=1)
    squares = np.square(values_RP - means[:, None])
    variances = np.maximum(squares.mean(axis=1), 1e-18)
    kurtosis = np.square(squares).mean(axis=1) / variances**2
    freedom = np.clip(2 * num_prompts / np.maximum(kurtosis - 1, 1e-9), 1.0, num_prompts - 1)
    shrink = (special.ndtri(0.5 + confidence / 2) / special.stdtrit(freedom, 0.5 + confidence / 2)) ** 2
    sizes = np.clip(means * (1 - means) / (variances / (num_prompts - 1)) * shrink, num_prompts, rollouts_R)
    return _clopper_pearson(means * sizes, sizes, confidence)


def _clopper_pearson(successes_R: FloatArray, sizes_R: FloatArray, confidence: float) -> FloatArray:
    """Shape (num_evaluations, 2); meaningless where all or none succeeded."""
    tail = (1 - confidence) / 2
    failures_R = np.maximum(sizes_R - successes_R, 1e-9)
    successes_R = np.maximum(successes_R, 1e-9)
    low = special.betaincinv(successes_R, failures_R + 1, tail)
    high = special.betaincinv(successes_R + 1, failures_R, 1 - tail)
    return np.stack([low, high], axis=1)


def _logit(limits: FloatArray) -> FloatArray:
    logits: FloatArray = special.logit(np.clip(limits, 1e-12, 1 - 1e-12))
    return logits


def _inverse_hall(quantile: float, slopes: FloatArray) -> FloatArray:
    """Where Hall's transformation of a studentized mean equals `quantile`; the identity where nothing is skew."""
    safe = np.where(np.abs(slopes) < 1e-6, 1e-6, slopes)
    inverse: FloatArray = 3 / safe * (np.cbrt(1 + safe * (quantile - safe / 6)) - 1)
    return inverse
