"""Does the comparison cry wolf as rarely as it says, do its intervals hold the true difference, and does it see differences as
often as the plan promised?"""

from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.coverage import NORMAL, count_tables
from benchmarks.calibration.simulation import Cell, rates_at
from heldout.metrics.beta_binomial import SUCCESS_RATE
from heldout.metrics.differences import PairedRates
from heldout.metrics.intervals import rate_limits
from heldout.metrics.planning import plan, spread_from_rates
from heldout.metrics.subset_means import least_moved, subset_means
from heldout.metrics.table import BoolArray, FloatArray, IntArray

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
    """Share of the intervals that hold the true difference."""
    false_pass: float
    """Share of the gates that pass although the loss is just as large as the margin: whose interval leaves out this loss and
    every larger one; of both directions the greater share."""
    width: float
    """Mean width over that of an interval that knows the standard error."""
    flips_coverage: float
    """Coverage of the sign-flip interval alone."""
    flips_width: float
    """Its width."""


@dataclass(frozen=True, slots=True)
class Power:
    """How often a planned difference was shown."""

    name: str
    num_prompts: int
    promised: float
    found: float


def size_of(cell: Cell, likeness: float, repeats: int, rng: np.random.Generator) -> Size:
    """Compares two equally good policies. likeness: share of prompts equally hard for both."""
    base, tuned = draw_pairs(cell, 0.0, likeness, repeats, rng)
    limits = _united(base, tuned, cell.group_size, rng)[0]
    can_reject = (base != tuned).sum(axis=1) >= least_moved(1 - LEVEL)
    name = f"rate {cell.rate:g}, {cell.group_size} rollouts, correlation {cell.correlation:g}, likeness {likeness:g}"
    return Size(name, cell.num_prompts, float(_leave_out_0(limits).mean()), float(can_reject.mean()))


def difference_coverage(
    cell: Cell, difference: float, likeness: float, repeats: int, rng: np.random.Generator
) -> Difference:
    """Coverage of the comparison's interval when the second policy's rate is higher by `difference`."""
    base, tuned = draw_pairs(cell, difference, likeness, repeats, rng)
    name = (
        f"{cell.rate:g} to {cell.rate + difference:g}, {cell.group_size} rollouts, correlation {cell.correlation:g},"
        f" likeness {likeness:g}"
    )
    return _judge(name, base, tuned, cell.group_size, difference, rng)


def move_coverage(
    gains: float, losses: float, successes: float, num_prompts: int, repeats: int, rng: np.random.Generator
) -> Difference:
    """Coverage for two deterministic policies, one rollout a prompt.

    gains, losses: shares of prompts that only the second or only the first solves; successes: share that both solve.
    """
    place = rng.random((repeats, num_prompts))
    base = (place < losses + successes).astype(np.int64)
    tuned = ((place >= losses) & (place < losses + successes + gains)).astype(np.int64)
    name = f"{gains:g} won, {losses:g} lost, {successes:g} solved by both"
    return _judge(name, base, tuned, 1, gains - losses, rng)


def _judge(
    name: str, base: IntArray, tuned: IntArray, group_size: int, difference: float, rng: np.random.Generator
) -> Difference:
    num_prompts = base.shape[1]
    united, alone = _united(base, tuned, group_size, rng)
    low, high = united.T
    error = float(((tuned - base) / group_size).std(axis=1, ddof=1).mean() / np.sqrt(num_prompts))
    return Difference(
        name=name,
        num_prompts=num_prompts,
        coverage=float(((low <= difference + 1e-12) & (difference - 1e-12 <= high)).mean()),
        false_pass=float(max((low >= difference - 1e-12).mean(), (high <= difference + 1e-12).mean())),
        width=float((high - low).mean() / (2 * NORMAL * error)),
        flips_coverage=float(((alone[:, 0] <= difference + 1e-12) & (difference - 1e-12 <= alone[:, 1])).mean()),
        flips_width=float((alone[:, 1] - alone[:, 0]).mean() / (2 * NORMAL * error)),
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
    base, tuned = draw_pairs(cell, difference, likeness, repeats, rng)
    found = float(_leave_out_0(_united(base, tuned, group_size, rng)[0]).mean())
    name = (
        f"{rate:g} to {rate + difference:g}, {group_size} rollouts, correlation {correlation:g}, likeness {likeness:g}"
    )
    return Power(name, option.num_prompts, option.power, found)


def draw_pairs(
    cell: Cell, difference: float, likeness: float, repeats: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Successes of each prompt in either run, shape (repeats, num_prompts) each.

    A share `likeness` of the prompts is equally hard for both policies, the others are drawn anew for the second, so the
    rates of the two correlate by about that much.
    """
    better = Cell(cell.num_prompts, cell.group_size, cell.rate + difference, cell.correlation)
    shape = (repeats, cell.num_prompts)
    place = rng.random(shape)
    other = np.where(rng.random(shape) < likeness, place, rng.random(shape))
    base = rng.binomial(cell.group_size, rates_at(cell, place))
    tuned = rng.binomial(cell.group_size, rates_at(better, other))
    return base, tuned


def _true_likeness(rate: float, difference: float, correlation: float, share: float) -> float:
    """Correlation of the two policies' rates over prompts, when a share of the prompts is equally hard for both."""
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    before, after = (rates_at(Cell(1, 1, r, correlation), quantiles) for r in (rate, rate + difference))
    return share * float(np.corrcoef(before, after)[0, 1])


def _united(
    base: IntArray, tuned: IntArray, group_size: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """The comparison's interval of each repeat, as `heldout.metrics.differences.DifferenceTest` has it, and the sign-flip
    interval alone, shape (repeats, 2) each."""
    before, after = base / group_size, tuned / group_size
    confidences = np.full(len(base), 1 - LEVEL)
    of_base, of_tuned = (
        rate_limits(values, count_tables(successes, group_size), SUCCESS_RATE, 1 - LEVEL)
        for values, successes in ((before, base), (after, tuned))
    )
    rollouts = np.full(len(base), float(group_size * base.shape[1]))
    limits = PairedRates.of(before, after, rollouts).limits(of_base, of_tuned, confidences)
    flips = _flip_intervals(after - before, rng)
    low, high = np.minimum(limits[:, 0], flips[:, 0]), np.maximum(limits[:, 1], flips[:, 1])
    return np.stack([low, high], axis=1), flips


def _leave_out_0(limits: FloatArray) -> BoolArray:
    """Whether a difference is shown."""
    return (limits[:, 0] > 0) | (limits[:, 1] < 0)


def _flip_intervals(differences_RP: FloatArray, rng: np.random.Generator) -> FloatArray:
    """So many repeats share their random subsets, as evaluations with one seed do."""
    batches = np.array_split(differences_RP, -(-len(differences_RP) // _REPEATS_AT_ONCE))
    found = [test.interval(1 - LEVEL) for batch in batches for test in subset_means(batch.T, rng)]
    return np.array([(-np.inf, np.inf) if interval is None else interval for interval in found])
