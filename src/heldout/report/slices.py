"""Computes results by a column of the dataset: one slice per kind of prompt."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from heldout.datasets.columns import check_columns, column_names, read_rows
from heldout.job.json_values import stored_json
from heldout.metrics.catalog import MEAN_REWARD, SUCCESS_RATE
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import summarize
from heldout.report.rollout_rows import RolloutRows

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
    """Compute results for each value of `column`, the most common first, or for each quarter of a numeric column, in order.

    Values that differ are different slices, also where they print alike: the number 1 and the text "1". Each slice has its own
    interval, not corrected for multiple comparisons. Raises InputError when no prompt has the column, naming the nearest.
    """
    indices, given = read_rows(prompts)
    check_columns(given, [column])
    cut = _divided([row.get(column) for row in given])
    by_prompt = dict(zip(indices.tolist(), cut.of_prompt, strict=True))
    absent = cut.names.index(ABSENT) if ABSENT in cut.names else -1
    of_row = np.array([by_prompt.get(index, absent) for index in rows.prompt_index.tolist()], dtype=np.int64)
    return [
        _slice(name, rows, of_row == place, settings) for place, name in enumerate(cut.names) if (of_row == place).any()
    ]


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


class _Divided(NamedTuple):
    """The prompts, divided into slices."""

    of_prompt: list[int]
    """The position in `names` of each prompt's slice."""
    names: list[str]
    """No two are equal. In the order of the table."""


_Key = tuple[str, object]
"""The JSON type and value: `1` and `1.0` are one key, `1`, `"1"` and `true` are three."""
_ABSENT_KEY: _Key = ("null", None)
_OTHERS_KEY: _Key = ("others", None)


def _divided(values: list[object]) -> _Divided:
    given = [value for value in values if value is not None]
    numbers = [value for value in given if _is_number(value)]
    if len(numbers) == len(given) and len(set(numbers)) > _MOST_NUMBERS:
        return _quarters(values, numbers)
    keys = [_key(value) for value in values]
    order = [key for key, _ in sorted(Counter(keys).items(), key=lambda pair: (-pair[1], _name(pair[0])))]
    if len(order) > _MOST_VALUES:
        kept = set(order[:_MOST_VALUES])
        keys = [key if key in kept else _OTHERS_KEY for key in keys]
        order = [*order[:_MOST_VALUES], _OTHERS_KEY]
    place = {key: number for number, key in enumerate(order)}
    return _Divided([place[key] for key in keys], _names(order))


def _quarters(values: list[object], numbers: list[int | float]) -> _Divided:
    """Divides by rank, which also separates integers beyond the precision of a float."""
    ordered = sorted(numbers)
    inner = sorted({ordered[(len(ordered) * quarter - 1) // _QUARTERS] for quarter in range(1, _QUARTERS)})
    of_value = [bisect_left(inner, value) if _is_number(value) else None for value in values]
    held = sorted({place for place in of_value if place is not None})
    parts = [[number for number in ordered if bisect_left(inner, number) == place] for place in held]
    names = [*_ranges([(part[0], part[-1]) for part in parts]), ABSENT]
    position = {place: number for number, place in enumerate(held)}
    return _Divided([len(held) if place is None else position[place] for place in of_value], names)


def _ranges(ends: list[tuple[int | float, int | float]]) -> list[str]:
    """Names each range by its ends, with as few digits as keep different ends apart."""
    values = sorted({end for pair in ends for end in pair})
    for digits in (6, 9, 12, 17):
        if len({_rounded(value, digits) for value in values}) == len(values):
            return [f"{_rounded(low, digits)} to {_rounded(high, digits)}" for low, high in ends]
    return [f"{low!r} to {high!r}" for low, high in ends]


def _rounded(number: int | float, digits: int) -> str:
    try:
        return f"{number:.{digits}g}"
    except OverflowError:  # an integer beyond the floats
        return f"{Decimal(number):.{digits}g}"


def _names(keys: list[_Key]) -> list[str]:
    """Names each key; text that reads like another slice's name is quoted."""
    names = [_name(key) for key in keys]
    counts = Counter([*names, ABSENT, OTHERS])
    return [
        stored_json(key[1]).decode() if key[0] == "text" and counts[name] > 1 else name
        for key, name in zip(keys, names, strict=True)
    ]


def _name(key: _Key) -> str:
    kind, value = key
    if kind in ("null", "others"):
        return ABSENT if kind == "null" else OTHERS
    return str(value) if kind in ("text", "json", "number") else stored_json(value).decode()


def _key(value: object) -> _Key:
    if value is None:
        return _ABSENT_KEY
    if isinstance(value, bool):
        return "truth", value
    if isinstance(value, int | float):
        return "number", value
    return ("text", value) if isinstance(value, str) else ("json", stored_json(value).decode())


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
