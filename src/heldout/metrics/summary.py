"""All numbers of a run: every metric of the catalog, with an interval for each mean and rate, and a reason for what is absent."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from heldout.metrics.catalog import PLANNED, metrics_of
from heldout.metrics.failures import FailureReason
from heldout.metrics.intervals import Interval, mean_interval, why_no_mean_interval
from heldout.metrics.metric import Absent, Mean, Metric, MetricTables, PromptMean, Result, RowMean
from heldout.metrics.rates import Rate, two_ends
from heldout.metrics.rerun import Rerun, rerun_of
from heldout.metrics.sample import OVERFLOW, Sample, linearized
from heldout.metrics.settings import MetricSettings, greatest_meeting
from heldout.metrics.table import FloatArray, IntArray, RolloutTable, TurnTable


@dataclass(frozen=True, slots=True)
class Reading:
    """The success rate and the mean reward under one rule for failed rollouts."""

    rule: str
    """In words: `failed rollouts as reward 0` or `failed rollouts left out`."""
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers, by the wire names of the catalog. A metric that these rollouts cannot give is not in `metrics`;
    `notes` says why."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Low and high end, for each mean and rate that has one."""
    notes: dict[str, str]
    """By metric: why it, or its interval, is missing or says little."""
    no_interval: dict[str, str]
    """By metric that could have an interval and has none: the reason, which stands in `notes` too."""
    num_prompts: int
    """Prompts with at least one finished rollout."""
    scored: int
    failed: int
    missing: int | None
    """Rollouts planned and not finished; None when the plan was not given."""
    is_incomplete: bool
    """Whether a larger share of rollouts failed for good than `max_failed_share`: failures may have changed every number."""
    failures: tuple[FailureReason, ...]
    """Why rollouts failed for good, the most common first."""
    readings: tuple[Reading, ...]
    """Of an incomplete run with a scored rollout: both rules for failed rollouts."""
    confidence: float
    rerun: Mapping[str, Rerun] = field(default_factory=dict)
    """By metric, for rewards and success rates whose groups show it: the number on these very prompts."""


def summarize(
    rollouts: RolloutTable,
    turns: TurnTable | None,
    settings: MetricSettings,
    *,
    agent_metrics: Mapping[str, FloatArray] | None = None,
    seconds: float | None,
    expected_rollouts: int | None = None,
    agent_retries: IntArray | None = None,
    failures: tuple[FailureReason, ...] = (),
) -> Summary:
    """Compute every metric of a run.

    agent_metrics: by name, shape (num_rollouts,), NaN where the agent gave none; they become `agent/<name>`.
    seconds: wall-clock time of the evaluation; None when unknown. expected_rollouts: how many the job planned. agent_retries: see
    `MetricTables`. failures: see `Summary`. A run without a scored rollout has no reward and no success rate, whatever failed
    rollouts count as. A number that is beyond what a float can hold is left out, with a note.
    """
    scored = int(rollouts.is_scored.sum())
    failed = rollouts.num_rollouts - scored
    counting = settings if scored else replace(settings, failed_rollouts="exclude")
    tables = MetricTables(rollouts, turns, counting, agent_metrics or {}, seconds, agent_retries)
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    notes: dict[str, str] = {}
    no_interval: dict[str, str] = {}
    rerun: dict[str, Rerun] = {}
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for metric in metrics_of(tables):
            result = metric.compute(tables)
            found = _estimated(metric, result, tables)
            if found.value is not None:
                metrics[metric.name] = found.value
            if found.interval is not None:
                intervals[metric.name] = found.interval
            if found.no_interval:
                no_interval[metric.name] = found.no_interval
            if found.note:
                notes[metric.name] = found.note
            again = rerun_of(metric, result, tables.sample, settings.confidence)
            if found.value is not None and again is not None:
                rerun[metric.name] = again
    is_incomplete = failed > greatest_meeting(settings.max_failed_share) * rollouts.num_rollouts
    return Summary(
        metrics=metrics,
        intervals=intervals,
        notes=notes,
        no_interval=no_interval,
        num_prompts=tables.groups.num_prompts,
        scored=scored,
        failed=failed,
        missing=None if expected_rollouts is None else expected_rollouts - rollouts.num_rollouts,
        is_incomplete=is_incomplete,
        failures=failures,
        readings=tuple(_readings(rollouts, settings)) if is_incomplete and scored else (),
        confidence=settings.confidence,
        rerun=rerun,
    )


