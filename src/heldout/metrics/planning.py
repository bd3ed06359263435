"""How large must an evaluation be? Prompts and rollouts for a difference to be seen, and where the next rollout helps most.

Two runs are compared prompt by prompt. The variance of the difference of two means over P prompts with groups of g is
(between + within / g) / P: `between` is how much the true difference varies from prompt to prompt, `within` how much rollouts
of one prompt vary, added over both runs. Bigger groups shrink only the second part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from heldout.errors import MetricError
from heldout.metrics.detection import least_prompts
from heldout.metrics.sample import Sample
from heldout.metrics.table import FloatArray

GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64)
LEAST_PROMPTS = 10
"""Plans are not made for fewer: with so few prompts, power depends on how differences are distributed, not only on how much
they vary."""
MOST_PROMPTS = 10_000_000
"""A difference that needs more prompts than this is reported as out of reach."""

_ABSCISSAE, _HALF_WEIGHTS = np.polynomial.legendre.leggauss(128)
_NODES, _WEIGHTS = (_ABSCISSAE + 1) / 2, _HALF_WEIGHTS / 2
"""Gauss-Legendre quadrature on (0, 1), to integrate over quantiles of a chi-square."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the uncertainty of a difference between two runs comes from, in squared units of the metric."""

    between: float
    """Variance, over prompts, of the true difference between the two policies on a prompt."""
    within: float
    """Mean variance of one rollout around its prompt's true value, summed over both runs."""

    def error(self, num_prompts: int, group_size: int) -> float:
        """Standard error of the difference with so many prompts and rollouts of each, in both runs."""
        return float(np.sqrt((self.between + self.within / group_size) / num_prompts))


def spread_from_rates(rate: float, difference: float, *, correlation: float, likeness: float = 0.5) -> Spread:
    """Spread of success rates that are assumed: `rate` before, `rate + difference` after.

    correlation: between rollouts of one prompt (the share of the variance that is due to prompts), in [0, 1].
    likeness: correlation of the two policies' success rates over prompts; 1 when the same prompts are hard for both.
    Raises MetricError for rates, correlations or likeness that cannot be.
    """
    _check_range("rate", rate, 0, 1)
    _check_range("rate + difference", rate + difference, 0, 1)
    _check_range("correlation", correlation, 0, 1)
    _check_range("likeness", likeness, -1, 1)
    before, after = rate * (1 - rate), (rate + difference) * (1 - rate - difference)
    between = correlation * (before + after - 2 * likeness * float(np.sqrt(before * after)))
    return Spread(between=between, within=(1 - correlation) * (before + after))


def spread_from_run(pilot: Sample, *, of_success: bool, likeness: float = 0.5) -> Spread:
    """Spread judged from one pilot run, taking the other run to vary as much. likeness: see `spread_from_rates`.

    of_success: of the success rate; otherwise of the mean reward.
    Raises MetricError for a pilot of fewer than two prompts, or without a prompt of two rollouts.
    """
    between, within = _components(pilot, of_success)
    return Spread(between=2 * (1 - likeness) * between, within=2 * within)


def spread_from_pair(base: Sample, fine_tuned: Sample, *, of_success: bool) -> Spread:
    """Spread judged from two pilot runs of the same prompts, as `heldout.metrics.pairing` aligns them.

    Raises MetricError as `spread_from_run`, or when the prompts differ.
    """
    if not np.array_equal(base.groups.prompt_index, fine_tuned.groups.prompt_index):
        raise MetricError("the two pilot runs have different prompts; pair them first")
    (_, within_base), (_, within_tuned) = _components(base, of_success), _components(fine_tuned, of_success)
    differences = _means(fine_tuned, of_success) - _means(base, of_success)
    noise = float((within_base / base.sizes + within_tuned / fine_tuned.sizes).mean())
    between = max(0.0, float(differences.var(ddof=1)) - noise)
    return Spread(between=between, within=within_base + within_tuned)


@dataclass(frozen=True, slots=True)
class PlanOption:
    """One way to see the difference with the power asked for."""

    group_size: int
    num_prompts: int
    power: float

    @property
    def num_rollouts(self) -> int:
        """Of each run."""
        return self.group_size * self.num_prompts


@dataclass(frozen=True, slots=True)
class Plan:
    """What an evaluation needs."""

    difference: float
    power: float
    confidence: float
    options: tuple[PlanOption, ...]
    """By group size; sizes with which the difference is out of reach are missing."""
    recommended: PlanOption | None
    """The option with the fewest rollouts; None when none is within reach."""
    advice: str
    """One line for a person."""


def plan(
    spread: Spread,
    difference: float,
    *,
    power: float = 0.8,
    confidence: float = 0.95,
    group_sizes: Sequence[int] = GROUP_SIZES,
    max_prompts: int | None = None,
) -> Plan:
    """Prompts needed, for each group size, to show a true `difference` with probability `power`.

    max_prompts: how many prompts there are; group sizes that need more are out of reach.
    Raises MetricError for a difference of 0, a power outside (0.05, 1) or group sizes below 1.
    """
    if difference == 0 or not np.isfinite(difference):
        raise MetricError(f"difference is {difference!r}; plan for a difference that is not 0")
    _check_range("power", power, 0.05, 0.9999)
    if not group_sizes or min(group_sizes) < 1:
        raise MetricError(f"group sizes are {tuple(group_sizes)!r}; each must be an integer from 1 up")
    most = MOST_PROMPTS if max_prompts is None else max_prompts
    options = tuple(
        PlanOption(size, prompts, power_of(spread, prompts, size, difference, confidence=confidence))
        for size in sorted(group_sizes)
        if (prompts := _prompts_needed(spread, size, difference, power, confidence, most)) is not None
    )
    recommended = min(options, key=lambda option: option.num_rollouts, default=None)
    advice = _advice(spread, difference, power, confidence, recommended, max_prompts)
    return Plan(difference, power, confidence, options, recommended, advice)


