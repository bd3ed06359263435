"""Does the live interval hold when somebody looks after every prompt, and how much wider is it for that?"""

from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.coverage import CONFIDENCE, NORMAL
from benchmarks.calibration.simulation import Cell, draw_successes
from heldout.metrics.confidence_sequence import ConfidenceSequence
from heldout.metrics.table import FloatArray

FIRST_LOOK = 10
"""The interval for one look is looked at from this prompt on."""


@dataclass(frozen=True, slots=True)
class Looking:
    """What came of looking after every prompt in one setting."""

    name: str
    num_prompts: int
    missed: float
    """Share of the evaluations in which the live interval misses the true rate at one look or more."""
    missed_final: float
    """The same for the rate that all prompts of the evaluation have in the end."""
    missed_one_look: float
    """The same for a 95% interval that is made for one look, mean +- 1.96 clustered standard errors, from prompt 10 on."""
    width: float
    """Mean width after the last prompt over that of an interval that knows the true standard error."""


def looking(cell: Cell, repeats: int, rng: np.random.Generator) -> Looking:
    """Looks after every prompt of simulated evaluations."""
    rates = draw_successes(cell, repeats, rng) / cell.group_size
    limits = np.array([_last_interval(values) for values in rates])
    low, high = limits.T
    final = rates.mean(axis=1)
    return Looking(
        name=f"rate {cell.rate:g}, {cell.group_size} rollouts, correlation {cell.correlation:g}",
        num_prompts=cell.num_prompts,
        missed=_share_outside(cell.rate, low, high),
        missed_final=_share_outside(final, low, high),
        missed_one_look=float(_misses_at_one_look(rates, cell.rate).mean()),
        width=float((high - low).mean() / (2 * NORMAL * cell.standard_error)),
    )


def _last_interval(values: FloatArray) -> tuple[float, float]:
    """Live intervals are nested: the last one holds what all of them hold."""
    sequence = ConfidenceSequence(confidence=CONFIDENCE)
    for value in values:
        sequence.add(float(value))
    return sequence.interval()


def _share_outside(truth: FloatArray | float, low: FloatArray, high: FloatArray) -> float:
    return float(((truth < low) | (truth > high)).mean())


def _misses_at_one_look(rates_RP: FloatArray, truth: float) -> FloatArray:
    """Whether some look misses the truth, shape (repeats,)."""
    number = np.arange(1, rates_RP.shape[1] + 1)
    means = rates_RP.cumsum(axis=1) / number
    variances = np.maximum(np.square(rates_RP).cumsum(axis=1) / number - np.square(means), 0)
    errors = np.sqrt(variances / np.maximum(number - 1, 1))
    missed = np.abs(means - truth) > NORMAL * errors + 1e-12
    return np.asarray(missed[:, FIRST_LOOK - 1 :].any(axis=1))
