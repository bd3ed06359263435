"""Planning: the prompts and rollouts that a difference needs to be shown, and where the next rollout helps most.

Two runs are compared prompt by prompt. The variance of the difference of two means over P prompts with groups of g is
(between + within / g) / P: `between` is how much the true difference varies from prompt to prompt, `within` how much rollouts
of one prompt vary, added over both runs. Bigger groups shrink only the second part.

Power depends on one thing more: whether the differences have a long tail on the side of the effect. If a policy gets better
where it was half good and stays as it is elsewhere, large differences raise the mean and its standard error together, and the
effect is seen more often than the variance alone says. Assumed rates say how lopsided differences are; a pilot run does not.

A difference of rates has to leave out 0 by the limits of both runs too, which near 0 and 1 and with few prompts ask for more
than the sign-flip test: `heldout.metrics.planned_rates` says how much more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.planned_rates import PlannedRates, alike_share, difficulty_quantiles
from heldout.metrics.sample import Sample
from heldout.metrics.subset_means import least_prompts
from heldout.metrics.table import FloatArray

GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64)
LEAST_PROMPTS = 20
"""Plans are not made for fewer: with so few prompts, power depends on how differences are distributed, not only on how much
they vary."""
MOST_PROMPTS = 10_000_000
"""A difference that needs more prompts than this is reported as out of reach."""

_UNSEEN_SCATTER = 4
"""Subtracted from the number of a pilot's prompts where the scatter of their contributions is judged, because few prompts scatter
too little. Chosen by simulation, see docs/explanation/statistics.md."""

_ROUNDS = 6
"""How often the smallest difference is looked for again with what the last one needs; each round comes far closer."""

_ABSCISSAE, _HALF_WEIGHTS = np.polynomial.legendre.leggauss(128)
_NODES, _WEIGHTS = (_ABSCISSAE + 1) / 2, _HALF_WEIGHTS / 2
"""Gauss-Legendre quadrature on (0, 1), to integrate over quantiles of a chi-square."""


class PilotScatter(NamedTuple):
    """Each prompt's contribution to a pilot's spread. Their scatter shows how well the pilot knows the spread."""

    between: FloatArray
    """Shape (num_prompts,); the mean estimates `Spread.between` without bias, and may be negative."""
    within: FloatArray
    """Shape (num_prompts,); the mean is `Spread.within`."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance components of a difference between two runs, in squared units of the metric."""

    between: float
    """Variance, over prompts, of the true difference between the two policies on a prompt."""
    within: float
    """Mean variance of one rollout around its prompt's true value, summed over both runs."""
    third: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Third central moment of a prompt's difference as found with groups of g: the sum of these over 1, g and g^2. Positive
    with a long tail on the side of the effect."""
    rates: PlannedRates | None = None
    """The two success rates; None for a difference of other means."""
    scatter: PilotScatter | None = field(default=None, compare=False, repr=False)
    """Of the pilot that the spread was estimated from; None when it is assumed."""

    def error(self, num_prompts: int, group_size: int) -> float:
        """Standard error of the difference with so many prompts and rollouts of each, in both runs."""
        return float(np.sqrt((self.between + self.within / group_size) / num_prompts))

    def skewness(self, group_size: int) -> float:
        """Skewness of the differences of prompts, in the direction of the effect; 0 when nothing varies."""
        variance = self.between + self.within / group_size
        third = sum(part / group_size**power for power, part in enumerate(self.third))
        return third / variance**1.5 if variance > 0 else 0.0

    def likely_range(self, group_size: int, confidence: float) -> "tuple[Spread, Spread] | None":
        """The least and the greatest spread, for groups of this size, that the pilot leaves likely; None without a pilot.

        Limits of a chi-square with as many degrees of freedom as give it the scatter of the prompts' contributions.
        Source: Satterthwaite 1946, Biometrics Bull. 2, 110-114.
        """
        from scipy import special  # not before a plan is made: see ARCHITECTURE.md, decision 12

        if self.scatter is None:
            return None
        contributions = self.scatter.between + self.scatter.within / group_size
        point = self.between + self.within / group_size
        variance = float(contributions.mean())  # without the bias of a `between` that is cut off at 0
        variance = variance if variance > 0 else point
        error = float(contributions.std(ddof=1)) / np.sqrt(max(len(contributions) - _UNSEEN_SCATTER, 1))
        freedom = 2 * variance**2 / error**2 if error > 0 else np.inf
        freedom = min(max(freedom, 1.0), len(contributions) * 1e3)
        tail = (1 - confidence) / 2
        most, least = (2 * special.gammaincinv(freedom / 2, level) for level in (tail, 1 - tail))
        low, high = (float(variance * freedom / quantile) for quantile in (least, most))
        if point == 0:
            return Spread(0.0, 0.0), Spread(max(high, 0.0), 0.0)
        return self._scaled(min(low, point) / point), self._scaled(max(high, point) / point)

    def _scaled(self, factor: float) -> "Spread":
        return Spread(factor * self.between, factor * self.within, rates=self.rates)


def spread_from_rates(rate: float, difference: float, *, correlation: float, likeness: float = 0.5) -> Spread:
    """Spread of success rates that are assumed: `rate` before, `rate + difference` after.

    correlation: between rollouts of one prompt (the share of the variance that is due to prompts), in [0, 1].
    likeness: correlation of the two policies' success rates over prompts; 1 when the same prompts are hard for both. It is an
    assumption that matters: at 1 a difference needs a fraction of the prompts that it needs at 0.
    Rates are taken to be beta-distributed over prompts; likeness comes from a share of the prompts whose order of difficulty
    is the same for both policies, the rest being drawn anew.
    Raises MetricError for rates, correlations or likeness that cannot be.
    """
    _check_range("rate", rate, 0, 1)
    _check_range("rate + difference", rate + difference, 0, 1)
    _check_range("correlation", correlation, 0, 1)
    _check_range("likeness", likeness, -1, 1)
    before, after = rate * (1 - rate), (rate + difference) * (1 - rate - difference)
    between = correlation * (before + after - 2 * likeness * float(np.sqrt(before * after)))
    third = _third_moment(rate, rate + difference, correlation, likeness)
    sign = -1.0 if difference < 0 else 1.0
    return Spread(
        between,
        (1 - correlation) * (before + after),
        (sign * third[0], sign * third[1], sign * third[2]),
        PlannedRates(rate, (correlation, correlation), likeness),
    )


def spread_from_run(pilot: Sample, *, of_success: bool, likeness: float = 0.5) -> Spread:
    """Estimate the spread from one pilot run, taking the other run to vary as much. likeness: see `spread_from_rates`.

    of_success: of the success rate; otherwise of the mean reward.
    A pilot whose rollouts agree within each prompt is fine as long as its prompts differ.
    Raises MetricError for a pilot of fewer than two prompts, without a prompt of two rollouts, or whose rollouts are all equal.
    """
    found = _components(pilot, of_success)
    if found.between == found.within == 0:
        what = ("succeed" if pilot.is_success.all() else "fail") if of_success else "have the same reward"
        raise MetricError(
            f"all rollouts of the pilot {what}, which does not show how they spread; planning needs a pilot in which they"
            " differ, or assumed rates"
        )
    scatter = PilotScatter(2 * (1 - likeness) * found.scatter.between, 2 * found.scatter.within)
    rates = PlannedRates(found.mean, (found.correlation, found.correlation), likeness) if found.is_rate else None
    return Spread(2 * (1 - likeness) * found.between, 2 * found.within, rates=rates, scatter=scatter)


def spread_from_pair(base: Sample, fine_tuned: Sample, *, of_success: bool) -> Spread:
    """Estimate the spread from two pilot runs of the same prompts, as `heldout.metrics.pairing` aligns them.

    Raises MetricError as `spread_from_run`, or when the prompts differ.
    """
    if not np.array_equal(base.groups.prompt_index, fine_tuned.groups.prompt_index):
        raise MetricError("the two pilot runs have different prompts; pair them first")
    sides = (base, fine_tuned)
    first, second = (_components(side, of_success) for side in sides)
    within_2P = (first.scatter.within, second.scatter.within)
    differences = _means(fine_tuned, of_success) - _means(base, of_success)
    squares = np.square(differences - differences.mean()) * len(differences) / (len(differences) - 1)
    between = squares - sum(within / side.sizes for within, side in zip(within_2P, sides, strict=True))
    within = within_2P[0] + within_2P[1]
    mean_between = max(0.0, float(between.mean()))
    rates = None
    if first.is_rate and second.is_rate:
        scale = 2 * float(np.sqrt(first.between * second.between))
        likeness = (first.between + second.between - mean_between) / scale if scale > 0 else 0.0
        likeness = min(max(likeness, -1.0), 1.0)
        rates = PlannedRates(first.mean, (first.correlation, second.correlation), likeness)
    spread = Spread(mean_between, float(within.mean()), rates=rates, scatter=PilotScatter(between, within))
    if spread.between == spread.within == 0:
        raise MetricError(
            f"the two pilots differ by {differences[0]:g} on every prompt, and their rollouts agree within each prompt, which"
            " does not show how differences spread; planning needs pilots whose difference varies, one pilot, or assumed rates"
        )
    return spread


@dataclass(frozen=True, slots=True)
class PlanOption:
    """A group size, and the prompts it needs to show the difference with the power asked for."""

    group_size: int
    num_prompts: int
    power: float

    @property
    def num_rollouts(self) -> int:
        """Of each run."""
        return self.group_size * self.num_prompts


@dataclass(frozen=True, slots=True)
class PilotUncertainty:
    """The uncertainty of the recommended option, from that of the pilot's spread."""

    confidence: float
    """Confidence of both ranges."""
    num_prompts: tuple[int, int | None]
    """The fewest and the most prompts that groups of the recommended size may need; None: out of reach."""
    power: tuple[float, float]
    """The least and the greatest power that the recommended prompts and rollouts may have."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Prompts and rollouts that an evaluation needs."""

    difference: float
    power: float
    confidence: float
    options: tuple[PlanOption, ...]
    """By group size; sizes with which the difference is out of reach are missing."""
    recommended: PlanOption | None
    """The option with the fewest rollouts; None when none is within reach."""
    advice: str
    """One line for a person."""
    uncertainty: PilotUncertainty | None = None
    """None without a pilot or a recommendation."""


