"""Ranking of two or more runs, with ties shown as ties."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.catalog import SUCCESS_RATE, find, resolve
from heldout.metrics.comparison import SideFailures, compare
from heldout.metrics.metric import Direction
from heldout.metrics.multiplicity import holm
from heldout.metrics.pairing import Side, only_keys
from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import BoolArray


@dataclass(frozen=True, slots=True)
class RankedRun:
    """One run in a ranking."""

    name: str
    value: float
    """The metric on the prompts all runs share."""
    rank: int
    """1 plus the number of runs shown to be better."""
    tied_with: tuple[str, ...]
    """Runs not shown to be better or worse than this one."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Runs by one metric."""

    metric: str
    runs: tuple[RankedRun, ...]
    """Best rank first, equal ranks by value."""
    num_prompts: int
    """Prompts that all runs share."""
    notes: tuple[str, ...]
    """Failures, and which runs are not ranked for theirs."""


def rank(sides: Sequence[Side], settings: MetricSettings, *, metric: str = SUCCESS_RATE) -> Ranking:
    """Compare every pair of runs on the prompts that all share; p-values are corrected together by Holm's method.

    A run is better than another only if the corrected p-value says so. Ties are therefore not transitive: a may tie with b and b
    with c while a is better than c. A greater value is better, unless the metric's direction is lower.
    A run with a larger share of failed rollouts than `settings.max_failed_share` is not ranked; a note says so.
    metric: any name of a metric that is compared, such as `pass@1` or `mean reward`.
    Raises MetricError for fewer than two runs that can be ranked, equal names, no shared prompt, or a metric that the runs
    cannot give.
    """
    names = [side.name for side in sides]
    if len(names) < 2 or len(set(names)) < len(names):
        raise MetricError(f"a ranking needs at least two runs with different names; got {names}")
    sides, notes = _whole(sides, settings)
    names = [side.name for side in sides]
    shared = set.intersection(*(set(side.prompt_keys.values()) for side in sides))
    sides = [only_keys(side, shared) for side in sides]
    pairs = list(combinations(range(len(sides)), 2))
    compared = [compare(sides[a], sides[b], settings) for a, b in pairs]
    common = [name for name in compared[0].metrics if all(name in comparison.metrics for comparison in compared)]
    metric = resolve(metric, common, problem="is not one that all runs give")
    described = find(metric)
    is_lower_better = described is not None and described.direction is Direction.LOWER
    found = [comparison.metrics[metric] for comparison in compared]
    adjusted = holm(pair.p_value for pair in found)
    beats = np.zeros((len(sides), len(sides)), dtype=np.bool_)
    values = {a: pair.base for (a, _), pair in zip(pairs, found, strict=True)}
    values |= {b: pair.fine_tuned for (_, b), pair in zip(pairs, found, strict=True)}
    for (a, b), pair, p_value in zip(pairs, found, adjusted, strict=True):
        if p_value <= 1 - settings.confidence:
            beats[(b, a) if (pair.difference > 0) is not is_lower_better else (a, b)] = True
    runs = [_ranked(a, names, values, beats) for a in range(len(sides))]
    runs.sort(key=lambda run: (run.rank, run.value if is_lower_better else -run.value))
    return Ranking(metric, tuple(runs), found[0].num_prompts, notes)


def _whole(sides: Sequence[Side], settings: MetricSettings) -> tuple[list[Side], tuple[str, ...]]:
    """The runs whose numbers are complete, and a note on each run with failures."""
    failures = [SideFailures.of(side) for side in sides]
    is_whole = [one.is_within(settings.max_failed_share) for one in failures]
    notes = tuple(
        str(one) if whole else f"not ranked: {one}"
        for one, whole in zip(failures, is_whole, strict=True)
        if one.failed or not whole
    )
    kept = [side for side, whole in zip(sides, is_whole, strict=True) if whole]
    if len(kept) < 2:
        raise MetricError(f"fewer than two runs can be ranked; {'; '.join(notes)}")
    return kept, notes


def _ranked(a: int, names: list[str], values: dict[int, float], beats: BoolArray) -> RankedRun:
    tied = [name for b, name in enumerate(names) if b != a and not beats[a, b] and not beats[b, a]]
    return RankedRun(names[a], values[a], 1 + int(beats[:, a].sum()), tuple(tied))
