"""One metric in two runs: paired by prompt, its difference, interval and p-value, and the verdict in words."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heldout.metrics.catalog import find, label
from heldout.metrics.metric import Direction, Mean, Metric, PromptMean, Result, RowMean
from heldout.metrics.sample import linearized
from heldout.metrics.subset_means import SubsetMeans, detectable_difference, least_prompts
from heldout.metrics.table import FloatArray, IntArray

_WORDS = {
    Direction.HIGHER: ("better", "worse"),
    Direction.LOWER: ("worse", "better"),
    Direction.NEITHER: ("higher", "lower"),
}
"""What the fine-tuned run is with a greater value of a metric, and with a lesser one."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether a difference is small enough to be ignored, by two one-sided tests."""

    margin: float
    p_not_worse: float
    """Against "worse by the margin or more"."""
    p_equivalent: float
    """Against "different by the margin or more", either way."""
    is_not_worse: bool
    is_equivalent: bool


class Candidates(NamedTuple):
    """The names of the two runs that a verdict is about."""

    base: str
    fine_tuned: str


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric in two runs, on the prompts they share."""

    name: str
    base: float
    fine_tuned: float
    difference: float
    """fine_tuned - base."""
    interval: tuple[float, float] | None
    """Of the difference; it leaves out 0 exactly when `p_value` is at most 1 - confidence."""
    p_value: float
    """Two-sided, against no difference; of this metric alone. 1 with too few prompts to judge."""
    adjusted_p_value: float
    """The same for the primary metric, which is tested by itself. For another metric: corrected (Holm) for looking at all of
    these, and never smaller than the primary metric's, since they are tested after it. Never smaller than `p_value`."""
    detectable: float | None
    """The smallest difference this evaluation would have shown with probability 0.8."""
    num_prompts: int
    equivalence: Equivalence | None
    verdict: str


@dataclass(frozen=True, slots=True)
class MetricColumns:
    """One metric, prompt by prompt, on the prompts where both runs have it."""

    name: str
    base: FloatArray
    """Shape (num_prompts,)."""
    fine_tuned: FloatArray
    """Shape (num_prompts,)."""
    is_rate: bool
    """Whether values lie in [0, 1]."""
    direction: Direction

    @property
    def differences(self) -> FloatArray:
        return self.fine_tuned - self.base


def paired_columns(metric: Metric, base: Result, fine_tuned: Result) -> MetricColumns | None:
    """One metric on the prompts that both runs have it on; None when a run lacks it, or it is no mean.

    base, fine_tuned: what the metric's function returns for either run, with `prompt_index` naming the same prompts.
    """
    if not isinstance(base, Mean) or not isinstance(fine_tuned, Mean):
        return None
    if isinstance(base, PromptMean) and isinstance(fine_tuned, PromptMean):
        _, in_base, in_tuned = _shared(base.prompt_index, fine_tuned.prompt_index)
        columns = base.values[in_base], fine_tuned.values[in_tuned]
        is_rate = (metric.low, metric.high) == (0, 1)
    else:
        before, after = _prompt_sums(base), _prompt_sums(fine_tuned)
        _, in_base, in_tuned = _shared(before.prompt_index, after.prompt_index)
        columns = before.linearized(in_base), after.linearized(in_tuned)
        is_rate = False
    return MetricColumns(metric.name, *columns, is_rate=is_rate, direction=metric.direction)