def plan(
    spread: Spread,
    difference: float,
    *,
    power: float = 0.8,
    confidence: float = 0.95,
    group_sizes: Sequence[int] = GROUP_SIZES,
    max_prompts: int | None = None,
    pass_k: int = 1,
    extremes: Sequence[Spread] = (),
) -> Plan:
    """Prompts needed, for each group size, to show a true `difference` with probability `power`.

    max_prompts: how many prompts there are; group sizes that need more are out of reach. pass_k: the largest k of pass@k and
    pass^k that the evaluation has to give; smaller groups are left out, since k rollouts are needed for each. extremes: other
    spreads that may be true, such as those of the least and the greatest likeness; the advice says how many prompts they need.
    Raises MetricError for a difference of 0, a power outside 0.05 to 0.9999, group sizes below 1 or a pass_k below 1.
    """
    if difference == 0 or not np.isfinite(difference):
        raise MetricError(f"difference is {difference!r}; plan for a difference that is not 0")
    _check_range("power", power, 0.05, 0.9999)
    if not group_sizes or min(group_sizes) < 1:
        raise MetricError(f"group sizes are {tuple(group_sizes)!r}; each must be an integer from 1 up")
    if pass_k < 1:
        raise MetricError(f"pass_k is {pass_k!r}; it must be an integer from 1 up, such as 4 for pass^4")
    sizes = sorted({size for size in group_sizes if size >= pass_k} | ({pass_k} if pass_k > 1 else set()))
    most = MOST_PROMPTS if max_prompts is None else max_prompts
    options = tuple(
        PlanOption(size, prompts, power_of(spread, prompts, size, difference, confidence=confidence))
        for size in sizes
        if (prompts := _prompts_needed(spread, size, difference, power, confidence, most)) is not None
    )
    recommended = min(options, key=lambda option: option.num_rollouts, default=None)
    advice = _advice(spread, difference, power, confidence, recommended, max_prompts)
    uncertainty = None
    if recommended is not None:
        if pass_k > 1:
            advice += f"; smaller groups cannot give pass^{pass_k}"
        uncertainty = _uncertainty(spread, recommended, difference, power, confidence)
        advice += _uncertainty_words(uncertainty)
        size = recommended.group_size
        needed = [_prompts_needed(other, size, difference, power, confidence, MOST_PROMPTS) for other in extremes]
        advice += _range_words([recommended.num_prompts, *(n for n in needed if n is not None)])
    return Plan(difference, power, confidence, options, recommended, advice, uncertainty)


