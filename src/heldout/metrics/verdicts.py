"""One metric in two runs: paired by prompt, its difference, interval and p-value, and the verdict in words."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heldout.metrics.catalog import find, label
from heldout.metrics.differences import DifferenceTest, mean_limits_at, tails_for
from heldout.metrics.intervals import rounded, why_no_mean_interval
from heldout.metrics.metric import Direction, Mean, Metric, PromptMean, Result, RowMean
from heldout.metrics.rates import Rate, RatePair, two_ends
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
    """Interval of the difference. It leaves out 0 exactly when `p_value` is at most 1 - confidence. None where so few prompts, or
    prompts so much alike, do not bound the difference: `no_interval` has the reason."""
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
    no_interval: str = ""
    """The reason for a missing interval."""


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
    rates: RatePair | None = None
    """The counts behind the values, where the metric is a rate."""

    @property
    def differences(self) -> FloatArray:
        """fine_tuned - base, exactly 0 where the two are equal but for rounding."""
        differences = self.fine_tuned - self.base
        least = 1e-12 * np.maximum(np.abs(self.base), np.abs(self.fine_tuned)).max(initial=0.0)
        found: FloatArray = np.where(np.abs(differences) <= least, 0.0, differences)
        return found


def paired_columns(metric: Metric, base: Result, fine_tuned: Result) -> MetricColumns | None:
    """One metric on the prompts that both runs have it on; None when a run lacks it, or it is no mean.

    base, fine_tuned: what the metric's function returns for either run, with `prompt_index` naming the same prompts.
    """
    if not isinstance(base, Mean) or not isinstance(fine_tuned, Mean):
        return None
    if isinstance(base, PromptMean) and isinstance(fine_tuned, PromptMean):
        _, in_base, in_tuned = _shared(base.prompt_index, fine_tuned.prompt_index)
        columns = base.values[in_base], fine_tuned.values[in_tuned]
        rates = _prompt_rates(base, fine_tuned, in_base, in_tuned)
        is_rate = (metric.low, metric.high) == (0, 1)
    else:
        before, after = _prompt_sums(base), _prompt_sums(fine_tuned)
        _, in_base, in_tuned = _shared(before.prompt_index, after.prompt_index)
        columns = before.linearized(in_base), after.linearized(in_tuned)
        rates = _row_rates(metric, base, fine_tuned, in_base, in_tuned)
        is_rate = rates is not None and rates.width == 1
    return MetricColumns(metric.name, *columns, is_rate=is_rate, direction=metric.direction, rates=rates)


def _prompt_rates(base: PromptMean, fine_tuned: PromptMean, in_base: IntArray, in_tuned: IntArray) -> RatePair | None:
    before, after = Rate.of_prompts(base), Rate.of_prompts(fine_tuned)
    return None if before is None or after is None else RatePair(before.select(in_base), after.select(in_tuned))


def _row_rates(metric: Metric, base: Mean, fine_tuned: Mean, in_base: IntArray, in_tuned: IntArray) -> RatePair | None:
    """The rates of a mean over rows of two different values, the same two in both runs."""
    if not isinstance(base, RowMean) or not isinstance(fine_tuned, RowMean) or len(in_base) == 0:
        return None
    ends = two_ends(metric, base.values, fine_tuned.values)
    if ends is None:
        return None
    before, after = Rate.of_rows(base, ends, in_base), Rate.of_rows(fine_tuned, ends, in_tuned)
    return RatePair(before, after, ends.high - ends.low)


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
    """Compares two runs by one metric, by itself: the corrected p-value is the p-value.

    means: the subset means of `columns.differences`. margin: the largest difference that does not matter.
    """
    differences = columns.differences
    no_interval = why_no_interval(columns, confidence)
    test = difference_test(columns, means, confidence)
    interval = None if no_interval else test.interval(confidence)
    found = _Found(
        difference=float(differences.mean()),
        interval=interval,
        no_interval=no_interval or "",
        p_value=_p_value(columns, test, confidence),
        detectable=detectable_difference(differences, confidence, is_rate=columns.is_rate, interval=interval),
        equivalence=None if margin is None else _equivalence(columns, test, margin, confidence),
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
        no_interval=found.no_interval,
    )


class _Found(NamedTuple):
    difference: float
    interval: tuple[float, float] | None
    no_interval: str
    p_value: float
    detectable: float | None
    equivalence: Equivalence | None


def why_no_interval(columns: MetricColumns, confidence: float) -> str | None:
    """Why there is no interval for the difference; None where there is one."""
    num_prompts, least = len(columns.differences), least_prompts(confidence)
    if num_prompts < least:
        return f"{num_prompts} shared prompts, and fewer than {least} cannot show any difference"
    if columns.rates is not None:
        return None
    if not np.any(columns.differences):
        return None if columns.is_rate else "no prompt differs, and nothing bounds how far one could"
    return _why_differences_say_too_little(columns.differences)


def _why_differences_say_too_little(differences: FloatArray) -> str | None:
    """Why values that are not rates do not bound their mean difference; None where they do."""
    if why_no_mean_interval(differences) is None:
        return None
    num_prompts, amounts = len(differences), np.unique(rounded(differences))
    if len(amounts) == 1:
        return f"all {num_prompts} prompts differ by the same amount: no interval, since none of it varies"
    if np.count_nonzero(differences) == 1:
        return f"only one of {num_prompts} prompts differs: no interval, since nothing shows how far others could"
    return (
        f"all {num_prompts} prompts but one differ by the same amount: no interval, since nothing shows how others do"
    )


def difference_test(columns: MetricColumns, means: SubsetMeans, confidence: float) -> DifferenceTest:
    """The test of the difference; it has limits wherever `why_no_interval` has no reason."""
    tails = tails_for(confidence)
    if why_no_interval(columns, confidence) is not None:
        return DifferenceTest.of(means, None, tails)
    if columns.rates is not None:
        return DifferenceTest.of(means, columns.rates.limits_at(tails), tails)
    if np.any(columns.differences):
        return DifferenceTest.of(means, mean_limits_at(columns.differences, tails), tails)
    # No prompt differs: the share of prompts that could differ, all the same way, is bounded as by Clopper and Pearson.
    bound = 1 - tails ** (1 / len(columns.differences))
    return DifferenceTest.of(means, np.stack([-bound, bound], axis=1), tails)


def _p_value(columns: MetricColumns, test: DifferenceTest, confidence: float) -> float:
    return test.p_value() if len(columns.differences) >= least_prompts(confidence) else 1.0


def _equivalence(columns: MetricColumns, test: DifferenceTest, margin: float, confidence: float) -> Equivalence:
    if why_no_interval(columns, confidence) is None:
        p_not_worse, p_not_better = test.p_above(-margin), test.p_below(margin)
    else:
        p_not_worse = p_not_better = 1.0
    if columns.direction is Direction.LOWER:
        p_not_worse, p_not_better = p_not_better, p_not_worse
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
    if found.interval is None and len(columns.differences) < least_prompts(confidence):
        return f"no verdict on {metric} of {fine_tuned} against {base}: {found.no_interval}"
    if found.interval is None and not np.any(columns.differences):
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
    why = f" ({found.no_interval})" if found.interval is None else ""
    return f"{fine_tuned} is {word} than {base} in {metric}: {_difference_text(found.difference, found.interval)}{why}"


def metric_words(name: str) -> str:
    """The name of a metric in verdicts, from its wire name: `pass@1`."""
    described = find(name)
    return label(name) if described is None else described.heading


def _difference_text(difference: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{difference:+.{min(_decimals(difference), 6)}f}"
    decimals = min(_decimals(*interval), 6)
    low, high = interval
    return f"{difference:+.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _decimals(*values: float) -> int:
    """Decimals that show each value with a digit other than 0, at least two: a limit above 0 never reads as 0."""
    return max([2, *(-math.floor(math.log10(abs(value))) for value in values if value)])


def _number(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"
