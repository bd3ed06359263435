"""Comparison of two runs: paired by prompt, metric by metric, with a verdict that claims no more than its interval."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.catalog import MEAN_REWARD, PLANNED, SUCCESS_RATE, metrics_of, resolve
from heldout.metrics.failure_rates import RateDifference, SideFailures, rate_differences
from heldout.metrics.metric import MetricTables
from heldout.metrics.multiplicity import gatekept
from heldout.metrics.pairing import Pairs, Side, pair_sides
from heldout.metrics.sample import OVERFLOW
from heldout.metrics.settings import MetricSettings
from heldout.metrics.subset_means import SubsetMeans, least_prompts, subset_means
from heldout.metrics.verdicts import (
    Candidates,
    Equivalence,
    MetricColumns,
    MetricComparison,
    difference_text,
    direction_word,
    judge,
    metric_words,
    paired_columns,
)

__all__ = [
    "Comparison",
    "DifferingSetting",
    "Equivalence",
    "MetricComparison",
    "PromptMove",
    "RateDifference",
    "Side",
    "SideFailures",
    "compare",
]


@dataclass(frozen=True, slots=True)
class PromptMove:
    """One prompt's mean reward in both runs."""

    key: str
    base: float
    """Mean reward."""
    fine_tuned: float
    """Mean reward."""
    base_rollouts: int
    fine_tuned_rollouts: int

    @property
    def difference(self) -> float:
        return self.fine_tuned - self.base


@dataclass(frozen=True, slots=True)
class DifferingSetting:
    """Something besides the policy in which two runs differ."""

    name: str
    """Such as `agent`, `dataset` or `success_threshold`."""
    base: str
    fine_tuned: str

    def __str__(self) -> str:
        return f"{self.name}: {self.base} against {self.fine_tuned}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison: two runs on the prompts they share."""

    base: str
    """The run's name."""
    fine_tuned: str
    metrics: dict[str, MetricComparison]
    """The numbers of each metric. They support no conclusion where the runs are not comparable."""
    primary: str
    """The metric that the verdict is about: `MetricSettings.primary_metric`, fixed before the runs are looked at."""
    verdict: str
    """One sentence: both runs, the metric, the conclusion, and any evidence against it."""
    not_comparable: str
    """Why no verdict is given; empty when there is one."""
    num_prompts: int
    """Prompts that both runs have."""
    only_base: tuple[str, ...]
    """Keys of prompts left out because only the base run has them."""
    only_fine_tuned: tuple[str, ...]
    wins: int
    """Prompts with a higher mean reward after fine-tuning."""
    losses: int
    ties: int
    moves: tuple[PromptMove, ...]
    """Every shared prompt, those that moved most first."""
    base_failures: SideFailures
    fine_tuned_failures: SideFailures
    rates: tuple[RateDifference, ...]
    """Failures, and retries where they are known."""
    readings: tuple[str, ...]
    """For incomplete runs, the verdict under each rule: with failed rollouts as 0, and with failed rollouts left out."""
    differing: tuple[DifferingSetting, ...]
    """What differs between the runs besides the policy."""
    notes: tuple[str, ...]
    """Warnings: failures, partial runs, prompts left out, metrics that could not be compared."""
    confidence: float

    @property
    def is_comparable(self) -> bool:
        """Whether there is a verdict."""
        return not self.not_comparable


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # numbers that overflow are left out, with a note
def compare(base: Side, fine_tuned: Side, settings: MetricSettings, *, margin: float | None = None) -> Comparison:
    """Compare two runs prompt by prompt.

    Rollouts of prompts with the same key are one group. For each metric: the value of each run on the shared prompts, the
    difference, its interval and the p-value of no difference, both from one test (`heldout.metrics.differences`),
    and the corrected p-value (`heldout.metrics.multiplicity`). `margin`: also judge whether the two are equivalent, and
    whether the fine-tuned run is not worse, by this much.

    There is no verdict when both sides are one run, when a larger share of a side's rollouts failed than
    `settings.max_failed_share`, or when the sides were played for different success thresholds and the verdict depends on which
    one is used. Both sides are judged at the threshold of `settings`.
    Raises MetricError when no prompt is shared, when the runs do not both have the primary metric, or when the margin is not a
    finite number above 0.
    """
    if margin is not None and not 0 < margin < np.inf:
        raise MetricError(
            f"margin is {margin!r}; it must be a finite number above 0: the largest difference that does not matter"
        )
    sides = (base, fine_tuned)
    failures = SideFailures.of(base), SideFailures.of(fine_tuned)
    incomplete = [one for one in failures if not one.is_within(settings.max_failed_share)]
    whole = pair_sides(base, fine_tuned, replace(settings, failed_rollouts="zero"))
    # With nothing scored, failed rollouts that are left out would leave no prompt to show numbers of.
    shown = replace(settings, failed_rollouts="zero") if incomplete else settings
    judged = _judged(sides, shown, margin)
    rates = rate_differences(whole, settings)
    verdict, not_comparable = _verdict(sides, judged, incomplete, rates, settings, margin)
    moves = _moves(judged.pairs)
    return Comparison(
        base=base.name,
        fine_tuned=fine_tuned.name,
        metrics=judged.metrics if not not_comparable else _without_verdicts(judged.metrics, verdict),
        primary=judged.primary,
        verdict=verdict,
        not_comparable=not_comparable,
        num_prompts=len(judged.pairs.keys),
        only_base=judged.pairs.only_base,
        only_fine_tuned=judged.pairs.only_fine_tuned,
        wins=sum(move.difference > 0 for move in moves),
        losses=sum(move.difference < 0 for move in moves),
        ties=sum(move.difference == 0 for move in moves),
        moves=moves,
        base_failures=failures[0],
        fine_tuned_failures=failures[1],
        rates=rates,
        readings=tuple(_readings(sides, settings)) if incomplete else (),
        differing=(),
        notes=tuple(_notes(sides, failures, judged)),
        confidence=settings.confidence,
    )


