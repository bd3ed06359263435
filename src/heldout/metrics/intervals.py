"""Intervals for means, rates and quantiles, with prompts as the unit that was sampled.

Rollouts of a prompt belong together: they enter as their prompt's value or counts, and their number only shows in how much
prompts scatter. docs/explanation/statistics.md says which method is used where, why, and what coverage was measured.

scipy is imported where it is used, so that an evaluation starts without waiting for it.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.beta_binomial import SUCCESS_RATE, CountTables, Quantity, posterior
from heldout.metrics.table import BoolArray, FloatArray, Groups, IntArray

INFORMATIVE_PROMPTS = 6
"""How many prompts that tell something (num_prompts times rate times 1 - rate) make their own scatter as trustworthy as the
beta-binomial model: with fewer the model counts for more, with many it hardly counts."""
FEW_PROMPTS = 30
"""From here on 95% limits hold in the worst case. With fewer prompts, limits that did would be a third wider than those that hold
in most cases, so near 0 and 1 they give up to 2 points of coverage."""
FEWEST_PROMPTS = 10
"""Here limits give most; with fewer prompts still, they give no more."""
GIVEN_NEAR, GIVEN_FAR = 0.48, 0.22
"""How much, for the limit on the side of the near end and for the other one: chosen by simulation so that at 10 prompts every
setting is covered at least 92.5% of the time and, for rates between 0.1 and 0.9, limits are on average at most 1.15 times as wide
as those that know the true standard error."""
RARE_BELOW, RARE_FULLY_BELOW = 0.1, 0.05
"""Rates (or 1 minus them) for which prompts of a kind that the sample does not show are allowed for, and in full. A few prompts
that always succeed hardly matter to a higher rate; to a rate of 0.02 they may be all there is."""
RARE_BELOW_OF_K, RARE_FULLY_BELOW_OF_K = 0.25, 0.125
"""The same for pass@k and pass^k with k > 1."""


class Interval(NamedTuple):
    """Both ends belong to the interval."""

    low: float
    high: float


class Quantile(NamedTuple):
    """A quantile and how well it is known."""

    value: float
    """The least value that at least this share of the rows does not exceed."""
    interval: Interval | None
    no_interval: str | None
    """The reason for a missing interval; None when there is one."""


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
    whatever the distribution of difficulty. At rates near 0 and 1 they also leave room for kinds of prompt that so few
    prompts may not show (`_rare_kind_limits`). For pass@k and pass^k with k > 1 the interval also contains the whole
    interval from the scatter: they depend on the shape of the difficulty (prompts that always or never succeed), which
    the model assumes and the scatter shows.
    """
    return limits_of_rates(Scatter.of(values_RP), counts, quantity, np.full(len(values_RP), confidence))


def rate_limits_at(values: FloatArray, counts: CountTables, quantity: Quantity, confidences: FloatArray) -> FloatArray:
    """The limits of `rate_interval` for one evaluation at several confidences, shape (num_confidences, 2).

    values: shape (num_prompts,), at least two. counts: the same evaluation. They never widen as the confidence falls.
    """
    num_confidences = len(confidences)
    repeated = CountTables(counts.pairs, np.repeat(counts.num_prompts_RC, num_confidences, axis=0))
    return limits_of_rates(Scatter.of(values[None, :]).repeat(num_confidences), repeated, quantity, confidences)


@dataclass(frozen=True, slots=True)
class Scatter:
    """How values in [0, 1] scatter over prompts, for several evaluations; shape (num_evaluations,) each."""

    num_prompts: int
    means_R: FloatArray
    variances_R: FloatArray
    """Divided by the number of prompts."""
    kurtosis_R: FloatArray
    lowest_R: FloatArray
    highest_R: FloatArray

    @classmethod
    def of(cls, values_RP: FloatArray) -> Self:
        """values_RP: shape (num_evaluations, num_prompts)."""
        means = values_RP.mean(axis=1)
        squares = np.square(values_RP - means[:, None])
        variances = np.maximum(squares.mean(axis=1), 1e-18)
        kurtosis = np.square(squares).mean(axis=1) / variances**2
        return cls(values_RP.shape[1], means, variances, kurtosis, values_RP.min(axis=1), values_RP.max(axis=1))

    def repeat(self, times: int) -> Self:
        """Repeats each evaluation `times` times."""
        columns = (self.means_R, self.variances_R, self.kurtosis_R, self.lowest_R, self.highest_R)
        return type(self)(self.num_prompts, *(np.repeat(column, times) for column in columns))


