"""Finds what a person should know before trusting a run's numbers, from its Parquet files. Prints nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.job.hyperparameters import Hyperparameters
from heldout.report.attempt_findings import attempt_findings
from heldout.report.finding import Finding, Weight, Wording, counted, finding
from heldout.report.prompt_findings import duplicate_prompts, training_prompts
from heldout.report.reward_findings import reward_findings
from heldout.report.rollout_rows import RolloutRows
from heldout.report.text_findings import text_findings

__all__ = ["Finding", "Weight", "find"]


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rewards near 1e308 overflow
def find(
    folder: Path, parameters: Hyperparameters, *, prompts: Path | None = None, training: str | None = None
) -> list[Finding]:
    """Find everything in the run whose Parquet files are in `folder`, most serious first.

    prompts: the run's prompts.parquet, if it lies elsewhere. training: a dataset the policy was trained on, whose prompts
    should not be among the held-out ones. Raises DatasetError when that cannot be read.
    """
    rows = RolloutRows.read(folder)
    if rows.num_rollouts == 0:
        return []
    found = list(_find(folder, rows, parameters, prompts or folder / "prompts.parquet", training))
    return sorted(found, key=lambda finding: finding.weight)


def _find(
    folder: Path, rows: RolloutRows, parameters: Hyperparameters, prompts: Path, training: str | None
) -> Iterator[Finding]:
    if prompts.exists():
        if training is not None:
            yield from training_prompts(prompts, training, rows)
        yield from duplicate_prompts(prompts, rows)
    yield from reward_findings(rows, parameters)
    yield from attempt_findings(folder, rows)
    yield from _token_limit(folder, rows)
    yield from text_findings(folder, rows)


def _token_limit(folder: Path, rows: RolloutRows) -> Iterator[Finding]:
    columns = ["trajectory_id", "is_final", "finish_reason"]
    cut: list[Any] = []
    with pq.ParquetFile(folder / "trajectories.parquet") as file:
        for batch in file.iter_batches(columns=columns):
            is_cut: Any = pc.equal(batch["finish_reason"], pa.scalar("length"))
            cut += pc.unique(batch.filter(pc.and_(batch["is_final"], is_cut))["trajectory_id"]).to_pylist()
    places = rows.places_of(list(dict.fromkeys(cut)))
    mask = np.zeros(rows.num_rollouts, dtype=np.bool_)
    mask[places[places >= 0]] = True
    if mask.any():
        wording = Wording("token_limit", "raise -H max_tokens=N, or check that the cut is meant", Weight.DOUBT)
        seen = (
            f"{counted(int(mask.sum()), rows.num_rollouts)} have a reply cut at the token limit; "
            f"{rows.is_success[mask].mean():.0%} of them succeed"
        )
        yield finding(wording, seen, rows, mask)
