"""pass@k and pass^k: one unbiased estimate for each prompt, drawn without replacement from its rollouts."""

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.table import FloatArray, IntArray


def pass_at_k(successes: IntArray, rollouts: IntArray, k: int) -> float:
    """Mean over prompts of the chance that at least one of k rollouts succeeds.

    successes, rollouts: shape (num_prompts,); counts per prompt, 0 <= successes <= rollouts.
    Returns a probability in [0, 1]; NaN if no prompt has k rollouts. Prompts with fewer than k are left out.
    Raises MetricError if k < 1, the shapes differ or a count is out of range.
    Source: Chen et al. 2021, arXiv:2107.03374, equation 1 (unbiased, drawn without replacement).
    """
    return _mean(pass_at_k_by_prompt(successes, rollouts, k))


def pass_power_k(successes: IntArray, rollouts: IntArray, k: int) -> float:
    """Mean over prompts of the chance that all of k rollouts succeed.

    Shapes, range, NaN and errors as for `pass_at_k`.
    Source: Yao et al. 2024 (tau-bench), arXiv:2406.12045, section 4: the mean of C(c, k) / C(n, k).
    """
    return _mean(pass_power_k_by_prompt(successes, rollouts, k))


def pass_at_k_by_prompt(successes: IntArray, rollouts: IntArray, k: int) -> FloatArray:
    """Each prompt's own estimate 1 - C(n-c, k) / C(n, k), shape (num_prompts,); NaN where n < k. Errors: see `pass_at_k`."""
    _check(successes, rollouts, k)
    return 1.0 - _all_drawn(rollouts - successes, rollouts, k)


def pass_power_k_by_prompt(successes: IntArray, rollouts: IntArray, k: int) -> FloatArray:
    """Each prompt's own estimate C(c, k) / C(n, k), shape (num_prompts,); NaN where n < k. Errors: see `pass_at_k`."""
    _check(successes, rollouts, k)
    return _all_drawn(successes, rollouts, k)


def _all_drawn(marked: IntArray, rollouts: IntArray, k: int) -> FloatArray:
    """C(m, k) / C(n, k): the chance that k rollouts drawn from n are all among the m marked ones.

    As the product of (m - j) / (n - j) for j < k, where no factor overflows and the error stays within k roundings. Equal
    pairs are worked out once: a million rollouts have few different counts.
    """
    if len(rollouts) and int(rollouts.min()) == int(rollouts.max()) >= k:
        return _all_drawn_table(int(rollouts[0]), k)[marked]
    chances = np.full(len(rollouts), np.nan)
    for n in np.unique(rollouts[rollouts >= k]):
        same = rollouts == n
        chances[same] = _all_drawn_table(int(n), k)[marked[same]]
    return chances


def _all_drawn_table(n: int, k: int) -> FloatArray:
    """C(m, k) / C(n, k) for m = 0..n, shape (n + 1,)."""
    drawn = np.arange(k, dtype=np.float64)
    marked = np.arange(n + 1, dtype=np.float64)
    chances: FloatArray = np.clip((marked[:, None] - drawn) / (n - drawn), 0.0, None).prod(axis=1)
    return chances


def _mean(estimates: FloatArray) -> float:
    known = estimates[~np.isnan(estimates)]
    return float(known.mean()) if len(known) else float("nan")


def _check(successes: IntArray, rollouts: IntArray, k: int) -> None:
    if k < 1:
        raise MetricError(f"k is {k!r}; pass@k and pass^k need a k of at least 1")
    if successes.shape != rollouts.shape:
        raise MetricError(f"successes {successes.shape} and rollouts {rollouts.shape} differ in shape")
    if len(successes) and (int(successes.min()) < 0 or bool((successes > rollouts).any())):
        raise MetricError("a prompt has fewer than 0 successes or more successes than rollouts")