def _uncertainty(
    spread: Spread, recommended: PlanOption, difference: float, power: float, confidence: float
) -> PilotUncertainty | None:
    likely = spread.likely_range(recommended.group_size, confidence)
    if likely is None:
        return None
    least, greatest = likely
    size = recommended.group_size
    fewest = _prompts_needed(least, size, difference, power, confidence, MOST_PROMPTS)
    return PilotUncertainty(
        confidence,
        (
            recommended.num_prompts if fewest is None else fewest,
            _prompts_needed(greatest, size, difference, power, confidence, MOST_PROMPTS),
        ),
        (
            power_of(greatest, recommended.num_prompts, size, difference, confidence=confidence),
            power_of(least, recommended.num_prompts, size, difference, confidence=confidence),
        ),
    )


def _uncertainty_words(uncertainty: PilotUncertainty | None) -> str:
    if uncertainty is None:
        return ""
    (fewest, most), (least, greatest) = uncertainty.num_prompts, uncertainty.power
    prompts = f"{fewest:,} or more" if most is None else f"{fewest:,} to {most:,}"
    return (
        f"; as far as the pilot shows, {prompts} prompts may be needed, and the probability may be {least:.2f} to {greatest:.2f}"
        f" ({uncertainty.confidence:.0%})"
    )


