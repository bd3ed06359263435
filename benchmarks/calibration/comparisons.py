"""Does the comparison cry wolf as rarely as it says, do its intervals hold the true difference, and does it see differences as
often as the plan promised?"""

from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.coverage import NORMAL
from benchmarks.calibration.simulation import Cell, rates_at
from heldout.metrics.planning import plan, spread_from_rates
from heldout.metrics.subset_means import SubsetMeans, least_moved, subset_means
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
class Difference:
    """What came of the interval of a true difference."""

    name: str
    num_prompts: int
    coverage: float
    """Share of the intervals that hold the true difference; evaluations without an interval are left out."""
    no_interval: float
    width: float
    """Mean width over that of an interval that knows the true standard error."""


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


def difference_coverage(
    cell: Cell, difference: float, likeness: float, repeats: int, rng: np.random.Generator
) -> Difference:
    """Coverage of the comparison's interval when the second policy's rate is higher by `difference`."""
    differences = draw_differences(cell, difference, likeness, repeats, rng)
    found = [test.interval(1 - LEVEL) for test in _tests(differences, rng) if len(test.values) > 1]
    limits = np.array([interval for interval in found if interval is not None])
    error = float(differences.std(axis=1, ddof=1).mean() / np.sqrt(cell.num_prompts))
    name = (
        f"{cell.rate:g} to {cell.rate + difference:g}, {cell.group_size} rollouts, correlation {cell.correlation:g},"
        f" likeness {likeness:g}"
    )
    return Difference(
        name=name,
        num_prompts=cell.num_prompts,
        coverage=float(((limits[:, 0] <= difference + 1e-12) & (difference - 1e-12 <= limits[:, 1])).mean()),
        no_interval=1 - len(limits) / repeats,
        width=float((limits[:, 1] - limits[:, 0]).mean() / (2 * NORMAL * error)),
    )


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
    """The comparison's test of each repeat; so many repeats share their random subsets, as evaluations with one seed do."""
    batches = np.array_split(differences_RP, -(-len(differences_RP) // _REPEATS_AT_ONCE))
    return [test for batch in batches for test in subset_means(batch.T, rng)]
