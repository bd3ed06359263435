"""Limits for the difference of two runs on the same prompts, from the limits of each run.

The sign-flip interval (`heldout.metrics.subset_means`) sees only the changes in the sample. It collapses when a run is near 0 or
1, when all prompts change by the same amount, or when few prompts change. The limits here do not collapse:

- of two rates: MOVER, the method of variance estimates recovery, which builds a difference's limits from the limits of each
  rate. Sources: Newcombe 1998, Stat. Med. 17, 2635-2650 (for proportions of pairs); Zou and Donner 2008, Stat. Med. 27,
  1693-1702, equation 10 (with the correlation of the two estimates; here that of the prompts' values).
- of two rates where most prompts always end alike, as with a deterministic policy: the correlation is then near 1, and MOVER
  sees only the prompts that changed. So the limits are widened towards those of MOVER on the mean gain and the mean loss of a
  prompt, which allow for changes that this sample does not show.
- of two means: Student's t with Hall's correction (`heldout.metrics.intervals.mean_difference_limits`).

`DifferenceTest` unites these with the sign-flip interval. Each limit is the farther one, each p-value the larger one.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from heldout.metrics.intervals import Scatter, mean_difference_limits, scatter_limits
from heldout.metrics.subset_means import SubsetMeans
from heldout.metrics.table import FloatArray

NUM_TAILS = 33
SMALLEST_TAIL = 2e-5
"""p-values are searched for between this and 0.5; the sign-flip test gives none below 5e-5."""


@dataclass(frozen=True, slots=True)
class PairedRates:
    """The inputs of the limits of a difference of two rates, for several evaluations."""

    base_R: FloatArray
    """Means, shape (num_evaluations,)."""
    fine_tuned_R: FloatArray
    correlation_R: FloatArray
    """Correlation of the prompts' values, shape (num_evaluations,); 0 where a run does not vary."""
    gains: Scatter
    """The positive parts of the differences."""
    losses: Scatter
    """The negative parts, as positive numbers."""
    gain_correlation_R: FloatArray
    """Correlation of gains and losses."""
    hidden_R: FloatArray
    """Weight of changes that the sample does not show, in [0, 1]: 1 when no prompt differs. Else the squared correlation, times a
    factor that rises evenly from 0 to 1 as the share of prompts that always end alike in both runs rises from a half to all."""
    rollouts_R: FloatArray
    """Number of rollouts of the smaller run, shape (num_evaluations,)."""

    @classmethod
    def of(cls, base_RP: FloatArray, fine_tuned_RP: FloatArray, rollouts_R: FloatArray) -> Self:
        """base_RP, fine_tuned_RP: values in [0, 1], shape (num_evaluations, num_prompts) each."""
        differences = fine_tuned_RP - base_RP
        gains, losses = np.maximum(differences, 0), np.maximum(-differences, 0)
        correlation = _correlation(base_RP, fine_tuned_RP)
        is_settled = (differences == 0) & ((base_RP == 0) | (base_RP == 1))
        hidden = cls.hidden(correlation, is_settled.mean(axis=1))
        return cls(
            base_RP.mean(axis=1),
            fine_tuned_RP.mean(axis=1),
            correlation,
            Scatter.of(gains),
            Scatter.of(losses),
            _correlation(gains, losses),
            np.where((differences == 0).all(axis=1), 1.0, hidden),
            rollouts_R,
        )

    @staticmethod
    def hidden(correlation_R: FloatArray, settled_R: FloatArray) -> FloatArray:
        """`hidden_R` where some prompt differs. settled_R: shares of prompts that always end alike, in both runs."""
        shares: FloatArray = np.maximum(correlation_R, 0) ** 2 * np.clip(2 * settled_R - 1, 0, 1)
        return shares

    def repeat(self, times: int) -> Self:
        """Repeats each evaluation `times` times."""
        return type(self)(
            np.repeat(self.base_R, times),
            np.repeat(self.fine_tuned_R, times),
            np.repeat(self.correlation_R, times),
            self.gains.repeat(times),
            self.losses.repeat(times),
            np.repeat(self.gain_correlation_R, times),
            np.repeat(self.hidden_R, times),
            np.repeat(self.rollouts_R, times),
        )

    def limits(self, base_R2: FloatArray, fine_tuned_R2: FloatArray, confidences_R: FloatArray) -> FloatArray:
        """Limits of fine-tuned minus base, shape (num_evaluations, 2).

        base_R2, fine_tuned_R2: the limits of each rate at these confidences, shape (num_evaluations, 2).
        """
        seen = mover_limits(self.base_R, self.fine_tuned_R, base_R2, fine_tuned_R2, self.correlation_R)
        tails = np.repeat((1 - confidences_R[:, None]) / 2, 2, axis=1)
        gains, losses = (_one_sided_limits(part, self.rollouts_R, tails) for part in (self.gains, self.losses))
        unseen = mover_limits(self.losses.means_R, self.gains.means_R, losses, gains, self.gain_correlation_R)
        farther = np.stack([np.minimum(seen[:, 0], unseen[:, 0]), np.maximum(seen[:, 1], unseen[:, 1])], axis=1)
        limits: FloatArray = seen + self.hidden_R[:, None] * (farther - seen)
        return limits


