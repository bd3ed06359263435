"""A run's tables as pyarrow tables or data frames, with columns of the dataset joined in."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.datasets.columns import dataset_table
from heldout.errors import InputError, MissingExtra, RunError, shown
from heldout.runs.recordings import open_tables
from heldout.runs.run import Run
from heldout.runs.tables import check_tables

TableName = Literal["rollouts", "trajectories", "attempts"]
"""A table of a run: a row a rollout, a row a turn (model call), a row an attempt."""
FrameKind = Literal["arrow", "pandas", "polars"]
"""The type of a returned table: a `pyarrow.Table`, a `pandas.DataFrame` or a `polars.DataFrame`."""
Frame = Any
"""A `pyarrow.Table`, a `pandas.DataFrame` or a `polars.DataFrame`."""
_ORDER = ("prompt_index", "rollout_index", "attempt", "turn")
"""Columns to sort by. Every table has the first two."""
_BATCH_ROWS = 4096


def table_of(runs: Mapping[str, Run], table: TableName, frame: FrameKind, *, columns: Sequence[str] = ()) -> Frame:
    """Returns a Parquet table of all runs, one run below the other; the column `run` holds the run's name.

    Rows are sorted by prompt, rollout, attempt and turn; the files hold them in the order in which rollouts ended.
    columns: columns of the dataset to join, each as `dataset.<name>`; `prompt` joins the prompt's text as `prompt`.
    Raises MissingExtra when the library is not installed, InputError for an unknown frame or column, RunError when no rollout
    has ended.
    """
    check_frame(frame)
    tables = [_named(name, _read(run, table, columns)) for name, run in runs.items()]
    return framed(_concatenated(tables), frame)


def prompts_of(runs: Mapping[str, Run], frame: FrameKind) -> Frame:
    """Returns the prompts of all runs: `run`, `prompt_index`, `prompt` and `dataset.<name>` for each other column.

    Prompts are in the dataset's order. Raises MissingExtra and InputError as `table_of`, RunError when a run has no prompts.
    """
    check_frame(frame)
    tables = [_named(name, dataset_table(run.prompts_path).sort_by("prompt_index")) for name, run in runs.items()]
    return framed(_concatenated(tables), frame)


def batches_of(run: Run, table: TableName, *, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Yields a table's rows in the order in which rollouts ended, a few thousand in memory at a time.

    columns: as in `table_of`. Raises InputError and RunError as `table_of`, at the first batch.
    """
    with open_tables(run) as folder:
        check_tables(folder, (table,))
        dataset = _dataset(run, columns)
        with pq.ParquetFile(folder / f"{table}.parquet") as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from _joined(pa.Table.from_batches([batch]), dataset).to_batches()


def check_frame(frame: str) -> None:
    """Raises InputError for an unknown kind of frame, MissingExtra when its library is not installed."""
    if frame not in get_args(FrameKind):
        raise InputError(f"frame is {shown(frame)}; it must be 'arrow', 'pandas' or 'polars'")
    if frame != "arrow" and importlib.util.find_spec(frame) is None:
        raise MissingExtra(f"a {frame} frame needs {frame}: pip install {frame}")


def framed(table: pa.Table, frame: FrameKind) -> Frame:
    """Returns a pyarrow table as this kind of frame, which `check_frame` has accepted."""
    if frame == "arrow":
        return table
    return table.to_pandas() if frame == "pandas" else importlib.import_module("polars").from_arrow(table)


def _read(run: Run, table: TableName, columns: Sequence[str]) -> pa.Table:
    with open_tables(run) as folder:
        check_tables(folder, (table,))
        read = pq.read_table(folder / f"{table}.parquet")
    order: list[tuple[str, Literal["ascending", "descending"]]]
    order = [(column, "ascending") for column in _ORDER if column in read.column_names]
    return _joined(read.sort_by(order), _dataset(run, columns))


def _dataset(run: Run, columns: Sequence[str]) -> pa.Table | None:
    wanted = [columns] if isinstance(columns, str) else list(columns)
    return dataset_table(run.prompts_path, wanted) if wanted else None


def _joined(rows: pa.Table, dataset: pa.Table | None) -> pa.Table:
    if dataset is None:
        return rows
    places: Any = pc.index_in(rows["prompt_index"], value_set=dataset["prompt_index"])
    taken = dataset.drop_columns(["prompt_index"]).take(places)
    for name in taken.column_names:
        rows = rows.append_column(name, taken[name])
    return rows


def _named(name: str, table: pa.Table) -> pa.Table:
    return table.add_column(0, "run", pa.repeat(name, table.num_rows))


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    if not tables:
        raise RunError("no run of this evaluation has begun; wait() until it is done")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"the runs' tables do not fit together ({reason}); read each run by itself") from error