def _shared(base: IntArray, fine_tuned: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    shared, in_base, in_tuned = np.intersect1d(base, fine_tuned, assume_unique=True, return_indices=True)
    return shared, in_base, in_tuned


@dataclass(frozen=True, slots=True)
class _PromptSums:
    """A mean over rows as sums and counts of the prompts that have a row, shape (num_prompts,) each."""

    sums: FloatArray
    counts: FloatArray
    prompt_index: IntArray

    def linearized(self, places: IntArray) -> FloatArray:
        return linearized(self.sums[places], self.counts[places]) if len(places) else np.empty(0)


def _prompt_sums(mean: Mean) -> _PromptSums:
    match mean:
        case RowMean():
            groups = mean.groups
            return _PromptSums(groups.sum(mean.values), groups.count().astype(np.float64), groups.prompt_index)
        case PromptMean():
            return _PromptSums(mean.values, np.ones(len(mean.values)), mean.prompt_index)
        case _:
            known = mean.counts > 0
            return _PromptSums(mean.sums[known], mean.counts[known], mean.prompt_index[known])


def judge(
    columns: MetricColumns, means: SubsetMeans, candidates: Candidates, *, confidence: float, margin: float | None
) -> MetricComparison:
    """Compare two runs by one metric, by itself: the corrected p-value is the p-value.

    means: the subset means of `columns.differences`. margin: the largest difference that does not matter.
    """
    differences = columns.differences
    found = _Found(
        difference=float(differences.mean()),
        interval=_interval(columns, means, confidence),
        p_value=means.p_value() if len(differences) >= least_prompts(confidence) else 1.0,
        detectable=detectable_difference(differences, confidence, is_rate=columns.is_rate),
        equivalence=None if margin is None else _equivalence(columns, means, margin, confidence),
    )
    return MetricComparison(
        name=columns.name,
        base=float(columns.base.mean()),
        fine_tuned=float(columns.fine_tuned.mean()),
        difference=found.difference,
        interval=found.interval,
        p_value=found.p_value,
        adjusted_p_value=found.p_value,
        detectable=found.detectable,
        num_prompts=len(differences),
        equivalence=found.equivalence,
        verdict=_verdict(columns, found, candidates, confidence),
    )


class _Found(NamedTuple):
    difference: float
    interval: tuple[float, float] | None
    p_value: float
    detectable: float | None
    equivalence: Equivalence | None


def _interval(columns: MetricColumns, means: SubsetMeans, confidence: float) -> tuple[float, float] | None:
    if len(columns.differences) < least_prompts(confidence):
        return None
    if np.any(columns.differences):
        return means.interval(confidence)
    if not columns.is_rate:
        return None
    # No prompt differs: the share of prompts that could differ, all the same way, is bounded as by Clopper and Pearson.
    bound = 1 - ((1 - confidence) / 2) ** (1 / len(columns.differences))
    return -bound, bound


def _equivalence(columns: MetricColumns, means: SubsetMeans, margin: float, confidence: float) -> Equivalence:
    if np.any(columns.differences):
        p_not_worse, p_not_better = means.p_above(-margin), means.p_below(margin)
        if columns.direction is Direction.LOWER:
            p_not_worse, p_not_better = p_not_better, p_not_worse
    else:
        p_not_worse = p_not_better = max(0.0, 1 - margin) ** len(columns.differences) if columns.is_rate else 1.0
    level = (1 - confidence) / 2
    return Equivalence(
        margin=margin,
        p_not_worse=p_not_worse,
        p_equivalent=max(p_not_worse, p_not_better),
        is_not_worse=p_not_worse <= level,
        is_equivalent=max(p_not_worse, p_not_better) <= level,
    )


def difference_text(found: MetricComparison) -> str:
    """The difference with its interval: `+0.16 [0.05, 0.27]`."""
    return _difference_text(found.difference, found.interval)


def direction_word(found: MetricComparison) -> str:
    """What the fine-tuned run is, by the sign of the difference: `better`, `worse`, `higher` or `lower`."""
    described = find(found.name)
    more, less = _WORDS[Direction.NEITHER if described is None else described.direction]
    return more if found.difference > 0 else less


def _verdict(columns: MetricColumns, found: _Found, candidates: Candidates, confidence: float) -> str:
    words = _difference_words(columns, found, candidates, confidence)
    equivalence = found.equivalence
    if equivalence is None:
        return words
    margin = _number(equivalence.margin)
    if equivalence.is_equivalent:
        return f"{words}; equivalent within {margin}"
    if columns.direction is Direction.NEITHER:
        return f"{words}; a difference of {margin} or more cannot be ruled out"
    if equivalence.is_not_worse:
        return f"{words}; not worse by {margin} or more"
    return f"{words}; worse by {margin} or more cannot be ruled out"


def _difference_words(columns: MetricColumns, found: _Found, candidates: Candidates, confidence: float) -> str:
    base, fine_tuned = candidates
    metric = metric_words(columns.name)
    if found.interval is None:
        least = least_prompts(confidence)
        if len(columns.differences) < least:
            return (
                f"no verdict on {metric} of {fine_tuned} against {base}: {len(columns.differences)} shared prompts, and fewer "
                f"than {least} cannot show any difference"
            )
        return f"no prompt differs in {metric} between {fine_tuned} and {base}, and nothing bounds how far one could"
    if found.p_value > 1 - confidence:
        if found.detectable is None:
            return f"no difference in {metric} between {fine_tuned} and {base} could be shown"
        return (
            f"no difference in {metric} between {fine_tuned} and {base} could be shown; this evaluation could have seen "
            f"{_number(found.detectable)} or more"
        )
    more, less = _WORDS[columns.direction]
    word = more if found.difference > 0 else less
    return f"{fine_tuned} is {word} than {base} in {metric}: {_difference_text(found.difference, found.interval)}"


def metric_words(name: str) -> str:
    """What a verdict calls the metric with this wire name: `pass@1`."""
    described = find(name)
    return label(name) if described is None else described.heading


def _difference_text(difference: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{difference:+.{_decimals(difference)}f}"
    decimals = min(_decimals(*interval), 6)
    low, high = interval
    return f"{difference:+.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _decimals(*values: float) -> int:
    """Decimals that show each value with a digit other than 0, at least two: a limit above 0 never reads as 0."""
    return max([2, *(-math.floor(math.log10(abs(value))) for value in values if value)])


def _number(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"
