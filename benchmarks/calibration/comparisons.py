"""Does the comparison cry wolf as rarely as it says, and see differences as often as the plan promised?"""

from dataclasses import dataclass

import numpy as np
from benchmarks.calibration.simulation import Cell, rates_at

from heldout.metrics.detection import least_moved
from heldout.metrics.planning import plan, spread_from_rates
from heldout.metrics.subset_means import SubsetMeans, subset_means
from heldout.metrics.table import FloatArray

LEVEL = 0.05
_REPEATS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Size:
    """How often a difference was claimed where there is none."""

    name: str
    num_prompts: int
    rejected: float
    can_reject: float
    """Share of evaluations in which enough prompts differ for the test to reject at all."""


@dataclass(frozen=True, slots=True)
class Power:
    """How often a planned difference was shown."""

    name: str
    num_prompts: int
    promised: float
    found: float


def size_of(cell: Cell, likeness: float, repeats: int, rng: np.random.Generator) -> Size:
    """Compares two equally good policies. likeness: share of prompts equally hard for both."""
    differences = draw_differences(cell, 0.0, likeness, repeats, rng)
    tests = _tests(differences, rng)
    rejected = np.array([test.p_value() <= LEVEL for test in tests])
    can_reject = (differences != 0).sum(axis=1) >= least_moved(1 - LEVEL)
    name = f"rate {cell.rate:g}, {cell.group_size} rollouts, correlation {cell.correlation:g}, likeness {likeness:g}"
    return Size(name, cell.num_prompts, float(rejected.mean()), float(can_reject.mean()))


def power_of_plan(
    rate: float,
    difference: float,
    group_size: int,
    correlation: float,
    likeness: float,
    repeats: int,
    rng: np.random.Generator,
) -> Power:
    """Plans for power 0.8 and plays the plan."""
    spread = spread_from_rates(
        rate, difference, correlation=correlation, likeness=_true_likeness(rate, difference, correlation, likeness)
    )
    option = plan(spread, difference, power=0.8, group_sizes=[group_size]).options[0]
    cell = Cell(option.num_prompts, group_size, rate, correlation)
    differences = draw_differences(cell, difference, likeness, repeats, rng)
    found = float(np.mean([test.p_value() <= LEVEL for test in _tests(differences, rng)]))
    name = (
        f"{rate:g} to {rate + difference:g}, {group_size} rollouts, correlation {correlation:g}, likeness {likeness:g}"
    )
    return Power(name, option.num_prompts, option.power, found)


def draw_differences(
    cell: Cell, difference: float, likeness: float, repeats: int, rng: np.random.Generator
) -> FloatArray:
    """Differences of success rates, prompt by prompt, shape (repeats, num_prompts).

    A share `likeness` of the prompts is equally hard for both policies, the others are drawn anew for the second, so the
    rates of the two correlate by about that much.
    """
    better = Cell(cell.num_prompts, cell.group_size, cell.rate + difference, cell.correlation)
    shape = (repeats, cell.num_prompts)
    place = rng.random(shape)
    other = np.where(rng.random(shape) < likeness, place, rng.random(shape))
    base = rng.binomial(cell.group_size, rates_at(cell, place))
    tuned = rng.binomial(cell.group_size, rates_at(better, other))
    return (tuned - base) / cell.group_size


def _true_likeness(rate: float, difference: float, correlation: float, share: float) -> float:
    """Correlation of the two policies' rates over prompts, when a share of the prompts is equally hard for both."""
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    before, after = (rates_at(Cell(1, 1, r, correlation), quantiles) for r in (rate, rate + difference))
    return share * float(np.corrcoef(before, after)[0, 1])


def _tests(differences_RP: FloatArray, rng: np.random.Generator) -> list[SubsetMeans]:
    """The comparison's test of each repeat. Repeats share their random subsets, as evaluations with one seed do."""
    seed = int(rng.integers(2**32))
    batches = np.array_split(differences_RP, -(-len(differences_RP) // _REPEATS_AT_ONCE))
    return [test for batch in batches for test in subset_means(batch.T, np.random.default_rng(seed))]