def power_of(
    spread: Spread, num_prompts: int, group_size: int, difference: float, *, confidence: float = 0.95
) -> float:
    """Chance that a true `difference` is shown: the p-value of the comparison is at most 1 - confidence.

    From the noncentral t distribution with num_prompts - 1 degrees of freedom, which the sign-flip test follows closely. If the
    differences are skew, their mean and their scatter go together: with correlation skewness / sqrt(2 + excess kurtosis), where
    the kurtosis is taken to be that of a gamma distribution. Of success rates, the observed difference must also be
    the one from which the limits of both runs leave out 0, or larger.
    """
    needed = _errors_needed(spread, num_prompts, group_size, difference, confidence)
    return _power(spread, num_prompts, group_size, difference, confidence, needed)


def _errors_needed(spread: Spread, num_prompts: int, group_size: int, difference: float, confidence: float) -> float:
    if spread.rates is None or num_prompts < least_prompts(confidence):
        return 0.0
    return spread.rates.errors_needed(num_prompts, group_size, difference, confidence)


def _power(
    spread: Spread, num_prompts: int, group_size: int, difference: float, confidence: float, needed: float = 0.0
) -> float:
    """The power when the difference observed must also be at least this many of its standard errors."""
    from scipy import special  # not before a plan is made: see ARCHITECTURE.md, decision 12

    if num_prompts < least_prompts(confidence):
        return 0.0
    error = spread.error(num_prompts, group_size)
    if error == 0:
        return 1.0
    # The test rejects when (z + shift) / s exceeds the limit, z normal and s the root of a chi-square over its freedom, which a
    # heavy tail makes smaller. Given s, z is normal about `together` times the normal score of s.
    skewness, shift = spread.skewness(group_size), abs(difference) / error
    limit = special.stdtrit(num_prompts - 1, 0.5 + confidence / 2)
    together = skewness / np.sqrt(2 + 1.5 * skewness**2)
    freedom = (num_prompts - 1) / (1 + 0.75 * skewness**2)
    scatter = np.sqrt(2 * special.gammaincinv(freedom / 2, _NODES) / freedom)
    middle, rest = together * special.ndtri(_NODES), np.sqrt(1 - together**2)
    limits = np.maximum(limit * scatter, needed)
    seen = special.ndtr((shift + middle - limits) / rest)
    seen_reversed = special.ndtr((-shift - middle - limits) / rest)
    return float(_WEIGHTS @ (seen + seen_reversed))


