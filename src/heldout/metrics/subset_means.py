"""One test and its interval for the mean of paired differences: where the means of random subsets of prompts lie.

If the differences of n prompts scatter symmetrically about d, then d is equally likely to fall between any two neighbours
of the sorted means of all 2^n - 1 non-empty subsets of them (Hartigan 1969, J. Amer. Statist. Assoc. 64, 1303-1317). Asking
how many of these means lie at or below d is the sign-flip test of "the mean difference is d", and the d that this test
does not reject are the interval: p-value and interval cannot disagree. With many prompts a random sample of subsets takes
the place of all, and the test keeps its size (the sampled subsets and the data count together).
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
_SUBSETS_AT_ONCE = 1_111


@dataclass(frozen=True, slots=True)
class SubsetMeans:
    """Sorted means of subsets of prompts, for one metric."""

    means: FloatArray
    """Shape (num_subsets,), ascending."""

    def p_above(self, difference: float) -> float:
        """p-value against "the mean is at most `difference`"."""
        at_most = int(np.searchsorted(self.means, difference + _slack(difference), side="right"))
        return (1 + at_most) / (len(self.means) + 1)

    def p_below(self, difference: float) -> float:
        """p-value against "the mean is at least `difference`"."""
        at_least = len(self.means) - int(np.searchsorted(self.means, difference - _slack(difference), side="left"))
        return (1 + at_least) / (len(self.means) + 1)

    def p_value(self, difference: float = 0.0) -> float:
        """Two-sided p-value against "the mean is `difference`"."""
        return min(1.0, 2 * min(self.p_above(difference), self.p_below(difference)))

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """The differences whose two-sided p-value is above 1 - confidence; None when so few prompts cannot reject any."""
        rank = int((1 - confidence) / 2 * (len(self.means) + 1) + 1e-9)
        if rank < 1:
            return None
        return float(self.means[rank - 1]), float(self.means[-rank])


def subset_means(differences_PM: FloatArray, rng: np.random.Generator) -> list[SubsetMeans]:
    """Means over the same random subsets of prompts for each of several metrics.

    differences_PM: shape (num_prompts, num_metrics), at least one prompt, no NaN.
    """
    sums_UM, sizes_U = _units(differences_PM, rng)
    parts = [(inside_SU @ sums_UM) / (inside_SU @ sizes_U)[:, None] for inside_SU in _subsets(len(sizes_U), rng)]
    means_SM = np.sort(np.concatenate(parts), axis=0)
    means_SM[np.abs(means_SM) < 1e-12 * np.abs(differences_PM).max(axis=0)] = 0.0  # a tie with 0 but for rounding
    return [SubsetMeans(np.ascontiguousarray(means_SM[:, m])) for m in range(differences_PM.shape[1])]


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


def _slack(difference: float) -> float:
    """Means that are equal but for rounding are ties."""
    return 1e-12 * max(1.0, abs(difference))