def limits_of_rates(scatter: Scatter, counts: CountTables, quantity: Quantity, confidences_R: FloatArray) -> FloatArray:
    """The limits of `rate_limits`, given how the values scatter. confidences_R: shape (num_evaluations,)."""
    from scipy import special

    num_prompts, means = scatter.num_prompts, scatter.means_R
    half_tails_R2 = np.repeat((1 - confidences_R[:, None]) / 2, 2, axis=1)
    if all(n == 1 for _, n in counts.pairs):
        sizes = np.full_like(half_tails_R2, num_prompts)
        limits = _clopper_pearson(means[:, None] * sizes, sizes, half_tails_R2)
    else:
        informative = num_prompts * means * (1 - means)
        weight = (informative**2 / (informative**2 + INFORMATIVE_PROMPTS**2))[:, None]
        tails = _tails(means, num_prompts, confidences_R)
        model = posterior(counts, quantity, tails)
        away = (_logit(means) - _logit(model.likeliest_R))[:, None]
        moved = _logit(model.limits_R2) + (away if quantity.k == 1 else weight * away)
        of_scatter = scatter_limits(scatter, counts.rollouts_R, tails)
        limits = special.expit((1 - weight) * moved + weight * _logit(of_scatter))
        if quantity.k > 1:
            limits = _union(limits, of_scatter)
        limits = _union(limits, *_rare_kind_limits(scatter, confidences_R, quantity))
    return _exact_at_the_ends(limits, means, num_prompts, half_tails_R2[:, 0])


def _union(first_R2: FloatArray, *others_R2: FloatArray) -> FloatArray:
    """The least lower and the greatest upper limit."""
    low = np.minimum.reduce([limits[:, 0] for limits in (first_R2, *others_R2)])
    high = np.maximum.reduce([limits[:, 1] for limits in (first_R2, *others_R2)])
    return np.stack([low, high], axis=1)


def _exact_at_the_ends(limits_R2: FloatArray, means_R: FloatArray, num_prompts: int, tails_R: FloatArray) -> FloatArray:
    """With all values 0 (or 1), the exact limit: all are 0 with probability at most (1 - mean)^num_prompts."""
    bound = tails_R ** (1 / num_prompts)
    is_zero, is_one = (means_R <= 0)[:, None], (means_R >= 1)[:, None]
    limits: FloatArray = np.where(is_zero, np.stack([np.zeros_like(bound), 1 - bound], axis=1), limits_R2)
    return np.where(is_one, np.stack([bound, np.ones_like(bound)], axis=1), limits)


def mean_interval(values: FloatArray, confidence: float) -> Interval | None:
    """Interval for the mean of per-prompt values of any size.

    values: shape (num_prompts,). None where `why_no_mean_interval` has a reason.
    """
    if why_no_mean_interval(values) is not None:
        return None
    low, high = mean_limits(values[None, :], confidence)[0]
    return Interval(float(low), float(high))


def why_no_mean_interval(values: FloatArray) -> str | None:
    """Why values, shape (num_prompts,), say too little of how prompts differ for an interval; None when they say enough.

    Values that are equal but for rounding count as equal.
    """
    if len(values) < 2:
        return "one prompt: no interval, since nothing shows how prompts differ"
    ordered = np.sort(rounded(values))
    if ordered[0] == ordered[-1]:
        return f"all {len(values)} prompts have the same value: no interval, since none of it varies"
    if len(values) > 2 and (ordered[0] == ordered[-2] or ordered[1] == ordered[-1]):
        return f"all {len(values)} prompts but one have the same value: no interval, since nothing shows how such prompts differ"
    return None


def rounded(values: FloatArray) -> FloatArray:
    """Values without the last digits of the largest, in which sums of the same numbers can differ."""
    scale = float(np.abs(values).max(initial=0.0)) * 1e-12
    found: FloatArray = np.round(values / scale) * scale if 0 < scale < np.inf else values
    return found


def mean_limits(values_RP: FloatArray, confidence: float) -> FloatArray:
    """The limits of `mean_interval` for several evaluations at once, shape (num_evaluations, 2).

    values_RP: shape (num_evaluations, num_prompts), not all equal in any evaluation.

    Student's t with Hall's cubic correction for skewness. On the side of the long tail, the limit is as if two more prompts had
    been seen out there: at the farthest value when the skewness is 1.5 or more, nearer the mean when it is less. A sample
    from a long tail shows less of the tail than there is; with more than 30 prompts it shows more of it, and the limit goes
    only a part of the way. With few prompts even the skewness may not show, so each limit leaves out less than half of what
    the confidence leaves: at 10 prompts by 40%, at 30 by 8%. Source: Hall 1992, J. R. Statist. Soc. B 54, 221-228, with
    Student's quantiles in place of normal ones; the added prompts are in the spirit of Gaffke 2005, Math. Methods Statist.
    14, 451-467, and their number is chosen by simulation.
    """
    num_prompts = values_RP.shape[1]
    tail = (1 - confidence) / 2 * (1 - 0.4 * min(1.0, FEWEST_PROMPTS / num_prompts) ** 1.5)
    return _hall_limits_beyond(values_RP, np.array(tail), np.ones(len(values_RP)))


