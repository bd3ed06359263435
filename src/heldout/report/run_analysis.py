"""A run's numbers and findings, computed once per process: the report and the terminal's table need the same."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from heldout.metrics.summary import Summary
from heldout.report.card_rows import changes_finding
from heldout.report.finding import Finding
from heldout.report.findings import find
from heldout.runs.recordings import open_tables
from heldout.runs.results import summarize_run
from heldout.runs.run import JobStatus, Run


class RunAnalysis(NamedTuple):
    """The numbers of a run and what to know before trusting them."""

    summary: Summary
    findings: list[Finding]
    """The most serious first."""


def analyze(run: Run, *, training: str | None = None) -> RunAnalysis:
    """Computes the run's numbers and findings from its files.

    training: a dataset that the policy was trained on; a finding names its prompts among the held-out ones. Raises RunError
    when no rollout has ended yet or files are missing or damaged, DatasetError when the training dataset cannot be read.
    """
    if run.state.status is JobStatus.COMPLETED and training is None and run.rollouts_path.exists():
        found = _cached(run.folder.absolute(), run.rollouts_path.stat().st_mtime_ns)
    else:
        found = _analyze(run, training)
    changes = None if run.state.card is None else changes_finding(run.state.card, found.summary.scored)
    return found if changes is None else RunAnalysis(found.summary, [changes, *found.findings])


@lru_cache(maxsize=4)
def _cached(folder: Path, changed_at_ns: int) -> RunAnalysis:  # noqa: ARG001  # new files are a new key
    return _analyze(Run.open(folder), None)


def _analyze(run: Run, training: str | None) -> RunAnalysis:
    with open_tables(run) as folder:
        found = find(folder, run.document.hyperparameters, prompts=run.prompts_path, training=training)
    return RunAnalysis(summarize_run(run), found)
