"""Computes results by a column of the dataset: one slice per kind of prompt."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from heldout.datasets.columns import check_columns, column_names, read_rows
from heldout.metrics.catalog import MEAN_REWARD, SUCCESS_RATE
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import summarize
from heldout.report.rollout_rows import FloatArray, RolloutRows

_MOST_VALUES = 20
"""The most slices shown. The rarest values share the last one."""
_MOST_NUMBERS = 8
"""A numeric column with more values than this is divided into quarters."""
_QUARTERS = 4
ABSENT = "(none)"
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Slice:
    """The prompts that share a value of the column, and their results."""

    value: str
    num_prompts: int
    num_rollouts: int
    failed: int
    success: float | None
    """Success rate (pass@1); None when no rollout counts."""
    success_interval: tuple[float, float] | None
    reward: float | None
    reward_interval: tuple[float, float] | None
    note: str
    """The reason why a number or an interval is missing."""


def columns_of(prompts: Path) -> list[str]:
    """Returns the names of the columns except the prompt, in the order in which they first appear.

    prompts: the run's prompts.parquet.
    """
    return column_names(read_rows(prompts)[1])


def slices(prompts: Path, rows: RolloutRows, column: str, settings: MetricSettings) -> list[Slice]:
    """Compute results for each value of `column`, the commonest first, or for each quarter of a numeric column, in order.

    Every slice has its own interval. They are not corrected for multiple comparisons. Raises InputError when no prompt has
    the column, naming the nearest.
    """
    indices, given = read_rows(prompts)
    check_columns(given, [column])
    labels, order = _labels([row.get(column) for row in given])
    by_prompt = dict(zip(indices.tolist(), labels, strict=True))
    of_row = np.array([by_prompt.get(index, ABSENT) for index in rows.prompt_index.tolist()], dtype=object)
    return [_slice(label, rows, of_row == label, settings) for label in order if (of_row == label).any()]


def _slice(label: str, rows: RolloutRows, mask: Any, settings: MetricSettings) -> Slice:
    summary = summarize(rows.rollout_table(mask), None, replace(settings, pass_k_values=(1,)), seconds=None)
    return Slice(
        value=label,
        num_prompts=summary.num_prompts,
        num_rollouts=int(mask.sum()),
        failed=summary.failed,
        success=summary.metrics.get(SUCCESS_RATE),
        success_interval=summary.intervals.get(SUCCESS_RATE),
        reward=summary.metrics.get(MEAN_REWARD),
        reward_interval=summary.intervals.get(MEAN_REWARD),
        note=summary.notes.get(SUCCESS_RATE) or summary.notes.get(MEAN_REWARD, ""),
    )


def _labels(values: list[object]) -> tuple[list[str], list[str]]:
    """Assign each prompt to a slice, and order the slices for display."""
    given = [value for value in values if value is not None]
    numbers = [value for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(given) and len(set(numbers)) > _MOST_NUMBERS:
        return _quarters(values, np.array(numbers, dtype=np.float64))
    labels = [_label(value) for value in values]
    names, counts = np.unique(np.array(labels, dtype=object), return_counts=True)
    by_count = sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    order = [name for name, _ in by_count[:_MOST_VALUES]]
    if len(by_count) > _MOST_VALUES:
        kept = set(order)
        labels = [label if label in kept else OTHERS for label in labels]
        order.append(OTHERS)
    return labels, order


def _quarters(values: list[object], numbers: FloatArray) -> tuple[list[str], list[str]]:
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _QUARTERS + 1)))
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    labels = []
    for value in values:
        if not isinstance(value, int | float):
            labels.append(ABSENT)
            continue
        place = int(np.searchsorted(edges, value, side="left"))
        labels.append(names[min(max(place - 1, 0), len(names) - 1)])
    return labels, [*names, ABSENT]


def _label(value: object) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else orjson.dumps(value).decode()
