"""Uncertainty of a number if the same prompts were played again.

The intervals of `heldout.metrics.intervals` answer "what would it be on prompts like these?": prompts are a sample. Where the
prompts are the benchmark, as in a fixed test set or in CI, the question is "what would it be on these very prompts?". Then only
rollouts vary, and differences between prompts do not matter. Groups of one rollout do not show this variation.

Method: the unbiased variance within each prompt, added up, plus the square of the step by which one rollout can move the number:
if all rollouts of each prompt agree, a rerun may still differ. Coverage measured by simulation: docs/explanation/statistics.md.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from heldout.metrics.metric import Metric, PromptMean, Result, RowMean
from heldout.metrics.pass_k import pass_at_k_by_prompt, pass_power_k_by_prompt
from heldout.metrics.sample import Sample
from heldout.metrics.table import FloatArray


@dataclass(frozen=True, slots=True)
class Rerun:
    """The uncertainty of a number on these very prompts."""

    error: float
    """Standard error of the number as an estimate of the mean of endless reruns of these prompts."""
    interval: tuple[float, float]
    """Interval for the mean of endless reruns of these prompts."""

    def flip_chance(self, distance: float) -> float:
        """The chance that one rerun of these prompts moves the number by `distance` or more towards a bound.

        The rerun and the run differ by independent errors, so their difference has twice the variance of either.
        """
        return NormalDist().cdf(-abs(distance) / (math.sqrt(2) * self.error))


def rerun_of(metric: Metric, result: Result, sample: Sample, confidence: float) -> Rerun | None:
    """The uncertainty on these very prompts; None where groups do not show it, and for a metric that is not a mean over rollouts.

    A mean over rollouts needs a prompt with two rollouts; pass@k and pass^k need 2k rollouts of every prompt.
    """
    match result:
        case RowMean() if len(result.values) == sample.num_rollouts:
            found = _of_rows(result)
            value = float(result.values.mean())
        case PromptMean():
            found = _of_rates(result)
            value = float(result.values.mean())
        case _:
            return None
    if found is None:
        return None
    variance, step = found
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * math.hypot(math.sqrt(variance), z * step)
    error = math.hypot(math.sqrt(variance), step)
    if not math.isfinite(half) or error == 0:
        return None
    low = value - half if metric.low is None else max(value - half, metric.low)
    high = value + half if metric.high is None else min(value + half, metric.high)
    return Rerun(error, (low, high))


def _of_rows(mean: RowMean) -> tuple[float, float] | None:
    """The variance of the mean given its prompts, and the step by which one row can move it."""
    sizes = mean.groups.count()
    several = sizes > 1
    if not several.any():
        return None
    means = mean.groups.sum(mean.values) / sizes
    squares = mean.groups.sum(np.square(mean.values - means[mean.groups.of_row]))
    variances = np.full(len(sizes), float((squares[several] / (sizes[several] - 1)).mean()))
    variances[several] = squares[several] / (sizes[several] - 1)
    number = len(mean.values)
    return float((variances * sizes).sum()) / number**2, float(np.ptp(mean.values)) / number


def _of_rates(mean: PromptMean) -> tuple[float, float] | None:
    """The variance of pass@k or pass^k given its prompts, and the step by which one rollout can move it.

    It is unbiased: the squared estimate less an unbiased estimate of the square, which needs two disjoint draws of k rollouts.
    """
    if mean.quantity is None or mean.successes is None or mean.sizes is None:
        return None
    k, sizes = mean.quantity.k, mean.sizes
    if int(sizes.min()) < 2 * k:
        return None
    drawn, twice = (_none_of(mean, k), _none_of(mean, 2 * k))
    variance = max(0.0, float((np.square(drawn) - twice).sum())) / len(sizes) ** 2
    return variance, k / float(sizes.mean()) / len(sizes)


def _none_of(mean: PromptMean, k: int) -> FloatArray:
    """Each prompt's chance that k rollouts all succeed (of pass^k) or all fail (of pass@k)."""
    assert mean.quantity is not None  # the caller has checked them
    assert mean.successes is not None
    assert mean.sizes is not None
    if mean.quantity.is_power:
        return pass_power_k_by_prompt(mean.successes, mean.sizes, k)
    return 1 - pass_at_k_by_prompt(mean.successes, mean.sizes, k)
