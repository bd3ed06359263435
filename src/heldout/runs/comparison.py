"""Two runs compared, from their files; and the comparison as `comparison.json` holds it."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from heldout.datasets.prompts import PromptReader
from heldout.metrics.comparison import Comparison, MetricComparison, Side, compare
from heldout.runs.results import read_run_tables
from heldout.runs.run import JobStatus, Run

_MOVES = 20
"""Prompts named in the document: those that moved most. The runs' tables have them all."""
_PROMPT_CHARACTERS = 200


def compare_runs(base: Run, fine_tuned: Run, *, margin: float | None = None) -> Comparison:
    """Compares two runs on the prompts they share, under the settings of the fine-tuned one's job.

    margin: the largest difference that does not matter. Raises MetricError when no prompt is shared.
    """
    sides = side_of(base), side_of(fine_tuned)
    if sides[0].name == sides[1].name:  # as the base models' runs of two evaluations: told apart by their evaluations
        sides = _placed(sides[0], base), _placed(sides[1], fine_tuned)
    return compare(*sides, fine_tuned.metric_settings, margin=margin)


def side_of(run: Run) -> Side:
    """One run of a comparison; its prompts are told apart by their text."""
    tables = read_run_tables(run)
    return Side(
        name=run.state.run_name,
        rollouts=tables.rollouts,
        prompt_keys={index: _key(text) for index, text in _prompts(run)},
        agent_metrics=tables.agent_metrics,
        is_partial=run.state.status is not JobStatus.COMPLETED,
    )


def _placed(side: Side, run: Run) -> Side:
    return replace(side, name=f"{run.state.name}/{side.name}")


def comparison_document(comparison: Comparison, prompts: Mapping[str, str]) -> dict[str, Any]:
    """What `comparison.json` holds. prompts: text by key, see `prompt_texts`."""
    return {
        "verdict": comparison.verdict,
        "primary": comparison.primary,
        "base": comparison.base,
        "fine_tuned": comparison.fine_tuned,
        "metrics": {name: _metric(metric) for name, metric in comparison.metrics.items()},
        "prompts": {
            "shared": comparison.num_prompts,
            "only_base": len(comparison.only_base),
            "only_fine_tuned": len(comparison.only_fine_tuned),
            "better": comparison.wins,
            "worse": comparison.losses,
            "same": comparison.ties,
        },
        "moved": [
            {
                "prompt": prompts.get(move.key, "")[:_PROMPT_CHARACTERS],
                "base": move.base,
                "fine_tuned": move.fine_tuned,
                "difference": move.difference,
            }
            for move in comparison.moves[:_MOVES]
        ],
        "notes": list(comparison.notes),
        "confidence": comparison.confidence,
    }


def prompt_texts(comparison: Comparison, run: Run) -> dict[str, str]:
    """Text by key of the prompts that moved most."""
    wanted = {move.key for move in comparison.moves[:_MOVES]}
    return {key: text for _, text in _prompts(run) if (key := _key(text)) in wanted}


def _metric(metric: MetricComparison) -> dict[str, Any]:
    return {
        "base": metric.base,
        "fine_tuned": metric.fine_tuned,
        "difference": metric.difference,
        "interval": metric.interval,
        "p_value": metric.p_value,
        "adjusted_p_value": metric.adjusted_p_value,
        "detectable": metric.detectable,
        "prompts": metric.num_prompts,
        "verdict": metric.verdict,
    }


def _prompts(run: Run) -> list[tuple[int, str]]:
    reader = PromptReader(run.prompts_path)
    try:
        return [(prompt.index, prompt.text) for prompt in reader]
    finally:
        reader.close()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
