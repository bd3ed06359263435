"""Findings from the attempts that failed and were played again."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.report.finding import Finding, Weight, Wording, counted, finding
from heldout.report.rollout_rows import RolloutRows
from heldout.runs.tables import played_again_for_agent

_COLUMNS = ["prompt_index", "rollout_index", "is_final", "error_boundary", "error_kind"]
_NAMED_KINDS = 3


def attempt_findings(folder: Path, rows: RolloutRows) -> Iterator[Finding]:
    """Finds rollouts that got a second chance: an attempt that the agent or the model failed was played again.

    folder: holds attempts.parquet; without it nothing is found.
    """
    path = folder / "attempts.parquet"
    if not path.exists():
        return
    table = pq.read_table(path, columns=_COLUMNS)
    again = table.filter(played_again_for_agent() & ~pc.field("is_final")).to_pylist()
    rollouts = {(row["prompt_index"], row["rollout_index"]) for row in again}
    places = zip(rows.prompt_index.tolist(), rows.rollout_index.tolist(), strict=True)
    mask = np.fromiter((place in rollouts for place in places), dtype=np.bool_, count=rows.num_rollouts)
    if not mask.any():
        return
    kinds = Counter(f"{row['error_boundary']}: {row['error_kind']}" for row in again)
    named = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(_NAMED_KINDS))
    first = rows.is_success & ~mask
    seen = (
        f"{counted(int(mask.sum()), rows.num_rollouts)} were played again after a failure of the agent or the model: {named}; "
        f"with the retries {rows.is_success.mean():.1%} of all rollouts succeed, on first attempts {first.mean():.1%}"
    )
    wording = Wording(
        "played_again",
        "second chances raise a success rate: -H retry_agent_failures=false lets the first attempt decide",
        Weight.DOUBT if (rows.is_success & mask).any() else Weight.NOTE,
    )
    yield finding(wording, seen, rows, mask)