def smallest_difference(
    spread: Spread, num_prompts: int, group_size: int, *, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """The true difference that such an evaluation shows with probability `power`; None with too few prompts for any."""
    if num_prompts < least_prompts(confidence):
        return None
    found = _smallest_difference(spread, num_prompts, group_size, power, confidence, needed=0.0)
    for _ in range(_ROUNDS if spread.rates is not None else 0):
        needed = _errors_needed(spread, num_prompts, group_size, found, confidence)
        found = _smallest_difference(spread, num_prompts, group_size, power, confidence, needed)
    return found


def _smallest_difference(
    spread: Spread, num_prompts: int, group_size: int, power: float, confidence: float, needed: float
) -> float:
    low, high = 0.0, (100 + needed) * spread.error(num_prompts, group_size)
    for _ in range(60):
        middle = (low + high) / 2
        if _power(spread, num_prompts, group_size, middle, confidence, needed) < power:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True)
class NextRollouts:
    """An evaluation's standard error now, and with twice as many rollouts."""

    error: float
    error_with_twice_the_prompts: float
    error_with_twice_the_group: float
    prompt_share: float
    """Share of the variance that only more prompts can shrink, in [0, 1]."""
    advice: str


def next_rollouts(spread: Spread, num_prompts: int, group_size: int) -> NextRollouts:
    """Compare twice the prompts with twice the group size, for an evaluation of this size."""
    error = spread.error(num_prompts, group_size)
    bigger = spread.error(num_prompts, 2 * group_size)
    total = spread.between + spread.within / group_size
    share = spread.between / total if total > 0 else 0.0
    advice = (
        f"{share:.0%} of the variance is between prompts: twice the prompts cuts the error by 29%, "
        f"twice the group size by {1 - bigger / error if error else 0:.0%}"
    )
    return NextRollouts(error, spread.error(2 * num_prompts, group_size), bigger, share, advice)


def _third_moment(before: float, after: float, correlation: float, likeness: float) -> tuple[float, float, float]:
    """`Spread.third` of two policies with these success rates, for a difference of after - before."""
    places = (np.arange(2_000) + 0.5) / 2_000
    p, q = (difficulty_quantiles(rate, correlation, places) for rate in (before, after))
    noise_p, noise_q = p * (1 - p), q * (1 - q)
    last = float((noise_q * (1 - 2 * q)).mean() - (noise_p * (1 - 2 * p)).mean())
    difference = q - p
    same = float(_third(difference)), 3 * float(np.cov(difference, noise_p + noise_q)[0, 1])
    anew = float(_third(q) - _third(p)), 3 * float(np.cov(q, noise_q)[0, 1] - np.cov(p, noise_p)[0, 1])
    share = alike_share(likeness, p, q)
    return share * same[0] + (1 - share) * anew[0], share * same[1] + (1 - share) * anew[1], last


def _third(values: FloatArray) -> FloatArray:
    return np.asarray(np.mean((values - values.mean()) ** 3))