class _Judged(NamedTuple):
    """Both runs under one rule for failed rollouts and one success threshold."""

    pairs: Pairs
    metrics: dict[str, MetricComparison]
    primary: str
    overflowing: list[str]

    def direction(self, confidence: float) -> int:
        """1 or -1 where the primary metric is shown to be higher or lower, else 0."""
        return _direction(self.metrics[self.primary], confidence)


def _judged(sides: tuple[Side, Side], settings: MetricSettings, margin: float | None = None) -> _Judged:
    pairs = pair_sides(*sides, settings)
    columns, overflowing = _parted(_all_columns(pairs, settings))
    candidates = Candidates(sides[0].name, sides[1].name)
    metrics = _judge_all(columns, candidates, settings, margin)
    primary = resolve(
        settings.primary_metric, metrics, problem="is the primary metric, but the runs do not both have it"
    )
    corrected = gatekept(
        primary,
        {name: metric.p_value for name, metric in metrics.items()},
        {column.name: column.differences for column in columns},
        least_prompts=least_prompts(settings.confidence),
    )
    corrected_metrics = {name: replace(one, adjusted_p_value=corrected[name]) for name, one in metrics.items()}
    return _Judged(pairs, corrected_metrics, primary, overflowing)


def _verdict(
    sides: tuple[Side, Side],
    judged: _Judged,
    incomplete: list[SideFailures],
    rates: tuple[RateDifference, ...],
    settings: MetricSettings,
    margin: float | None,
) -> tuple[str, str]:
    """The verdict, and the reason when there is none (else empty)."""
    if sides[0].identity and sides[0].identity == sides[1].identity:
        reason = f"{sides[0].name} and {sides[1].name} are the same run"
        return f"not comparable: {reason}", reason
    if incomplete:
        reason = "; ".join(map(str, incomplete))
        return f"not comparable: {reason}", reason
    verdict = judged.metrics[judged.primary].verdict
    for threshold in _other_thresholds(sides, settings):
        other = _judged(sides, replace(settings, success_threshold=threshold), margin)
        if other.direction(settings.confidence) != judged.direction(settings.confidence):
            at = f"success_threshold {settings.success_threshold:g}: {verdict}"
            otherwise = f"at {threshold:g}: {other.metrics[other.primary].verdict}"
            reason = (
                f"the verdict depends on the success threshold, and the runs have different ones; at {at}; {otherwise}"
            )
            return f"not comparable: {reason}", reason
    against = [*_contradictions(judged, settings), *_rate_words(sides, rates, settings)]
    return "; but ".join([verdict, *against]), ""


def _other_thresholds(sides: tuple[Side, Side], settings: MetricSettings) -> list[float]:
    given = [side.success_threshold for side in sides if side.success_threshold is not None]
    return sorted(set(given) - {settings.success_threshold})


def _contradictions(judged: _Judged, settings: MetricSettings) -> Iterator[str]:
    """Differences that success rate or mean reward shows and the primary metric does not."""
    shown = judged.direction(settings.confidence)
    for name in PLANNED:
        other = judged.metrics.get(name)
        if other is None or name == judged.primary:
            continue
        direction = _direction(other, settings.confidence)
        if direction not in (0, shown):
            yield f"{direction_word(other)} in {metric_words(name)}: {difference_text(other)}"


def _direction(found: MetricComparison, confidence: float) -> int:
    return int(np.sign(found.difference)) if found.p_value <= 1 - confidence else 0


def _rate_words(sides: tuple[Side, Side], rates: tuple[RateDifference, ...], settings: MetricSettings) -> Iterator[str]:
    """The failures and retries that differ between the runs."""
    for rate in rates:
        if rate.p_value <= 1 - settings.confidence:
            left_out = " and were left out" if settings.failed_rollouts == "exclude" and rate.event == "failed" else ""
            yield (
                f"{rate.fine_tuned:.1%} of the rollouts of {sides[1].name} {rate.event}{left_out}, {rate.base:.1%} of those of "
                f"{sides[0].name} (p {rate.p_value:.2g})"
            )


