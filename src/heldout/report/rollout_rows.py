"""The columns of `rollouts.parquet` that findings and charts use: about 60 bytes per rollout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.metrics.failures import FailureReason
from heldout.metrics.table import BoolArray, FloatArray, IntArray, RolloutTable
from heldout.runs.tables import failure_reasons

__all__ = ["BoolArray", "FloatArray", "IntArray", "RolloutRows"]

_COLUMNS = [
    "prompt_index",
    "rollout_index",
    "trajectory_id",
    "status",
    "reward",
    "success",
    "turns",
    "prompt_tokens",
    "response_tokens",
    "seconds",
    "error_boundary",
    "error_kind",
    "error",
    "flags",
]


@dataclass(frozen=True)
class RolloutRows:
    """Ended rollouts. Every array has shape (num_rollouts,)."""

    prompt_index: IntArray
    rollout_index: IntArray
    is_failed: BoolArray
    """Whether the rollout failed for good and has no reward."""
    reward: FloatArray
    """NaN where the rollout failed."""
    is_success: BoolArray
    turns: IntArray
    prompt_tokens: FloatArray
    """NaN where the policy gave no count."""
    response_tokens: FloatArray
    """NaN where the policy gave no count."""
    seconds: FloatArray
    metrics: dict[str, FloatArray]
    """The agent's metrics by name; NaN where a rollout has none."""
    table: pa.Table
    """The columns with text: `trajectory_id`, `status`, `error_boundary`, `error_kind`, `error`, `flags`."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the rollouts from `folder`/rollouts.parquet."""
        path = folder / "rollouts.parquet"
        names = pq.read_schema(path).names
        table: Any = pq.read_table(path, columns=[*_COLUMNS, *(["metrics"] if "metrics" in names else [])])
        return cls(
            prompt_index=table["prompt_index"].to_numpy(),
            rollout_index=table["rollout_index"].to_numpy().astype(np.int64),
            is_failed=_bools(pc.equal(table["status"], pa.scalar("failed"))),
            reward=_floats(table["reward"]),
            is_success=_bools(table["success"]),
            turns=table["turns"].to_numpy().astype(np.int64),
            prompt_tokens=_floats(table["prompt_tokens"]),
            response_tokens=_floats(table["response_tokens"]),
            seconds=_floats(table["seconds"]),
            metrics=_metrics(table),
            table=table.select(["trajectory_id", "status", "error_boundary", "error_kind", "error", "flags"]),
        )

    @property
    def num_rollouts(self) -> int:
        return len(self.prompt_index)

    @property
    def is_scored(self) -> BoolArray:
        return ~self.is_failed

    @property
    def failures(self) -> tuple[FailureReason, ...]:
        """Returns the reasons of failed rollouts, the most common first."""
        return failure_reasons(self.table)

    @property
    def rewards_or_zero(self) -> FloatArray:
        """Return the reward, or 0 for a failed rollout."""
        return np.where(self.is_failed, 0.0, self.reward)

    def rollout_table(self, mask: BoolArray | None = None) -> RolloutTable:
        """Return the metrics' input table for the rollouts where `mask` is true."""
        rows: Any = slice(None) if mask is None else mask
        return RolloutTable(
            prompt_index=self.prompt_index[rows],
            rollout_index=self.rollout_index[rows],
            is_scored=self.is_scored[rows],
            reward=self.reward[rows],
            turns=self.turns[rows],
        )

    def ids(self, mask: BoolArray, most: int) -> tuple[str, ...]:
        """Return the trajectory ids of the first rollouts where `mask` is true."""
        return self.ids_at(np.flatnonzero(mask)[:most])

    def ids_at(self, places: npt.NDArray[Any]) -> tuple[str, ...]:
        """Return the trajectory ids of the rollouts at these positions, in this order."""
        return tuple(str(i) for i in self.table["trajectory_id"].take(pa.array(places, pa.int64())).to_pylist())

    def places_of(self, trajectory_ids: list[str]) -> IntArray:
        """Return the positions of these rollouts, shape (len(trajectory_ids),); -1 for an unknown one."""
        found: Any = pc.index_in(pa.array(trajectory_ids, pa.string()), value_set=self.table["trajectory_id"])
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def has_flag(self, flag: str) -> BoolArray:
        """Return where rollouts have `flag`."""
        column: Any = self.table["flags"]
        flagged = np.zeros(self.num_rollouts, dtype=np.bool_)
        flags: Any = pc.list_flatten(column)
        holders: Any = pc.list_parent_indices(column)
        flagged[holders.filter(pc.equal(flags, pa.scalar(flag))).to_numpy()] = True
        return flagged


def _bools(column: Any) -> BoolArray:
    return np.asarray(column.to_numpy(), dtype=np.bool_)


def _floats(column: Any) -> FloatArray:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _metrics(table: pa.Table) -> dict[str, FloatArray]:
    if "metrics" not in table.column_names:
        return {}
    column: Any = table["metrics"].combine_chunks()
    fields = table.schema.field("metrics").type
    return {
        field.name: np.asarray(column.field(number).to_numpy(zero_copy_only=False), dtype=np.float64)
        for number, field in enumerate(fields)
    }