def mover_limits(
    first_R: FloatArray,
    second_R: FloatArray,
    first_limits_R2: FloatArray,
    second_limits_R2: FloatArray,
    correlation_R: FloatArray,
) -> FloatArray:
    """Limits of second minus first from the limits of each, shape (num_evaluations, 2).

    Source: Zou and Donner 2008, Stat. Med. 27, 1693-1702, equation 10.
    """
    difference = second_R - first_R
    below = _distance(second_R - second_limits_R2[:, 0], first_limits_R2[:, 1] - first_R, correlation_R)
    above = _distance(second_limits_R2[:, 1] - second_R, first_R - first_limits_R2[:, 0], correlation_R)
    return np.stack([difference - below, difference + above], axis=1)


@dataclass(frozen=True, slots=True)
class DifferenceTest:
    """The test of a mean difference: the sign-flip test, united with limits from each run where these exist.

    The law: for every d and every confidence, with tail = (1 - confidence) / 2,

        p_above(d) <= tail  exactly when  d <= lower limit,    p_below(d) <= tail  exactly when  d >= upper limit,

    except where a limit is the end of the range of the sign-flip test: that end itself is not rejected. So the p-value of no
    difference is small exactly when the interval leaves out 0, two runs are equivalent exactly when it lies within the
    margins, and a gate passes exactly when it leaves out every loss that is too large.
    """

    flips: SubsetMeans
    limits_T2: FloatArray | None
    """Limits from each run, for each of `tails`, shape (num_tails, 2); None where there are none."""
    tails: FloatArray
    """Shape (num_tails,), ascending up to a half."""

    @classmethod
    def of(cls, flips: SubsetMeans, limits_T2: FloatArray | None, tails: FloatArray) -> Self:
        """limits_T2: at confidence 1 - 2 * tails, shape (num_tails, 2)."""
        if limits_T2 is None:
            return cls(flips, None, tails)
        low, high = np.maximum.accumulate(limits_T2[:, 0]), np.minimum.accumulate(limits_T2[:, 1])
        return cls(flips, np.stack([low, high], axis=1), tails)

    def p_above(self, difference: float) -> float:
        """p-value against "the mean is at most `difference`"."""
        found = self.flips.p_above(difference)
        return found if self.limits_T2 is None else max(found, self._tail(difference, self.limits_T2[:, 0]))

    def p_below(self, difference: float) -> float:
        """p-value against "the mean is at least `difference`"."""
        found = self.flips.p_below(difference)
        return found if self.limits_T2 is None else max(found, self._tail(-difference, -self.limits_T2[:, 1]))

    def p_value(self, difference: float = 0.0) -> float:
        """Two-sided p-value against "the mean is `difference`"."""
        return min(1.0, 2 * min(self.p_above(difference), self.p_below(difference)))

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """The differences whose two-sided p-value is above 1 - confidence; None when so few prompts cannot reject any."""
        found = self.flips.interval(confidence)
        if found is None or self.limits_T2 is None:
            return found
        place = _scale(np.array((1 - confidence) / 2))
        low, high = (float(np.interp(place, _scale(self.tails), column)) for column in self.limits_T2.T)
        return min(found[0], low), max(found[1], high)

    def _tail(self, difference: float, lows: FloatArray) -> float:
        """The tail at which the lower limit is `difference`."""
        from scipy import special

        return float(special.ndtr(np.interp(difference, lows, _scale(self.tails))))


def tails_for(confidence: float) -> FloatArray:
    """Tails at which limits are computed, ascending; that of `confidence` is one of them."""
    from scipy import special

    even = special.ndtr(np.linspace(float(special.ndtri(SMALLEST_TAIL)), 0.0, NUM_TAILS))
    return np.unique(np.append(even, (1 - confidence) / 2))


def mean_limits_at(differences: FloatArray, tails: FloatArray) -> FloatArray:
    """`mean_difference_limits` of one comparison, shape (num_tails, 2)."""
    return mean_difference_limits(differences[None, :], 1 - 2 * tails)


def _scale(tails: FloatArray) -> FloatArray:
    """Tails as normal quantiles: limits are nearly linear in these."""
    from scipy import special

    return np.asarray(special.ndtri(tails))


def _distance(first: FloatArray, second: FloatArray, correlation: FloatArray) -> FloatArray:
    square = first**2 - 2 * correlation * first * second + second**2
    distance: FloatArray = np.sqrt(np.maximum(square, 0))
    return distance


def _one_sided_limits(part: Scatter, rollouts_R: FloatArray, tails_R2: FloatArray) -> FloatArray:
    """Limits of the mean gain or loss of a prompt; exact where it is 0 for every prompt, or 1 for every prompt."""
    limits = scatter_limits(part, rollouts_R, tails_R2)
    bound = tails_R2[:, 0] ** (1 / part.num_prompts)
    limits[part.means_R <= 0] = np.stack([np.zeros_like(bound), 1 - bound], axis=1)[part.means_R <= 0]
    limits[part.means_R >= 1] = np.stack([bound, np.ones_like(bound)], axis=1)[part.means_R >= 1]
    return limits


def _correlation(first_RP: FloatArray, second_RP: FloatArray) -> FloatArray:
    """Correlation within each evaluation, shape (num_evaluations,); 0 where either does not vary."""
    first, second = (values - values.mean(axis=1, keepdims=True) for values in (first_RP, second_RP))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    found: FloatArray = np.where(scale > 1e-12, (first * second).sum(axis=1) / np.maximum(scale, 1e-12), 0.0)
    return np.clip(found, -1.0, 1.0)
