"""Computes a run's numbers from its Parquet files, or from its journal before those are written."""

from dataclasses import asdict
from typing import Any

import orjson

from heldout.metrics.summary import Reading, Summary, summarize
from heldout.runs.journal_index import JournalIndex
from heldout.runs.recordings import open_tables
from heldout.runs.run import Run, write_whole
from heldout.runs.tables import RunTables, read_tables, write_tables


def write_results(run: Run, *, is_partial: bool) -> Summary:
    """Writes the run's Parquet files from its journal and `metrics.json` from those."""
    group_size = run.document.hyperparameters.eval_group_size
    if run.has_journal:
        write_tables(run, JournalIndex.of(run.journal_folder, group_size), run.folder)
    summary = _summarize(run, read_tables(run.folder, group_size))
    write_whole(run.metrics_path, orjson.dumps(metrics_document(summary, is_partial=is_partial), option=_JSON))
    return summary


def summarize_run(run: Run) -> Summary:
    """Computes the run's numbers so far, also while it plays or after it was interrupted."""
    return _summarize(run, read_run_tables(run))


def read_run_tables(run: Run) -> RunTables:
    """Reads the run's tables: from its Parquet files when it is done, else from its journal.

    Raises RunError when no rollout has ended yet, or when files are missing or damaged.
    """
    with open_tables(run) as folder:
        return read_tables(folder, run.document.hyperparameters.eval_group_size)


def metrics_document(summary: Summary, *, is_partial: bool) -> dict[str, Any]:
    """Returns the content of `metrics.json`."""
    return {
        "metrics": {name: float(value) for name, value in summary.metrics.items()},
        "intervals": {name: [float(low), float(high)] for name, (low, high) in summary.intervals.items()},
        "no_interval": summary.no_interval,
        "rerun_of_these_prompts": {
            name: {"error": float(one.error), "interval": [float(end) for end in one.interval]}
            for name, one in summary.rerun.items()
        },
        "notes": summary.notes,
        "rollouts": {
            "prompts": summary.num_prompts,
            "scored": summary.scored,
            "failed": summary.failed,
            "missing": summary.missing,
        },
        "partial": is_partial,
        "incomplete": summary.is_incomplete,
        "failures": [{**asdict(reason), "hint": reason.hint} for reason in summary.failures],
        "readings": [_reading_document(reading) for reading in summary.readings],
        "confidence": summary.confidence,
    }


def _reading_document(reading: Reading) -> dict[str, object]:
    intervals = {name: list(ends) for name, ends in reading.intervals.items()}
    return {"rule": reading.rule, "metrics": reading.metrics, "intervals": intervals}


_JSON = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS


def _summarize(run: Run, tables: RunTables) -> Summary:
    parameters = run.document.hyperparameters
    planned = None if run.state.num_prompts is None else run.state.num_prompts * parameters.eval_group_size
    return summarize(
        tables.rollouts,
        tables.turns,
        run.metric_settings,
        agent_metrics=tables.agent_metrics,
        seconds=run.state.evaluation_seconds or None,
        expected_rollouts=planned,
        agent_retries=tables.agent_retries,
        failures=tables.failures,
    )