def _readings(sides: tuple[Side, Side], settings: MetricSettings) -> Iterator[str]:
    zero = _judged(sides, replace(settings, failed_rollouts="zero"))
    yield f"with failed rollouts as reward 0: {zero.metrics[zero.primary].verdict}"
    try:
        excluded = _judged(sides, replace(settings, failed_rollouts="exclude"))
    except MetricError:
        yield "with failed rollouts left out: no prompt has a scored rollout in both runs"
        return
    yield f"with failed rollouts left out: {excluded.metrics[excluded.primary].verdict}"


def _notes(sides: tuple[Side, Side], failures: tuple[SideFailures, SideFailures], judged: _Judged) -> Iterator[str]:
    for one in failures:
        if one.failed:
            hint = next((reason.hint for reason in one.reasons if reason.hint), "")
            yield str(one) + (f": {hint}" if hint else "")
    yield from judged.pairs.notes
    thresholds = {side.success_threshold for side in sides} - {None}
    if len(thresholds) > 1:
        named = " and ".join(f"{value:g}" for value in sorted(value for value in thresholds if value is not None))
        yield f"the runs have success thresholds {named}; successes of both are counted again at one of them"
    if judged.primary == SUCCESS_RATE and not _has_success(judged.pairs) and MEAN_REWARD in judged.metrics:
        yield (
            "no rollout succeeded in either run: for the next evaluation, set -H success_threshold to a reward that counts, "
            "or -H primary_metric='mean reward'"
        )
    yield from (f"{name} is not compared: {OVERFLOW}" for name in judged.overflowing)


def _has_success(pairs: Pairs) -> bool:
    return bool(pairs.base.sample.is_success.any() or pairs.fine_tuned.sample.is_success.any())


def _without_verdicts(metrics: dict[str, MetricComparison], why: str) -> dict[str, MetricComparison]:
    return {name: replace(metric, verdict=why) for name, metric in metrics.items()}


def _judge_all(
    all_columns: list[MetricColumns], candidates: Candidates, settings: MetricSettings, margin: float | None
) -> dict[str, MetricComparison]:
    means: dict[str, SubsetMeans] = {}
    for columns in _by_prompts(all_columns):
        rng = np.random.default_rng(settings.seed)
        stacked = np.stack([column.differences for column in columns], axis=1)
        means.update(zip((column.name for column in columns), subset_means(stacked, rng), strict=True))
    return {
        columns.name: judge(columns, means[columns.name], candidates, confidence=settings.confidence, margin=margin)
        for columns in all_columns
    }


def _by_prompts(all_columns: list[MetricColumns]) -> list[list[MetricColumns]]:
    """Group metrics with the same number of prompts: they share their random subsets."""
    batches: dict[int, list[MetricColumns]] = {}
    for columns in all_columns:
        batches.setdefault(len(columns.base), []).append(columns)
    return list(batches.values())


def _all_columns(pairs: Pairs, settings: MetricSettings) -> list[MetricColumns]:
    """The metrics that are compared and that both runs have, the success rate first."""
    settings = replace(settings, pass_k_values=tuple(sorted({1, *settings.pass_k_values})))
    base, tuned = (
        MetricTables(side.rollouts, None, settings, side.agent_metrics) for side in (pairs.base, pairs.fine_tuned)
    )
    of_tuned = {metric.name for metric in metrics_of(tuned)}
    compared = [metric for metric in metrics_of(base) if metric.is_compared and metric.name in of_tuned]
    found = (paired_columns(metric, metric.compute(base), metric.compute(tuned)) for metric in compared)
    return [columns for columns in found if columns is not None and len(columns.base)]


def _parted(columns: list[MetricColumns]) -> tuple[list[MetricColumns], list[str]]:
    """The metrics that can be compared, and the names of those whose values, added up or squared, overflow a float."""
    is_held = [bool(np.isfinite(np.square(column.differences).sum())) for column in columns]
    overflowing = [column.name for column, held in zip(columns, is_held, strict=True) if not held]
    return [column for column, held in zip(columns, is_held, strict=True) if held], overflowing


def _moves(pairs: Pairs) -> tuple[PromptMove, ...]:
    base, tuned = pairs.base.sample, pairs.fine_tuned.sample
    order = np.argsort(-np.abs(tuned.reward_means - base.reward_means), kind="stable")
    return tuple(
        PromptMove(
            key=pairs.keys[p],
            base=float(base.reward_means[p]),
            fine_tuned=float(tuned.reward_means[p]),
            base_rollouts=int(base.sizes[p]),
            fine_tuned_rollouts=int(tuned.sizes[p]),
        )
        for p in order
    )
