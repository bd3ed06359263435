"""Association of two values within prompts: whether, among rollouts of one prompt, one rises with the other.

A prompt that is hard and takes long says nothing here: only rollouts of the same prompt are compared.
"""

from typing import NamedTuple

import numpy as np

from heldout.metrics.table import BoolArray, FloatArray, IntArray

_MOST_NEIGHBOURS = 64
"""Rollouts are compared with this many later ones of their prompt: in groups of up to 65 that is all pairs."""


class Association(NamedTuple):
    """Goodman and Kruskal's gamma over pairs of rollouts of the same prompt."""

    gamma: float
    """In [-1, 1]: the share of pairs in the same order less the share of those in opposite order; ties do not count."""
    interval: tuple[float, float]
    num_prompts: int
    """Prompts with at least one pair that counts."""


def within_prompts(
    x: FloatArray,
    y: FloatArray,
    prompt_index: IntArray,
    *,
    confidence: float,
    least_prompts: int,
    alike: IntArray | None = None,
) -> Association | None:
    """Measures how x and y vary together among rollouts of the same prompt; shape (num_rollouts,) each.

    alike: only pairs with the same value of it count. least_prompts: None with fewer prompts that have a pair that counts. The
    interval is Student's, its standard error from the prompts' influences on the ratio (Cochran 1977, section 6.3).
    Source of gamma: Goodman and Kruskal 1954, J. Amer. Statist. Assoc. 49, 732-764, section 5.
    """
    order = np.argsort(prompt_index, kind="stable")
    x, y, prompts = x[order], y[order], prompt_index[order]
    _, of_row = np.unique(prompts, return_inverse=True)
    same = None if alike is None else alike[order]
    signed, counted = _pairs(x, y, of_row.astype(np.int64), same)
    informative = counted > 0
    signed, counted = signed[informative], counted[informative]
    if len(counted) < max(2, least_prompts):
        return None
    from scipy import special  # not before findings are looked for: see ARCHITECTURE.md, decision 12

    n, gamma = len(counted), float(signed.sum() / counted.sum())
    influences = signed - gamma * counted
    error = float(np.sqrt((influences @ influences) * n / (n - 1))) / float(counted.sum())
    # A sample without scatter does not prove that there is none: one more prompt counts as the opposite case.
    floor = 2 / (n + 1) if error == 0 else 0.0
    half = float(special.stdtrit(n - 1, 0.5 + confidence / 2)) * error + floor
    return Association(gamma, (max(-1.0, gamma - half), min(1.0, gamma + half)), n)


def _pairs(x: FloatArray, y: FloatArray, of_row: IntArray, alike: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """The sum of signs and the number of pairs that count, by prompt; rows of a prompt are neighbours."""
    num_prompts = int(of_row[-1]) + 1 if len(of_row) else 0
    signed, counted = np.zeros(num_prompts), np.zeros(num_prompts)
    for step in range(1, min(_MOST_NEIGHBOURS, len(of_row) - 1) + 1):
        is_pair: BoolArray = of_row[step:] == of_row[:-step]
        if not is_pair.any():
            break
        if alike is not None:
            is_pair = is_pair & (alike[step:] == alike[:-step])
        signs = np.sign(x[step:] - x[:-step]) * np.sign(y[step:] - y[:-step])
        signs = np.where(is_pair, np.nan_to_num(signs), 0.0)
        signed += np.bincount(of_row[step:], weights=signs, minlength=num_prompts)
        counted += np.bincount(of_row[step:], weights=np.abs(signs), minlength=num_prompts)
    return signed, counted
