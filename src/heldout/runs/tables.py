"""Writes a run's Parquet files from its journal, and reads the tables for metrics from those files.

Both directions are streamed: memory grows by some 30 bytes a rollout.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.datasets.arrow import leave_pandas_out
from heldout.errors import RunError
from heldout.job.records import Attempt, Boundary, Turn
from heldout.metrics.failures import FailureReason, count_reasons
from heldout.metrics.table import BoolArray, FloatArray, IntArray, RolloutTable, TurnTable
from heldout.runs.columns import ATTEMPT_COLUMNS, COLUMNS, ROLLOUT_COLUMNS, TRAJECTORY_COLUMNS
from heldout.runs.journal import read
from heldout.runs.journal_index import JournalIndex
from heldout.runs.run import STATE_KEY, Run
from heldout.storage import open_atomic

_BATCH_ROWS = 2_048
"""Attempts converted to columns at once. One without turns and output counts no bytes."""
_BATCH_CELLS = 128 * 1024
"""Values of metrics converted at once: each attempt has a cell for each name."""
_BATCH_BYTES = 512 * 1024
"""Bytes of attempts converted to columns at once. As rows of Python objects they take thirty times as much memory."""
_TURN_BYTES = 400
"""Bytes that a turn counts in addition to its texts: its numbers and its row."""
_ROW_GROUP_BYTES = 8 * 1024 * 1024


def write_tables(run: Run, index: JournalIndex, folder: Path) -> None:
    """Writes the three Parquet files from the run's journal into `folder`; each appears whole or not at all.

    The schema of `rollouts.parquet` holds job.json as it is now: the tables alone are enough to open the run.
    """
    least_success = run.metric_settings.least_success
    leave_pandas_out()
    rollout_schema = _rollout_schema(index.metric_names).with_metadata({STATE_KEY: run.state.model_dump_json()})
    with ExitStack() as stack:
        rollouts = stack.enter_context(_Table(folder / "rollouts.parquet", rollout_schema))
        trajectories = stack.enter_context(_Table(folder / "trajectories.parquet", pa.schema(TRAJECTORY_COLUMNS)))
        attempts = stack.enter_context(_Table(folder / "attempts.parquet", pa.schema(ATTEMPT_COLUMNS)))
        for batch in _batches(_amended(run.journal_folder, index), _batch_rows(index.metric_names)):
            rollouts.write(
                [rollout_row(a, _attempts(a, index), least_success, index.metric_names) for a in batch if a.is_final]
            )
            trajectories.write([turn_row(a, turn) for a in batch for turn in a.turns])
            attempts.write([_attempt_row(a) for a in batch])


def _attempts(final: Attempt, index: JournalIndex) -> int:
    return max(final.number, index.attempts(final.prompt_index, final.rollout_index))


def _amended(journal: Path, index: JournalIndex) -> Iterator[Attempt]:
    for line in read(journal):
        attempt = line.attempt
        if line.is_amendment:
            continue
        if attempt.is_final and not index.decides(attempt):
            attempt = replace(attempt, is_final=False)
        latest = index.amendment(attempt.prompt_index, attempt.rollout_index) if attempt.is_final else None
        yield attempt if latest is None else _with_end_of(attempt, latest)


def _with_end_of(attempt: Attempt, latest: Attempt) -> Attempt:
    return Attempt(
        prompt_index=attempt.prompt_index,
        rollout_index=attempt.rollout_index,
        number=attempt.number,
        trajectory_id=attempt.trajectory_id,
        is_final=True,
        failure=latest.failure,
        rewards=latest.rewards,
        metrics=latest.metrics,
        flags=latest.flags,
        turns=attempt.turns,
        output=latest.output,
        started_at=attempt.started_at,
        seconds=latest.seconds,
        labels=latest.labels,
        returned=latest.returned,
    )


def _batch_rows(metric_names: tuple[str, ...]) -> int:
    return min(_BATCH_ROWS, _BATCH_CELLS // max(1, len(metric_names)))


def _batches(attempts: Iterable[Attempt], most: int) -> Iterator[list[Attempt]]:
    batch: list[Attempt] = []
    size = 0
    for attempt in attempts:
        batch.append(attempt)
        size += len(attempt.output) + len(attempt.labels) + len(attempt.returned)
        size += sum(_TURN_BYTES + len(turn.messages) + len(turn.request) + len(turn.reply) for turn in attempt.turns)
        if size >= _BATCH_BYTES or len(batch) >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Table:
    """A Parquet file that is being written. Leaving the context without an error publishes it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        file = self._stack.enter_context(open_atomic(self._path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(file, self._schema, compression="zstd"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:  # an error in the last rows keeps the file unpublished too
            self._write_row_group()

    def write(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending))
        self._pending, self._pending_bytes = [], 0


def _rollout_schema(metric_names: tuple[str, ...]) -> pa.Schema:
    if not metric_names:
        return pa.schema(ROLLOUT_COLUMNS)
    fields: list[pa.Field[Any]] = [pa.field(name, pa.float64()) for name in metric_names]
    return pa.schema([*ROLLOUT_COLUMNS, pa.field("metrics", pa.struct(fields))])


def rollout_row(attempt: Attempt, attempts: int, least_success: float, metric_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a finished rollout as a row of `rollouts.parquet`. least_success: the least reward of a success."""
    reward, failure = attempt.reward, attempt.failure
    row: dict[str, Any] = {
        "prompt_index": attempt.prompt_index,
        "rollout_index": attempt.rollout_index,
        "trajectory_id": attempt.trajectory_id,
        "status": "scored" if failure is None else "failed",
        "reward": reward,
        "rewards": None if attempt.rewards is None else list(attempt.rewards),
        "success": reward is not None and reward >= least_success,
        "turns": attempt.num_turns,
        "prompt_tokens": _total(turn.prompt_tokens for turn in attempt.turns),
        "response_tokens": _total(turn.response_tokens for turn in attempt.turns),
        "attempts": attempts,
        "started_at": _microseconds(attempt.started_at),
        "seconds": attempt.seconds,
        "error": None if failure is None else failure.message,
        "error_boundary": None if failure is None else str(failure.boundary),
        "error_kind": None if failure is None else failure.kind,
        "flags": list(attempt.flags),
        "labels": attempt.labels.decode() or None,
        "returned": attempt.returned.decode() or None,
    }
    if metric_names:
        given = dict(attempt.metrics)
        row["metrics"] = {name: given.get(name) for name in metric_names}
    return row


def turn_row(attempt: Attempt, turn: Turn) -> dict[str, Any]:
    """Returns a turn as a row of `trajectories.parquet`."""
    return {
        "prompt_index": attempt.prompt_index,
        "rollout_index": attempt.rollout_index,
        "attempt": attempt.number,
        "is_final": attempt.is_final,
        "trajectory_id": attempt.trajectory_id,
        "turn": turn.index,
        "parent": turn.parent,
        "shared_messages": turn.shared_messages,
        "messages": turn.messages.decode(),
        "request": turn.request.decode() or None,
        "reply": turn.reply.decode() or None,
        "finish_reason": turn.finish_reason,
        "prompt_tokens": turn.prompt_tokens,
        "response_tokens": turn.response_tokens,
        "logprobs": turn.logprobs,
        "started_at": _microseconds(turn.started_at),
        "seconds": turn.seconds,
        "status": turn.status,
        "error": turn.error,
    }


def _attempt_row(attempt: Attempt) -> dict[str, Any]:
    failure = attempt.failure
    return {
        "prompt_index": attempt.prompt_index,
        "rollout_index": attempt.rollout_index,
        "attempt": attempt.number,
        "is_final": attempt.is_final,
        "trajectory_id": attempt.trajectory_id,
        "error_boundary": None if failure is None else str(failure.boundary),
        "error_kind": None if failure is None else failure.kind,
        "error": None if failure is None else failure.message,
        "started_at": _microseconds(attempt.started_at),
        "seconds": attempt.seconds,
        "output": attempt.output,
    }


def _total(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


@dataclass(frozen=True, slots=True)
class RunTables:
    """A run's tables, the input of all metrics."""

    rollouts: RolloutTable
    turns: TurnTable
    agent_metrics: dict[str, FloatArray]
    """Each agent metric, shape (num_rollouts,); NaN where a rollout did not report it."""
    failures: tuple[FailureReason, ...]
    """Why rollouts failed for good, the most common first."""
    is_retried: BoolArray
    """Shape (num_rollouts,): whether the rollout took more than one attempt."""
    agent_retries: IntArray | None
    """Shape (num_rollouts,): see `heldout.metrics.metric.MetricTables`; None without attempts.parquet."""


def read_tables(folder: Path, group_size: int) -> RunTables:
    """Reads the tables of a run from its Parquet files in `folder`. Raises RunError when one is missing or damaged."""
    leave_pandas_out()
    check_tables(folder)
    try:
        return _read_tables(folder, group_size)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(folder, str(error).splitlines()[0]) from error


def check_tables(folder: Path, names: Sequence[str] = ("rollouts", "trajectories")) -> None:
    """Raises RunError when one of these tables of a run is missing, cut short, or has other columns."""
    for name in names:
        path = folder / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                there = set(file.schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(folder, f"{path.name}: {str(error).splitlines()[0]}") from error
        lacking = next((field.name for field in COLUMNS[name] if field.name not in there), None)
        if lacking is not None:
            raise _unreadable(folder, f"{path.name} has no column {lacking!r}")


def _unreadable(folder: Path, reason: str) -> RunError:
    return RunError(f"the tables of the run in {str(folder)!r} cannot be read ({reason}); copy the whole folder again")


def _read_tables(folder: Path, group_size: int) -> RunTables:
    table = pq.read_table(folder / "rollouts.parquet")
    prompt_index = table["prompt_index"].to_numpy()
    rollout_index = table["rollout_index"].to_numpy().astype(np.int64)
    rollouts = RolloutTable(
        prompt_index=prompt_index,
        rollout_index=rollout_index,
        is_scored=np.asarray(table["status"].combine_chunks().to_numpy(zero_copy_only=False) == "scored"),
        reward=_floats(table["reward"]),
        turns=table["turns"].to_numpy().astype(np.int64),
    )
    agent_metrics = {}
    if "metrics" in table.column_names:
        column: Any = table["metrics"].combine_chunks()
        agent_metrics = {
            field.name: _floats(column.field(number)) for number, field in enumerate(table.schema.field("metrics").type)
        }
    keys = prompt_index * group_size + rollout_index
    turns = _read_turns(folder / "trajectories.parquet", keys, group_size)
    retries = _agent_retries(folder / "attempts.parquet", table["attempts"], keys, group_size)
    is_retried = table["attempts"].to_numpy() > 1
    return RunTables(rollouts, turns, agent_metrics, failure_reasons(table), is_retried, retries)


def read_failures(folder: Path) -> tuple[FailureReason, ...]:
    """Counts why rollouts of the run in `folder` failed for good, the most common reason first."""
    columns = ["status", "error_boundary", "error_kind", "error"]
    return failure_reasons(pq.read_table(folder / "rollouts.parquet", columns=columns))


def failure_reasons(rollouts: pa.Table) -> tuple[FailureReason, ...]:
    """Counts the reasons of failed rollouts. rollouts: the columns `status`, `error_boundary`, `error_kind` and `error`."""
    failed = rollouts.filter(pc.equal(rollouts["status"], pa.scalar("failed")))
    columns = (failed[name].to_pylist() for name in ("error_boundary", "error_kind", "error"))
    return count_reasons((str(b), str(k), str(message or "")) for b, k, message in zip(*columns, strict=True))


def _agent_retries(path: Path, attempts: Any, keys: IntArray, group_size: int) -> IntArray | None:
    """attempts: the column of rollouts.parquet. keys: number of each of its rollouts."""
    retries = np.zeros(len(keys), dtype=np.int64)
    if not (attempts.to_numpy() > 1).any():  # the usual run need not be read for this
        return retries
    if not path.exists():
        return None
    table = pq.read_table(path, columns=["prompt_index", "rollout_index", "is_final", "error_boundary", "error_kind"])
    again = table.filter(~pc.field("is_final") & played_again_for_agent())
    failed = again["prompt_index"].to_numpy() * group_size + again["rollout_index"].to_numpy()
    order = np.argsort(keys, kind="stable")
    places = np.searchsorted(keys, failed, sorter=order)
    is_known = places < len(keys)
    rows = order[places[is_known]]
    np.add.at(retries, rows[keys[rows] == failed[is_known]], 1)
    return retries


def played_again_for_agent() -> pc.Expression:
    """Selects the rows of attempts.parquet that failed because of the agent or the model's replies; see
    `heldout.job.records.Failure.is_infrastructure`."""
    of_agent = pc.field("error_boundary").isin([str(Boundary.AGENT), str(Boundary.REWARD)])
    return of_agent & (pc.field("error_kind") != "unreachable")


def _floats(column: Any) -> FloatArray:
    values = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return np.asarray(values, dtype=np.float64)


def _read_turns(path: Path, keys: IntArray, group_size: int) -> TurnTable:
    order = np.argsort(keys, kind="stable")
    columns = ["prompt_index", "rollout_index", "is_final", "prompt_tokens", "response_tokens", "logprobs"]
    with pq.ParquetFile(path) as file:
        whole = _empty_turns(file.metadata.num_rows)
        filled = 0
        for batch in file.iter_batches(columns=columns, batch_size=8_192):
            final = batch.filter(batch["is_final"])
            turn_keys = final["prompt_index"].to_numpy() * group_size + final["rollout_index"].to_numpy()
            rows = order[np.searchsorted(keys, turn_keys, sorter=order)]
            part = _turn_table(rows.astype(np.int64), final)
            for name, values in whole.items():
                values[filled : filled + len(rows)] = getattr(part, name)
            filled += len(rows)
    return TurnTable(**{name: values[:filled] for name, values in whole.items()})


def _empty_turns(size: int) -> dict[str, Any]:
    """Allocates the columns of a TurnTable. Filled in place, they are never in memory twice."""
    integers = ("rollout_row", "logprob_zero_count", "logprob_nz_count")
    names = [column.name for column in fields(TurnTable)]
    return {name: np.empty(size, np.int64 if name in integers else np.float64) for name in names}


def _turn_table(rows: IntArray, batch: pa.RecordBatch) -> TurnTable:
    logprobs: Any = batch["logprobs"]
    lengths = np.diff(logprobs.offsets.to_numpy()) if len(logprobs) else np.empty(0, np.int64)
    lengths = np.where(logprobs.is_valid().to_numpy(zero_copy_only=False), lengths, 0).astype(np.int64)
    tokens = _floats(logprobs.flatten())
    turn_of_token = np.repeat(np.arange(len(rows)), lengths)
    is_known = np.isfinite(tokens)
    is_nonzero = is_known & (tokens != 0)
    n, of, values = len(rows), turn_of_token[is_nonzero], tokens[is_nonzero]
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, of, values)
    np.maximum.at(high, of, values)
    return TurnTable(
        rollout_row=rows,
        prompt_tokens=_floats(batch["prompt_tokens"]),
        response_tokens=_floats(batch["response_tokens"]),
        logprob_zero_count=np.bincount(turn_of_token[is_known & (tokens == 0)], minlength=n).astype(np.int64),
        logprob_nz_count=np.bincount(of, minlength=n).astype(np.int64),
        logprob_nz_sum=np.bincount(of, weights=values, minlength=n).astype(np.float64),
        logprob_nz_squares=np.bincount(of, weights=values * values, minlength=n).astype(np.float64),
        logprob_nz_min=np.where(np.isinf(low), np.nan, low),
        logprob_nz_max=np.where(np.isinf(high), np.nan, high),
    )