def _readings(rollouts: RolloutTable, settings: MetricSettings) -> Iterator[Reading]:
    """Both rules for failed rollouts."""
    shown = replace(settings, max_failed_share=1.0, pass_k_values=(1,))
    rules = {
        "failed rollouts as reward 0": replace(shown, failed_rollouts="zero"),
        "failed rollouts left out": replace(shown, failed_rollouts="exclude"),
    }
    for words, rule in rules.items():
        found = summarize(rollouts, None, rule, seconds=None)
        yield Reading(
            words,
            {name: found.metrics[name] for name in PLANNED if name in found.metrics},
            {name: found.intervals[name] for name in PLANNED if name in found.intervals},
        )


@dataclass(frozen=True, slots=True)
class _Estimate:
    """One metric of a run."""

    value: float | None
    interval: tuple[float, float] | None = None
    no_interval: str = ""
    note: str = ""


def _estimated(metric: Metric, result: Result, tables: MetricTables) -> _Estimate:
    match result:
        case None:
            return _Estimate(None)
        case Absent(reason):
            return _Estimate(None, note=reason)
        case float() | int():
            return _Estimate(float(result)) if math.isfinite(result) else _Estimate(None, note=OVERFLOW)
        case _:
            return _mean(metric, result, tables)


def _mean(metric: Metric, mean: Mean, tables: MetricTables) -> _Estimate:
    value, by_prompt, interval = _value_and_interval(metric, mean, tables.settings.confidence)
    if not math.isfinite(value):
        return _Estimate(None, note=OVERFLOW)
    if interval is not None and mean.is_reward:
        interval = _with_unseen_successes(interval, tables)
    if interval is None:
        reason = why_no_mean_interval(by_prompt) or ""
        return _Estimate(value, None, reason, _note(mean, reason, tables.sample, has_interval=False))
    low = interval.low if metric.low is None else max(interval.low, metric.low)
    high = interval.high if metric.high is None else min(interval.high, metric.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        reason = f"no interval: {OVERFLOW}"
        return _Estimate(value, None, reason, reason)
    return _Estimate(value, (low, high), "", _note(mean, "", tables.sample, has_interval=True))


def _value_and_interval(metric: Metric, mean: Mean, confidence: float) -> tuple[float, FloatArray, Interval | None]:
    """The value, one value for each prompt that scatters as it does, and the interval."""
    match mean:
        case RowMean():
            sizes = mean.groups.count()
            by_prompt = linearized(mean.groups.sum(mean.values), sizes.astype(np.float64))
            return float(mean.values.mean()), by_prompt, _row_interval(metric, mean, by_prompt, confidence)
        case PromptMean():
            return float(mean.values.mean()), mean.values, _prompt_interval(mean, confidence)
        case _:
            by_prompt = linearized(mean.sums, mean.counts)
            return mean.value, by_prompt, mean_interval(by_prompt, confidence)


def _row_interval(metric: Metric, mean: RowMean, by_prompt: FloatArray, confidence: float) -> Interval | None:
    """Of a mean over rows whose groups may differ in size; by_prompt: linearized, shape (num_prompts,)."""
    ends = two_ends(metric, mean.values)
    if ends is None:
        return mean_interval(by_prompt, confidence)
    rate = Rate.of_rows(mean, ends).interval(confidence)
    width = ends.high - ends.low
    return None if rate is None else Interval(ends.low + rate.low * width, ends.low + rate.high * width)


def _prompt_interval(mean: PromptMean, confidence: float) -> Interval | None:
    rate = Rate.of_prompts(mean)
    return mean_interval(mean.values, confidence) if rate is None else rate.interval(confidence)


def _with_unseen_successes(interval: Interval, tables: MetricTables) -> Interval:
    """Raises the upper end of a mean reward to the success threshold times the upper end of pass@1.

    Every success has at least that reward, so where no reward is negative the mean reward cannot be smaller. A sample of 30
    prompts with rewards of 0 and 0.1 does not rule out that a tenth of the prompts have a reward of 1.
    """
    sample, threshold = tables.sample, tables.settings.success_threshold
    if threshold <= 0 or sample.rewards.min() < 0:
        return interval
    rate = Rate(sample.success_rates, sample.successes, sample.sizes).interval(tables.settings.confidence)
    return interval if rate is None else Interval(interval.low, max(interval.high, threshold * rate.high))


def _note(mean: Mean, no_interval: str, sample: Sample, *, has_interval: bool) -> str:
    match mean:
        case RowMean():
            return no_interval or mean.note
        case PromptMean():
            notes = [no_interval, mean.note]
            if mean.quantity is not None and has_interval and sample.is_success.all():
                notes.append("all rollouts succeeded: the interval is what this many prompts can rule out")
            if mean.quantity is not None and has_interval and not sample.is_success.any():
                notes.append("no rollout succeeded: the interval is what this many prompts can rule out")
                if (best := float(sample.rewards.max())) > 0:
                    notes.append(f"the highest reward is {best:.4g}, short of success_threshold")
            return "; ".join(filter(None, notes))
        case _:
            return no_interval
