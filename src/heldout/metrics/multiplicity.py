"""Corrected p-values: one primary metric tested by itself, all others after it."""

from collections.abc import Iterable, Mapping

import numpy as np

from heldout.metrics.table import FloatArray


def holm(p_values: Iterable[float]) -> list[float]:
    """Corrects p-values so that the chance of any false finding among them stays at the level of one test.

    Valid for tests that depend on each other in any way. Source: Holm 1979, Scand. J. Statist. 6, 65-70.
    """
    values = np.array(list(p_values), dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def gatekept(
    primary: str, p_values: Mapping[str, float], differences: Mapping[str, FloatArray], *, least_prompts: int
) -> dict[str, float]:
    """Corrected p-values by metric: the primary metric's own, and for others Holm's, at least as large as the primary's.

    The chance of any false finding stays at the level of one test, and the primary metric pays nothing for the others
    (serial gatekeeping: Dmitrienko and Tamhane 2007, Pharmaceut. Statist. 6, 171-180). Two kinds of metric are left out of the
    correction. No test can show a difference of a metric that is equal on all prompts, or that has fewer than `least_prompts`.
    And a metric whose differences are proportional to those of an earlier metric gets the earlier one's value: so does the mean
    reward of rewards 0 and 1, after pass@1.
    differences: by metric, shape (num_prompts,).
    """
    names = [primary, *(name for name in p_values if name != primary)]
    testable = [name for name in names if len(differences[name]) >= least_prompts and np.any(differences[name])]
    twins = _twins(testable, differences)
    family = [name for name in testable if name not in twins and name != primary]
    corrected = dict.fromkeys(p_values, 1.0)
    corrected |= zip(family, holm(p_values[name] for name in family), strict=True)
    corrected[primary] = p_values[primary]
    for name in testable:
        corrected[name] = corrected[twins.get(name, name)]
    return {name: max(value, p_values[name], p_values[primary]) for name, value in corrected.items()}


def _twins(names: list[str], differences: Mapping[str, FloatArray]) -> dict[str, str]:
    """Each metric that is proportional to an earlier one, and that one."""
    found: dict[str, str] = {}
    shapes: dict[str, FloatArray] = {}
    for name in names:
        values = differences[name]
        shape = values / values[np.argmax(np.abs(values))]
        for other, known in shapes.items():
            if len(known) == len(shape) and np.allclose(known, shape, rtol=0, atol=1e-9):
                found[name] = other
                break
        else:
            shapes[name] = shape
    return found
