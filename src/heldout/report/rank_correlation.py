"""Does one number rise with another over rollouts, when rollouts of a prompt belong together?"""

from typing import NamedTuple

import numpy as np
from scipy import special

from heldout.metrics.table import FloatArray, Groups, IntArray


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation, in [-1, 1], and the p-value of none."""

    value: float
    p_value: float
    num_prompts: int


def rank_correlation(x: FloatArray, y: FloatArray, prompt_index: IntArray) -> RankCorrelation | None:
    """Rank correlation of x and y, each shape (n,), whose standard error treats prompts as what was sampled.

    None when x or y does not vary, or with fewer than 10 prompts, where the error is not known well enough to test with.
    The standard error is that of the correlation's influence values summed by prompt; Student's t with one degree of freedom
    less than there are prompts. Source: the delta method for a correlation with clustered data, as in Cameron and Miller 2015,
    Journal of Human Resources 50, 317-372, section II.
    """
    groups = Groups.of(prompt_index)
    if groups.num_prompts < 10 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    a, b = _standardized_ranks(x), _standardized_ranks(y)
    value = float(np.mean(a * b))
    influence = a * b - value * (a * a + b * b) / 2
    scatter = float(np.sum(groups.sum(influence) ** 2))
    error = np.sqrt(scatter * groups.num_prompts / (groups.num_prompts - 1)) / len(x)
    if error < 1e-12:
        return RankCorrelation(value, 0.0, groups.num_prompts)
    p_value = 2 * float(special.stdtr(groups.num_prompts - 1, -abs(value) / error))
    return RankCorrelation(value, p_value, groups.num_prompts)


def _standardized_ranks(values: FloatArray) -> FloatArray:
    """Ranks, ties sharing theirs, with mean 0 and variance 1."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    standardized: FloatArray = (ranks - ranks.mean()) / ranks.std()
    return standardized
