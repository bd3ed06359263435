"""A run's numbers and findings, worked out once in a process: the report and the table that is shown after it need the same."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from heldout.metrics.summary import Summary
from heldout.report.finding import Finding
from heldout.report.findings import find
from heldout.runs.recordings import open_tables
from heldout.runs.results import summarize_run
from heldout.runs.run import JobStatus, Run


class Known(NamedTuple):
    """What is known of a run."""

    summary: Summary
    findings: list[Finding]


def known_of(run: Run, *, training: str | None = None) -> Known:
    """The run's numbers and findings, computed from its files. training: a dataset to look for held-out prompts in.

    Raises RunError when no rollout has ended yet, or when files are missing or damaged.
    """
    if run.state.status is JobStatus.COMPLETED and training is None and run.rollouts_path.exists():
        return _remembered(run.folder.absolute(), run.rollouts_path.stat().st_mtime_ns)
    return _work_out(run, training)


@lru_cache(maxsize=4)
def _remembered(folder: Path, changed_at_ns: int) -> Known:  # noqa: ARG001  # other files, other results
    return _work_out(Run.open(folder), None)


def _work_out(run: Run, training: str | None) -> Known:
    with open_tables(run) as folder:
        found = find(folder, run.document.hyperparameters, prompts=run.prompts_path, training=training)
    return Known(summarize_run(run), found)
