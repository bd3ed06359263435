"""The other columns of the dataset, read back from a run's `prompts.parquet`: their names and their values by prompt."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from heldout.datasets.prompts import PromptReader
from heldout.errors import InputError, did_you_mean, shown
from heldout.job.json_values import read_json, stored_json

PROMPT = "prompt"
"""The column name by which `dataset_table` includes the prompt's text."""
PREFIX = "dataset."
"""Begins the name of each other column, so that it never hides a column of the table it is joined to."""


def column_names(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the names of the dataset's columns except the prompt, in the order in which they first appear."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def check_columns(rows: Sequence[dict[str, Any]], wanted: Iterable[str]) -> None:
    """Raises InputError for a column that no prompt has, naming the nearest."""
    names = column_names(rows)
    for column in wanted:
        if column not in names:
            hint = did_you_mean(column, names) or (
                f" There are: {', '.join(names)}." if names else " It has no other columns."
            )
            raise InputError(f"no column {shown(column)} in the dataset.{hint}")


def read_rows(prompts: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Returns the prompt indices, an int64 array of shape (num_prompts,), and the other columns of each prompt.

    Prompts are in the dataset's order; the file holds them in the order of play. prompts: the run's prompts.parquet. Raises
    RunError when it is missing or damaged.
    """
    PromptReader(prompts).close()  # checks the file: its error is one line
    table = _ordered(prompts, "columns")
    return table["prompt_index"].to_numpy(), [
        cast("dict[str, Any]", read_json(str(text))) for text in table["columns"].to_pylist()
    ]


def _ordered(prompts: Path, column: str) -> pa.Table:
    """Reads one column with the prompt indices, in the dataset's order."""
    return pq.read_table(prompts, columns=["prompt_index", column]).sort_by("prompt_index")


def dataset_table(prompts: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """Returns a row a prompt: `prompt_index`, `prompt` if `columns` has it, and `dataset.<name>` for each other column.

    prompts: the run's prompts.parquet. columns: names of the dataset's columns; by default `prompt` and all of them. A column
    whose values have no common Arrow type becomes JSON text. Raises InputError for an unknown column, RunError when the file
    is missing or damaged.
    """
    indices, rows = read_rows(prompts)
    wanted = [PROMPT, *column_names(rows)] if columns is None else list(dict.fromkeys(columns))
    others = [name for name in wanted if name != PROMPT]
    check_columns(rows, others)
    table = pa.table({"prompt_index": pa.array(indices, pa.int64())})
    if PROMPT in wanted:
        texts = _ordered(prompts, "prompt")["prompt"]
        table = table.append_column(PROMPT, texts.cast(pa.large_string()))
    for name in others:
        table = table.append_column(f"{PREFIX}{name}", _array([row.get(name) for row in rows]))
    return table


def _array(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else stored_json(value).decode() for value in values], pa.large_string())