def mean_difference_limits(differences_RP: FloatArray, confidences: FloatArray) -> FloatArray:
    """Limits for the mean of paired differences of any size, shape (num_evaluations or num_confidences, 2).

    differences_RP: shape (num_evaluations, num_prompts), not all equal in any evaluation. confidences: one, or one for each
    evaluation, or several for a single evaluation.

    Those of `mean_limits` with two changes. Each limit leaves out all that the confidence leaves. And the skewness counts in
    full only from one and a half of its standard errors, sqrt(6 / n) under normality, and not at all below half of one:
    differences are mostly symmetric, and skewness that is noise would widen their intervals.
    """
    error = np.sqrt(6 / differences_RP.shape[1])
    shares = np.clip(np.abs(_skewness(differences_RP)) / error - 0.5, 0, 1)
    return _hall_limits_beyond(differences_RP, (1 - confidences) / 2, shares)


def _hall_limits_beyond(values_RP: FloatArray, tails: FloatArray, shares_R: FloatArray) -> FloatArray:
    """The limits of `mean_limits`. tails: what each limit leaves out. shares: how much of the skewness counts."""
    num_prompts = values_RP.shape[1]
    means = values_RP.mean(axis=1)
    skewness = _skewness(values_RP)
    is_long_above = skewness > 0
    farthest = np.where(is_long_above, values_RP.max(axis=1), values_RP.min(axis=1))
    added = means + (farthest - means) * np.minimum(np.abs(skewness) / 1.5, 1)
    plain = _hall_limits(values_RP, tails, shares_R)
    padded = _hall_limits(np.concatenate([values_RP, np.stack([added, added], axis=1)], axis=1), tails, shares_R)
    beyond = (padded - plain) * min(1.0, FEW_PROMPTS / num_prompts) ** 0.5 * shares_R[:, None]
    low = plain[:, 0] + np.where(is_long_above, 0.0, np.minimum(beyond[:, 0], 0.0))
    high = plain[:, 1] + np.where(is_long_above, np.maximum(beyond[:, 1], 0.0), 0.0)
    return np.stack([low, high], axis=1)


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


def _hall_limits(values_RP: FloatArray, tails: FloatArray, shares_R: FloatArray) -> FloatArray:
    from scipy import special

    num_prompts = values_RP.shape[1]
    means, errors = values_RP.mean(axis=1), values_RP.std(axis=1) / np.sqrt(num_prompts - 1)
    slopes = shares_R * _skewness(values_RP) / np.sqrt(num_prompts)
    quantiles: FloatArray = special.stdtrit(num_prompts - 1, 1 - tails)
    low, high = means - errors * _inverse_hall(quantiles, slopes), means - errors * _inverse_hall(-quantiles, slopes)
    return np.stack([low, high], axis=1)


def _skewness(values_RP: FloatArray) -> FloatArray:
    centred = values_RP - values_RP.mean(axis=1, keepdims=True)
    skewness: FloatArray = (centred**3).mean(axis=1) / np.square(centred).mean(axis=1) ** 1.5
    return skewness


def _tails(means_R: FloatArray, num_prompts: int, confidences_R: FloatArray) -> FloatArray:
    """What the lower and the upper limit of a rate leave out, shape (num_evaluations, 2): half of what the confidence leaves,
    and with fewer than `FEW_PROMPTS` more, the nearer the rate is to 0 or 1."""
    given = np.where((means_R < 0.5)[:, None], [GIVEN_NEAR, GIVEN_FAR], [GIVEN_FAR, GIVEN_NEAR])
    given *= (1 - 4 * means_R * (1 - means_R))[:, None]
    given *= np.clip((FEW_PROMPTS - num_prompts) / (FEW_PROMPTS - FEWEST_PROMPTS), 0, 1)
    tails: FloatArray = (1 - confidences_R[:, None]) ** (1 - given) / 2
    return tails


