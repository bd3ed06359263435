"""What a finished comparison could have seen: the smallest difference it had a fair chance to show."""

import numpy as np

from heldout.metrics.table import FloatArray

POWER = 0.8
"""The chance of being shown that a difference needs before we say that it could have been seen."""


def least_moved(confidence: float) -> int:
    """Fewest prompts that must differ, all the same way, for a difference to be shown: chance does as much to n of them with
    mid-p-value 2^-n."""
    return int(np.ceil(-np.log2(1 - confidence) - 1e-9))


def least_prompts(confidence: float) -> int:
    """Fewest prompts with which a difference is judged at all: two more than `least_moved`, since with fewer the halves that
    ties count would let the test cry wolf too often."""
    return least_moved(confidence) + 2


def detectable_difference(differences: FloatArray, confidence: float, *, is_rate: bool) -> float | None:
    """Smallest true difference that this many prompts with this scatter would have shown with probability `POWER`.

    differences: shape (num_prompts,), as found. is_rate: each lies in [-1, 1]. None when it cannot be told: too few prompts,
    or too few that differ at all and no bound on how far they could.
    """
    from scipy import special  # not before a comparison is made: see ARCHITECTURE.md, decision 12

    num_prompts, least = len(differences), least_moved(confidence)
    if num_prompts < least_prompts(confidence):
        return None
    error = float(differences.std(ddof=1)) / np.sqrt(num_prompts)
    quantiles = special.stdtrit(num_prompts - 1, np.array([0.5 + confidence / 2, POWER]))
    from_scatter = float(quantiles.sum() * error)
    if np.count_nonzero(differences) >= least:
        return from_scatter
    if not is_rate:
        return None
    # The share of prompts that must move for at least `least` of them to do so with probability POWER.
    return max(from_scatter, float(special.betaincinv(least, num_prompts - least + 1, POWER)))
