"""The sign-flip test of the mean of paired differences, its interval, and the smallest difference that it could have shown.

If the differences of n prompts scatter symmetrically about d, then d is equally likely to fall between any two neighbours
of the sorted means of all 2^n - 1 non-empty subsets of them (Hartigan 1969, J. Amer. Statist. Assoc. 64, 1303-1317). Asking
how many of these means lie below d is the sign-flip test of "the mean difference is d", and the d that this test does not
reject are the interval: p-value and interval cannot disagree. With many prompts a random sample of subsets takes the place
of all.

Success counts tie often, and counting every tie against a difference would make the test far too slow to speak. A tie counts
half: the mid-p version (for one rollout a prompt, the mid-p McNemar test of Fagerland, Lydersen and Laake 2013, BMC Med. Res.
Methodol. 13:91). Between two values the share is interpolated, so that limits and p-values are continuous in the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heldout.metrics.table import FloatArray

EXACT_UP_TO = 13
"""With so few prompts all subsets are listed: at most 8,191."""
NUM_SUBSETS = 9_999
"""p-values come in steps of 2 / 10,000, and at p = 0.05 the draw moves them by 0.002."""
MAX_UNITS = 4_096
"""More prompts than this are put at random into so many blocks that go in or out of a subset together: the test stays
valid, since a block's sum flips as its prompts do, and the work stays bounded."""
POWER = 0.8
"""A difference could have been seen if the test shows it with this probability."""
_SUBSETS_AT_ONCE = 1_111


@dataclass(frozen=True, slots=True)
class SubsetMeans:
    """The distribution of the means of subsets of prompts, for one metric."""

    values: FloatArray
    """The different means, shape (num_values,), ascending."""
    shares: FloatArray
    """Share of the subsets below each value plus half of those at it, the data themselves counted as one more half: the
    one-sided mid-p-value of each value, shape (num_values,), ascending within (0, 1)."""
    num_subsets: int

    def p_above(self, difference: float) -> float:
        """p-value against "the mean is at most `difference`"."""
        least = 0.5 / (self.num_subsets + 1)
        return float(np.interp(difference, self.values, self.shares, left=least, right=1 - least))

    def p_below(self, difference: float) -> float:
        """p-value against "the mean is at least `difference`"."""
        return 1 - self.p_above(difference)

    def p_value(self, difference: float = 0.0) -> float:
        """Two-sided p-value against "the mean is `difference`"."""
        return min(1.0, 2 * min(self.p_above(difference), self.p_below(difference)))

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """The differences whose two-sided p-value is above 1 - confidence; None when so few prompts cannot reject any."""
        tail = (1 - confidence) / 2
        if 0.5 / (self.num_subsets + 1) > tail:
            return None
        low, high = np.interp([tail, 1 - tail], self.shares, self.values)
        return float(low), float(high)


def subset_means(differences_PM: FloatArray, rng: np.random.Generator) -> list[SubsetMeans]:
    """Means over the same random subsets of prompts for each of several metrics.

    differences_PM: shape (num_prompts, num_metrics), at least one prompt, no NaN.
    """
    sums_UM, sizes_U = _units(differences_PM, rng)
    parts = [(inside_SU @ sums_UM) / (inside_SU @ sizes_U)[:, None] for inside_SU in _subsets(len(sizes_U), rng)]
    means_SM = np.concatenate(parts)
    scales_M = np.abs(differences_PM).max(axis=0)
    return [_tied(means_S, float(scale)) for means_S, scale in zip(means_SM.T, scales_M, strict=True)]


def least_moved(confidence: float) -> int:
    """Fewest prompts that must differ, all in the same direction, for a difference to be shown: n such prompts have the
    mid-p-value 2^-n."""
    return int(np.ceil(-np.log2(1 - confidence) - 1e-9))


def least_prompts(confidence: float) -> int:
    """Fewest prompts with which a difference is judged: two more than `least_moved`. With fewer, ties count half and the test
    rejects too often."""
    return least_moved(confidence) + 2


def detectable_difference(
    differences: FloatArray, confidence: float, *, is_rate: bool, interval: tuple[float, float] | None
) -> float | None:
    """Smallest true difference that this many prompts with this scatter would have shown with probability `POWER`.

    differences: shape (num_prompts,), as found. is_rate: each lies in [-1, 1]. interval: of their mean, as the comparison gives
    it; a difference is shown from the distance of its farther limit, which the true one has to exceed by what chance takes
    away. None when unknown: too few prompts, or too few that differ and no bound on how far they could.
    """
    from scipy import special  # not before a comparison is made: see ARCHITECTURE.md, decision 12

    num_prompts, least = len(differences), least_moved(confidence)
    if num_prompts < least_prompts(confidence):
        return None
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / np.sqrt(num_prompts)
    shown_from, by_chance = special.stdtrit(num_prompts - 1, np.array([0.5 + confidence / 2, POWER])) * error
    if interval is not None:
        shown_from = max(shown_from, mean - interval[0], interval[1] - mean)
    from_scatter = float(shown_from + by_chance)
    if np.count_nonzero(differences) >= least:
        return from_scatter
    if not is_rate:
        return None
    # The share of prompts that must move for at least `least` of them to do so with probability POWER.
    return max(from_scatter, float(special.betaincinv(least, num_prompts - least + 1, POWER)))


def _tied(means_S: FloatArray, scale: float) -> SubsetMeans:
    """Means that are equal but for rounding count as ties; scale: of the differences."""
    step = 1e-12 * scale if scale > 0 else 1.0
    ticks, counts = np.unique(np.round(means_S / step), return_counts=True)
    shares = (np.cumsum(counts) - counts / 2 + 0.5) / (len(means_S) + 1)
    return SubsetMeans(ticks * step, shares, len(means_S))


def _units(differences_PM: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """What goes in or out of a subset: prompts, or blocks of them; with the number of prompts in each."""
    num_prompts = len(differences_PM)
    if num_prompts <= MAX_UNITS:
        return differences_PM, np.ones(num_prompts)
    block = rng.permutation(num_prompts) % MAX_UNITS
    sums = [np.bincount(block, weights=column, minlength=MAX_UNITS) for column in differences_PM.T]
    return np.stack(sums, axis=1), np.bincount(block, minlength=MAX_UNITS).astype(np.float64)


def _subsets(num_units: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Non-empty subsets as rows of zeros and ones, shape (some, num_units) each."""
    if num_units <= EXACT_UP_TO:
        numbers = np.arange(1, 2**num_units)
        yield ((numbers[:, None] >> np.arange(num_units)) & 1).astype(np.float64)
        return
    for _ in range(NUM_SUBSETS // _SUBSETS_AT_ONCE):
        inside = rng.integers(0, 2, size=(_SUBSETS_AT_ONCE, num_units), dtype=np.int8).astype(np.float64)
        yield inside[inside.any(axis=1)]