class _Components(NamedTuple):
    """Variance components of one run."""

    between: float
    """Variance of the prompts' true values, at least 0."""
    within: float
    """Mean variance within prompts."""
    scatter: PilotScatter
    """The prompts' contributions to both."""
    mean: float
    is_rate: bool
    """All values are 0 or 1."""

    @property
    def correlation(self) -> float:
        """Of two rollouts of a prompt, in [0, 1]."""
        total = self.between + self.within
        return self.between / total if total > 0 else 0.0


def _components(sample: Sample, of_success: bool) -> _Components:
    """Estimates the variance components of a run by analysis of variance."""
    several = sample.sizes > 1
    if len(sample.sizes) < 2 or not several.any():
        raise MetricError(
            f"the pilot has {len(sample.sizes)} prompts, {int(several.sum())} of them with two rollouts or more; planning needs"
            " two prompts and some with two rollouts, or assumed rates"
        )
    means = _means(sample, of_success)
    values = sample.is_success.astype(np.float64) if of_success else sample.rewards
    squares = sample.groups.sum(np.square(values - means[sample.groups.of_row]))
    known = squares[several] / (sample.sizes[several] - 1)
    within = np.full(len(means), known.mean())
    within[several] = known
    between = np.square(means - means.mean()) * len(means) / (len(means) - 1) - within / sample.sizes
    # `within` may differ from the mean of `known` where sizes differ, so the variance between prompts is taken from that.
    return _Components(
        max(0.0, float(means.var(ddof=1) - known.mean() * (1 / sample.sizes).mean())),
        float(known.mean()),
        PilotScatter(between, within),
        float(means.mean()),
        bool(np.isin(values, (0.0, 1.0)).all()),
    )


def _means(sample: Sample, of_success: bool) -> FloatArray:
    return sample.success_rates if of_success else sample.reward_means


def _prompts_needed(
    spread: Spread, group_size: int, difference: float, power: float, confidence: float, most: int
) -> int | None:
    def is_enough(num_prompts: int) -> bool:
        return power_of(spread, num_prompts, group_size, difference, confidence=confidence) >= power

    def is_enough_for_flips(num_prompts: int) -> bool:
        return _power(spread, num_prompts, group_size, difference, confidence) >= power

    at_least = _least_enough(is_enough_for_flips, LEAST_PROMPTS, most)
    return None if at_least is None else _least_enough(is_enough, at_least, most)


def _least_enough(is_enough: Callable[[int], bool], start: int, most: int) -> int | None:
    """The least number from `start` to `most` that is enough, by steps that double and then by halves."""
    if start > most:
        return None
    low, high, step = start - 1, start, max(1, start // 8)
    while not is_enough(high):
        if high >= most:
            return None
        low, high, step = high, min(high + step, most), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


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
    if least_prompts(confidence) <= max_prompts < LEAST_PROMPTS:
        return f"plans are made for {LEAST_PROMPTS} prompts or more: with {max_prompts}, power hangs on how differences scatter"
    endless = smallest_difference(Spread(spread.between, 0.0), max_prompts, 1, power=power, confidence=confidence)
    if endless is None:
        return f"{max_prompts} prompts cannot show any difference; at least {least_prompts(confidence)} are needed"
    if endless < abs(difference):
        return f"{max_prompts} prompts need larger groups than these to show a difference of {abs(difference):g}"
    return (
        f"{max_prompts} prompts cannot show a difference of {abs(difference):g} however large the groups: prompts differ too"
        f" much, and the smallest difference they could show is {endless:.2g}; find more prompts"
    )


def _range_words(num_prompts: list[int]) -> str:
    fewest, most = min(num_prompts), max(num_prompts)
    return "" if fewest == most else f"; {fewest:,} to {most:,} prompts if likeness is not as assumed"


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise MetricError(f"{name} is {value!r}; it must be between {low:g} and {high:g}")