def _rare_kind_limits(scatter: Scatter, confidences_R: FloatArray, quantity: Quantity) -> tuple[FloatArray, FloatArray]:
    """Limits that a rate near 0, and a rate near 1, must at least have, should a few prompts be of a kind that mostly ends
    the other way; shape (num_evaluations, 2) each.

    Near 0, below: the mean without the highest prompt, which may be the one of its kind that happened to be drawn. Above: the
    mean with up to three more prompts that always succeed. At 95% three is what a sample can fail to show, however large it
    is: (1 - 3 / n)^n is about 0.05, the "rule of three" (Hanley and Lippman-Hand 1983, J. Am. Med. Assoc. 249, 1743-1745).
    With 10 prompts it is one, with 30 two: more would not leave useful intervals to the smallest evaluations. Near 1: the
    mirror image. For pass@k and pass^k with k > 1 it is three with any number of prompts, and further away from 0 and 1: pass^8
    is often the share of prompts that always succeed, and ten prompts may hold none of a tenth or a fifth of all.
    """
    most = -np.log(1 - confidences_R)
    if quantity.k == 1:
        most = most * (1 - 2 / 3 * min(1.0, FEWEST_PROMPTS / scatter.num_prompts) ** 0.7)
    near_0 = _limits_near_0(scatter.num_prompts, scatter.means_R, scatter.highest_R, most, quantity)
    near_1 = 1 - _limits_near_0(scatter.num_prompts, 1 - scatter.means_R, 1 - scatter.lowest_R, most, quantity)[:, ::-1]
    return near_0, near_1


def _limits_near_0(
    num_prompts: int, means_R: FloatArray, highest_R: FloatArray, most_R: FloatArray, quantity: Quantity
) -> FloatArray:
    none_from, all_below = (
        (RARE_BELOW, RARE_FULLY_BELOW) if quantity.k == 1 else (RARE_BELOW_OF_K, RARE_FULLY_BELOW_OF_K)
    )
    unseen = most_R * np.clip((none_from - means_R) / (none_from - all_below), 0, 1)
    sums = means_R * num_prompts
    low = np.maximum(sums - highest_R, 0) / (num_prompts - 1)
    return np.stack([low, (sums + unseen) / (num_prompts + unseen)], axis=1)


def scatter_limits(scatter: Scatter, rollouts_R: FloatArray, tails_R2: FloatArray) -> FloatArray:
    """Clopper and Pearson's limits at an effective number of rollouts, shape (num_evaluations, 2).

    That number is how many independent rollouts would have a mean that scatters as these prompts' mean does, reduced for the
    uncertainty of that scatter. It is never below the number of prompts, since no distribution on [0, 1] scatters more than
    one all-or-nothing rollout a prompt. Source: Korn and Graubard 1998, Survey Methodology 24, 193-201; the degrees of
    freedom are those of a chi-square with the variance that the values' kurtosis gives their sample variance.
    """
    from scipy import special

    num_prompts, means = scatter.num_prompts, scatter.means_R
    freedom = np.clip(2 * num_prompts / np.maximum(scatter.kurtosis_R - 1, 1e-9), 1.0, num_prompts - 1)
    tails_R2 = np.minimum(tails_R2, 0.49)  # at a half both quantiles are 0
    shrink = (special.ndtri(tails_R2) / special.stdtrit(freedom[:, None], tails_R2)) ** 2
    alone = means * (1 - means) / (scatter.variances_R / (num_prompts - 1))
    sizes = np.clip(alone[:, None] * shrink, num_prompts, rollouts_R[:, None])
    return _clopper_pearson(means[:, None] * sizes, sizes, tails_R2)


def _clopper_pearson(successes_R2: FloatArray, sizes_R2: FloatArray, tails_R2: FloatArray) -> FloatArray:
    """Lower limits from the first column, upper ones from the second; meaningless where all or none succeeded."""
    from scipy import special

    failures_R2 = np.maximum(sizes_R2 - successes_R2, 1e-9)
    successes_R2 = np.maximum(successes_R2, 1e-9)
    low = special.betaincinv(successes_R2[:, 0], failures_R2[:, 0] + 1, tails_R2[:, 0])
    high = special.betaincinv(successes_R2[:, 1] + 1, failures_R2[:, 1], 1 - tails_R2[:, 1])
    return np.stack([low, high], axis=1)


def _logit(limits: FloatArray) -> FloatArray:
    from scipy import special

    logits: FloatArray = special.logit(np.clip(limits, 1e-12, 1 - 1e-12))
    return logits


def _inverse_hall(quantiles: FloatArray, slopes: FloatArray) -> FloatArray:
    """Where Hall's transformation of a studentized mean equals `quantiles`; the identity where nothing is skew."""
    safe = np.where(np.abs(slopes) < 1e-6, 1e-6, slopes)
    inverse: FloatArray = 3 / safe * (np.cbrt(1 + safe * (quantiles - safe / 6)) - 1)
    return inverse