def power_of(
    spread: Spread, num_prompts: int, group_size: int, difference: float, *, confidence: float = 0.95
) -> float:
    """Chance that a true `difference` is shown: the p-value of the comparison is at most 1 - confidence.

    From the noncentral t distribution with num_prompts - 1 degrees of freedom, which the sign-flip test follows closely.
    """
    if num_prompts < least_prompts(confidence):
        return 0.0
    error = spread.error(num_prompts, group_size)
    if error == 0:
        return 1.0
    # The test rejects when (z + shift) / s exceeds the limit, z normal and s the root of a chi-square over its freedom.
    freedom, shift = num_prompts - 1, abs(difference) / error
    limit = special.stdtrit(freedom, 0.5 + confidence / 2)
    scatter = np.sqrt(2 * special.gammaincinv(freedom / 2, _NODES) / freedom)
    return float(_WEIGHTS @ (special.ndtr(shift - limit * scatter) + special.ndtr(-shift - limit * scatter)))


def smallest_difference(
    spread: Spread, num_prompts: int, group_size: int, *, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """The true difference that such an evaluation shows with probability `power`; None with too few prompts for any."""
    if num_prompts < least_prompts(confidence):
        return None
    low, high = 0.0, 100 * spread.error(num_prompts, group_size)
    for _ in range(60):
        middle = (low + high) / 2
        if power_of(spread, num_prompts, group_size, middle, confidence=confidence) < power:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True)
class NextRollouts:
    """What twice as many rollouts would do to an evaluation's standard error."""

    error: float
    error_with_twice_the_prompts: float
    error_with_twice_the_group: float
    prompt_share: float
    """Share of the variance that only more prompts can shrink, in [0, 1]."""
    advice: str


def next_rollouts(spread: Spread, num_prompts: int, group_size: int) -> NextRollouts:
    """Where the next rollout is best spent."""
    error = spread.error(num_prompts, group_size)
    bigger = spread.error(num_prompts, 2 * group_size)
    total = spread.between + spread.within / group_size
    share = spread.between / total if total > 0 else 0.0
    advice = (
        f"{share:.0%} of the variance is between prompts: twice the prompts cuts the error by 29%, "
        f"twice the group size by {1 - bigger / error if error else 0:.0%}"
    )
    return NextRollouts(error, spread.error(2 * num_prompts, group_size), bigger, share, advice)


def _components(sample: Sample, of_success: bool) -> tuple[float, float]:
    """Variance of the prompts' true values, and mean variance within prompts, by analysis of variance."""
    several = sample.sizes > 1
    if len(sample.sizes) < 2 or not several.any():
        raise MetricError(
            f"the pilot has {len(sample.sizes)} prompts, {int(several.sum())} of them with two rollouts or more; planning needs"
            " two prompts and some with two rollouts, or assumed rates"
        )
    means = _means(sample, of_success)
    values = sample.is_success.astype(np.float64) if of_success else sample.rewards
    squares = sample.groups.sum(np.square(values - means[sample.groups.of_row]))
    within = float((squares[several] / (sample.sizes[several] - 1)).mean())
    between = float(means.var(ddof=1)) - within * float((1 / sample.sizes).mean())
    return max(0.0, between), within


def _means(sample: Sample, of_success: bool) -> FloatArray:
    return sample.success_rates if of_success else sample.reward_means


def _prompts_needed(
    spread: Spread, group_size: int, difference: float, power: float, confidence: float, most: int
) -> int | None:
    def is_enough(num_prompts: int) -> bool:
        return power_of(spread, num_prompts, group_size, difference, confidence=confidence) >= power

    low, high = LEAST_PROMPTS - 1, LEAST_PROMPTS
    while not is_enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high if high <= most else None


def _advice(
    spread: Spread,
    difference: float,
    power: float,
    confidence: float,
    recommended: PlanOption | None,
    max_prompts: int | None,
) -> str:
    if recommended is not None:
        return (
            f"{recommended.num_prompts} prompts x {recommended.group_size} rollouts in each run show a difference of"
            f" {abs(difference):g} with probability {recommended.power:.2f}"
        )
    if max_prompts is None:
        return f"a difference of {abs(difference):g} is out of reach of {MOST_PROMPTS:,} prompts"
    endless = smallest_difference(Spread(spread.between, 0.0), max_prompts, 1, power=power, confidence=confidence)
    if endless is None:
        return f"{max_prompts} prompts cannot show any difference; at least {least_prompts(confidence)} are needed"
    if endless < abs(difference):
        return f"{max_prompts} prompts need larger groups than these to show a difference of {abs(difference):g}"
    return (
        f"{max_prompts} prompts cannot show a difference of {abs(difference):g} however large the groups: prompts differ too"
        f" much, and the smallest difference they could show is {endless:.2g}; find more prompts"
    )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise MetricError(f"{name} is {value!r}; it must be between {low:g} and {high:g}")
