"""Runs' tables as data frames of the user's library."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from heldout.errors import InputError, MissingExtra, RunError
from heldout.runs.recordings import open_tables
from heldout.runs.run import Run
from heldout.runs.tables import check_tables

FrameKind = Literal["pandas", "polars"]
Frame = Any
"""A `pandas.DataFrame` or a `polars.DataFrame`."""
_ORDER = ("prompt_index", "rollout_index", "attempt", "turn")
"""Columns to sort by; each table has the first two."""


def table_of(runs: Mapping[str, Run], table: str, frame: FrameKind) -> Frame:
    """One of the runs' Parquet tables, `rollouts` or `trajectories`, of all runs below each other; `run` tells which.

    In the files rows are in the order in which rollouts ended; here they are by prompt, rollout, attempt and turn.
    Raises MissingExtra when the library is not installed, InputError for another, RunError when no rollout has ended.
    """
    if frame not in ("pandas", "polars"):
        raise InputError(f"frame is {frame!r}; there are 'pandas' and 'polars'")
    if importlib.util.find_spec(frame) is None:
        raise MissingExtra(f"a {frame} frame needs {frame}: pip install {frame}")
    tables = [_named(name, run, table) for name, run in runs.items()]
    if not tables:
        raise RunError("no run of this evaluation has begun; wait() until it is done")
    joined = pa.concat_tables(tables, promote_options="permissive")
    return joined.to_pandas() if frame == "pandas" else _polars(joined)


def _named(name: str, run: Run, table: str) -> pa.Table:
    with open_tables(run) as folder:
        check_tables(folder, (table,))
        read = pq.read_table(folder / f"{table}.parquet")
    order: list[tuple[str, Literal["ascending", "descending"]]]
    order = [(column, "ascending") for column in _ORDER if column in read.column_names]
    return read.sort_by(order).add_column(0, "run", pa.repeat(name, read.num_rows))


def _polars(table: pa.Table) -> Frame:
    return importlib.import_module("polars").from_arrow(table)
