"""What a person should know before trusting a run's numbers, read off its Parquet files. Data; nothing is printed here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.job.hyperparameters import Hyperparameters

_MANY_FAILURES = 0.05
"""Share of failed rollouts from which they are worth a warning: beyond it they can move a rate by as much as its interval."""
_SHOWN_TRAJECTORIES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was seen."""

    kind: str
    """A short stable word to look for."""
    seen: str
    """What was seen, on how many rollouts."""
    advice: str
    """What to try."""
    num_rollouts: int
    trajectory_ids: tuple[str, ...]
    """Which ones to open; a few of them when there are many."""


def find(folder: Path, parameters: Hyperparameters) -> list[Finding]:
    """The findings of the run whose Parquet files lie in `folder`, the most serious first."""
    columns = ["prompt_index", "trajectory_id", "status", "reward", "turns", "error_boundary", "error_kind", "flags"]
    rollouts = pq.read_table(folder / "rollouts.parquet", columns=columns)
    if rollouts.num_rows == 0:
        return []
    return [
        *_failures(rollouts),
        *_flagged(rollouts),
        *_cut_replies(folder, rollouts.num_rows),
        *_no_variance(rollouts),
        *_greedy(rollouts, parameters),
    ]


def _finding(kind: str, seen: str, advice: str, rows: pa.Table) -> Finding:
    ids = rows["trajectory_id"].slice(0, _SHOWN_TRAJECTORIES).to_pylist()
    return Finding(kind, seen, advice, rows.num_rows, tuple(str(i) for i in ids))


def _failures(rollouts: pa.Table) -> Iterator[Finding]:
    failed = rollouts.filter(pc.field("status") == "failed")
    if failed.num_rows < _MANY_FAILURES * rollouts.num_rows or failed.num_rows == 0:
        return
    reasons = failed.group_by(["error_boundary", "error_kind"]).aggregate([([], "count_all")]).to_pylist()
    reasons.sort(key=lambda row: -row["count_all"])
    named = ", ".join(f"{r['error_boundary']}: {r['error_kind']} ({r['count_all']})" for r in reasons[:3])
    yield _finding(
        "failures",
        f"{failed.num_rows} of {rollouts.num_rows} rollouts failed for good: {named}",
        "look at what they printed and raised: heldout show RUN --trajectory ID",
        failed,
    )


_FLAGS = {
    "sampling_differs": (
        "the agent's model calls had other sampling parameters than the job's",
        "have the agent pass on inferenceParams, or set -H enforce_sampling=true",
    ),
    "no_model_call": (
        "were scored without a single model call",
        "check that the agent calls the model through metadata.baseUrl or metadata.endpoint",
    ),
    "reward_mismatch": (
        "reported one reward and returned another; the reported one counts",
        "have the agent return what it reports",
    ),
    "failed_after_reward": (
        "crashed, raised or timed out after their reward was in; the reward counts",
        "look at what they printed: heldout show RUN --trajectory ID",
    ),
    "ran_on_after_end": (
        "ran on after their reward was in and were cut off",
        "have the agent return once it has reported",
    ),
    "reward_count": (
        "had a list of rewards of another length than their turns",
        "report one reward, or one for each turn",
    ),
    "metric_dropped": (
        "returned metrics that are not finite numbers; those were left out",
        "return numbers only in the metrics object",
    ),
}


def _flagged(rollouts: pa.Table) -> Iterator[Finding]:
    flags = rollouts["flags"].to_pylist()
    for flag, (seen, advice) in _FLAGS.items():
        rows = rollouts.filter(pa.array([flag in (given or ()) for given in flags]))
        if rows.num_rows:
            yield _finding(flag, f"{rows.num_rows} of {rollouts.num_rows} rollouts: {seen}", advice, rows)


def _cut_replies(folder: Path, num_rollouts: int) -> Iterator[Finding]:
    turns = pq.read_table(
        folder / "trajectories.parquet",
        columns=["trajectory_id", "is_final", "finish_reason"],
        filters=[("is_final", "=", True), ("finish_reason", "=", "length")],
    )
    if turns.num_rows:
        rows = turns.group_by("trajectory_id").aggregate([])
        yield _finding(
            "token_limit",
            f"{rows.num_rows} of {num_rollouts} rollouts have a reply cut at the token limit",
            "raise -H max_tokens=N, or check that the cut is meant",
            rows,
        )


def _no_variance(rollouts: pa.Table) -> Iterator[Finding]:
    scored = rollouts.filter(pc.field("status") == "scored")
    if scored.num_rows < 2:
        return
    rewards: Any = scored["reward"].to_numpy()
    if np.ptp(rewards) == 0:
        yield _finding(
            "no_variance",
            f"all {scored.num_rows} scored rollouts have the reward {rewards[0]:g}",
            "such a run cannot tell policies apart: check the reward, or choose harder (or easier) prompts",
            scored,
        )


def _greedy(rollouts: pa.Table, parameters: Hyperparameters) -> Iterator[Finding]:
    if parameters.sampling_temperature == 0 and parameters.eval_group_size > 1:
        yield Finding(
            "greedy_group",
            f"greedy sampling with {parameters.eval_group_size} rollouts a prompt: they are near copies of each other",
            "set -H sampling_temperature to what you will serve with, or evaluate one rollout a prompt",
            rollouts.num_rows,
            (),
        )
