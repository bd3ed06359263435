"""Comparison of two runs: paired by prompt, metric by metric, with a verdict that claims no more than its interval."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.catalog import MEAN_REWARD, SUCCESS_RATE, metrics_of
from heldout.metrics.metric import MetricTables
from heldout.metrics.pairing import Pairs, Side, pair_sides
from heldout.metrics.sample import OVERFLOW
from heldout.metrics.settings import MetricSettings
from heldout.metrics.subset_means import SubsetMeans, subset_means
from heldout.metrics.verdicts import Equivalence, MetricColumns, MetricComparison, judge, paired_columns

__all__ = ["Comparison", "Equivalence", "MetricComparison", "PromptMove", "Side", "compare", "holm"]


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
class Comparison:
    """The result of a comparison: two runs on the prompts they share."""

    base: str
    """The run's name."""
    fine_tuned: str
    metrics: dict[str, MetricComparison]
    primary: str
    """The metric that the verdict is about: the success rate, or the mean reward where nothing ever succeeded."""
    verdict: str
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
    notes: tuple[str, ...]
    """Warnings: partial runs, prompts left out, metrics that could not be compared."""
    confidence: float


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # numbers that overflow are left out, with a note
def compare(base: Side, fine_tuned: Side, settings: MetricSettings, *, margin: float | None = None) -> Comparison:
    """Compare two runs prompt by prompt.

    Rollouts of prompts with the same key are one group. For each metric: the value of each run on the shared prompts, the
    difference, its interval and the p-value of no difference, both from one sign-flip test (`heldout.metrics.subset_means`),
    and the p-value after Holm's correction over all metrics. `margin`: also judge whether the two are equivalent, and
    whether the fine-tuned run is not worse, by this much.
    Raises MetricError when no prompt is shared, or when the margin is not a finite number above 0.
    """
    if margin is not None and not 0 < margin < np.inf:
        raise MetricError(
            f"margin is {margin!r}; it must be a finite number above 0: the largest difference that does not matter"
        )
    pairs = pair_sides(base, fine_tuned, settings)
    columns, overflowing = _parted(_all_columns(pairs, settings))
    judged = _judge_all(columns, settings, margin)
    has_success = pairs.base.sample.is_success.any() or pairs.fine_tuned.sample.is_success.any()
    primary = SUCCESS_RATE if has_success or MEAN_REWARD not in judged else MEAN_REWARD
    moves = _moves(pairs)
    return Comparison(
        base=base.name,
        fine_tuned=fine_tuned.name,
        metrics=judged,
        primary=primary,
        verdict=judged[primary].verdict,
        num_prompts=len(pairs.keys),
        only_base=pairs.only_base,
        only_fine_tuned=pairs.only_fine_tuned,
        wins=sum(move.difference > 0 for move in moves),
        losses=sum(move.difference < 0 for move in moves),
        ties=sum(move.difference == 0 for move in moves),
        moves=moves,
        notes=(*pairs.notes, *(f"{name} is not compared: {OVERFLOW}" for name in overflowing)),
        confidence=settings.confidence,
    )


def holm(p_values: Iterable[float]) -> list[float]:
    """p-values corrected so that the chance of any false finding among them stays at the level of one test.

    Valid for tests that depend on each other in any way. Source: Holm 1979, Scand. J. Statist. 6, 65-70.
    """
    values = np.array(list(p_values), dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def _judge_all(
    all_columns: list[MetricColumns], settings: MetricSettings, margin: float | None
) -> dict[str, MetricComparison]:
    means: dict[str, SubsetMeans] = {}
    for columns in _by_prompts(all_columns):
        rng = np.random.default_rng(settings.seed)
        stacked = np.stack([column.differences for column in columns], axis=1)
        means.update(zip((column.name for column in columns), subset_means(stacked, rng), strict=True))
    adjusted = holm(means[columns.name].p_value() for columns in all_columns)
    return {
        columns.name: judge(columns, means[columns.name], p_value, confidence=settings.confidence, margin=margin)
        for columns, p_value in zip(all_columns, adjusted, strict=True)
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
