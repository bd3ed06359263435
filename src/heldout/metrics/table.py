"""The tables that metrics are computed from: one row for each rollout, one for each turn. Numpy columns, rows in any order."""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from heldout.errors import MetricError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RolloutTable:
    """Finished rollouts, one row each. Raises MetricError when the columns differ in length."""

    prompt_index: IntArray
    """Shape (n,). Rows with the same value are one group."""
    rollout_index: IntArray
    """Shape (n,)."""
    is_scored: BoolArray
    """Shape (n,); False for a rollout that failed for good."""
    reward: FloatArray
    """Shape (n,); NaN where the rollout failed."""
    turns: IntArray
    """Shape (n,); answered model calls of the final attempt."""

    def __post_init__(self) -> None:
        _check_columns(self)

    @property
    def num_rollouts(self) -> int:
        return len(self.prompt_index)


@dataclass(frozen=True, slots=True)
class TurnTable:
    """Model calls of the final attempts, failed ones too, one row each. Raises MetricError when the columns differ in length.

    Log-probabilities enter as sums over a turn's tokens, so a million rollouts need no array of tokens. `zero` counts
    tokens whose log-probability is exactly 0, `nz` describes the others; those that are not finite are in neither.
    """

    rollout_row: IntArray
    """Shape (t,); row number in the RolloutTable."""
    prompt_tokens: FloatArray
    """Shape (t,); NaN where the policy gave no count."""
    response_tokens: FloatArray
    """Shape (t,); NaN where the policy gave no count."""
    logprob_zero_count: IntArray
    """Shape (t,); 0 for a turn without log-probabilities."""
    logprob_nz_count: IntArray
    """Shape (t,); 0 for a turn without log-probabilities."""
    logprob_nz_sum: FloatArray
    """Shape (t,); nats."""
    logprob_nz_squares: FloatArray
    """Shape (t,); sum of squares, nats squared."""
    logprob_nz_min: FloatArray
    """Shape (t,); NaN where there is no non-zero token."""
    logprob_nz_max: FloatArray
    """Shape (t,); NaN where there is no non-zero token."""

    def __post_init__(self) -> None:
        _check_columns(self)


@dataclass(frozen=True, slots=True)
class Groups:
    """The rows of a table by prompt, in the order of `prompt_index`."""

    prompt_index: IntArray
    """Shape (num_prompts,), sorted, each once."""
    of_row: IntArray
    """Shape (n,); the position in `prompt_index` of each row's prompt."""

    @classmethod
    def of(cls, prompt_index: IntArray) -> Self:
        prompts, of_row = np.unique(prompt_index, return_inverse=True)
        return cls(prompts, of_row.astype(np.int64, copy=False))

    @property
    def num_prompts(self) -> int:
        return len(self.prompt_index)

    def count(self, mask: BoolArray | None = None) -> IntArray:
        """Rows of each prompt (where `mask` holds), shape (num_prompts,)."""
        rows = self.of_row if mask is None else self.of_row[mask]
        return np.bincount(rows, minlength=self.num_prompts).astype(np.int64, copy=False)

    def sum(self, values: FloatArray) -> FloatArray:
        """Sum of the values of each prompt's rows, shape (num_prompts,)."""
        return np.bincount(self.of_row, weights=values, minlength=self.num_prompts).astype(np.float64, copy=False)

    def minimum(self, values: FloatArray) -> FloatArray:
        """Least value of each prompt, shape (num_prompts,); infinity for a prompt without rows."""
        out = np.full(self.num_prompts, np.inf)
        np.minimum.at(out, self.of_row, values)
        return out

    def maximum(self, values: FloatArray) -> FloatArray:
        """Greatest value of each prompt, shape (num_prompts,); -infinity for a prompt without rows."""
        out = np.full(self.num_prompts, -np.inf)
        np.maximum.at(out, self.of_row, values)
        return out


def _check_columns(table: RolloutTable | TurnTable) -> None:
    lengths = {field.name: len(getattr(table, field.name)) for field in fields(table)}
    if len(set(lengths.values())) > 1:
        shown_lengths = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise MetricError(f"columns of {type(table).__name__} differ in length: {shown_lengths}")
