"""Compares and ranks runs from their files; writes a comparison as `comparison.json` holds it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from heldout.datasets.prompts import PromptReader
from heldout.errors import MetricError
from heldout.job.card import CardPart
from heldout.metrics.catalog import SUCCESS_RATE
from heldout.metrics.comparison import Comparison, DifferingSetting, MetricComparison, Side, SideFailures, compare
from heldout.metrics.ranking import Ranking, rank
from heldout.runs.cards import run_differences
from heldout.runs.results import read_run_tables
from heldout.runs.run import JobStatus, Run

_MOVES = 20
"""The number of prompts with the largest changes in the document. The runs' tables have all prompts."""
_PROMPT_CHARACTERS = 200
_WITHOUT_EFFECT = ("rollout_max_concurrency", "logprobs", "pass_k_values")
"""Hyperparameters that change no number of a comparison."""


def compare_runs(base: Run, fine_tuned: Run, *, margin: float | None = None) -> Comparison:
    """Compares two runs on the prompts they share, under the settings of the fine-tuned run's job.

    margin: the largest difference that does not matter. Raises MetricError when they share no prompt, RunError when a run
    holds no finished rollout.
    """
    names = _names(base, fine_tuned)
    sides = [replace(side_of(run), name=name) for run, name in zip((base, fine_tuned), names, strict=True)]
    compared = compare(sides[0], sides[1], fine_tuned.metric_settings, margin=margin)
    differing = _differing(base, fine_tuned)
    found = (f"the runs differ in {', '.join(map(str, differing))}",) if differing else ()
    return replace(compared, differing=differing, notes=(*found, *compared.notes))


def rank_runs(runs: Sequence[Run], *, metric: str = SUCCESS_RATE) -> Ranking:
    """Ranks runs by a metric on the prompts that all share, under the settings of the last run's job.

    Each run is named by its location. Raises MetricError for fewer than two runs, a run given twice, no shared prompt, or a
    metric that a run lacks; RunError when a run holds no finished rollout.
    """
    if len(runs) < 2:
        raise MetricError(f"a ranking needs at least two runs; got {len(runs)}")
    sides = [replace(side_of(run), name=run.location) for run in runs]
    return rank(sides, runs[-1].metric_settings, metric=metric)


def side_of(run: Run) -> Side:
    """Returns a run as one side of a comparison. Prompts with the same text are the same prompt."""
    tables = read_run_tables(run)
    return Side(
        name=run.state.run_name,
        rollouts=tables.rollouts,
        prompt_keys={index: _key(text) for index, text in _prompts(run)},
        agent_metrics=tables.agent_metrics,
        is_partial=run.state.status is not JobStatus.COMPLETED,
        reasons=tables.failures,
        is_retried=tables.is_retried,
        success_threshold=run.metric_settings.success_threshold,
        identity=f"{run.state.arn} {run.state.created_at}",
    )


def _names(base: Run, fine_tuned: Run) -> tuple[str, str]:
    """Names that tell the runs apart: their own, else with the evaluation's, else the ends of their locations."""
    own = base.state.run_name, fine_tuned.state.run_name
    with_evaluation = f"{base.state.name}/{own[0]}", f"{fine_tuned.state.name}/{own[1]}"
    one, other = (run.location.rstrip("/").split("/") for run in (base, fine_tuned))
    ends = (("/".join(one[-n:]), "/".join(other[-n:])) for n in range(1, max(len(one), len(other)) + 1))
    return next((names for names in (own, with_evaluation, *ends) if names[0] != names[1]), own)


def _differing(base: Run, fine_tuned: Run) -> tuple[DifferingSetting, ...]:
    """What differs between the runs besides the policy and what cannot change a number."""
    return tuple(
        DifferingSetting(found.name, found.before or "none", found.after or "none")
        for found in run_differences(base, fine_tuned)
        if found.part not in (CardPart.MODEL, CardPart.MACHINE) and found.name not in _WITHOUT_EFFECT
    )


def comparison_document(comparison: Comparison, prompts: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content of `comparison.json`. prompts: text by key, see `prompt_texts`."""
    return {
        "verdict": comparison.verdict,
        "comparable": comparison.is_comparable,
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
        "failures": {
            "base": _failures(comparison.base_failures),
            "fine_tuned": _failures(comparison.fine_tuned_failures),
        },
        "rates": [asdict(rate) for rate in comparison.rates],
        "readings": list(comparison.readings),
        "differs": [asdict(one) for one in comparison.differing],
        "notes": list(comparison.notes),
        "confidence": comparison.confidence,
    }


def prompt_texts(comparison: Comparison, run: Run) -> dict[str, str]:
    """Returns the text, by key, of the prompts with the largest changes."""
    wanted = {move.key for move in comparison.moves[:_MOVES]}
    return {key: text for _, text in _prompts(run) if (key := _key(text)) in wanted}


def _failures(failures: SideFailures) -> dict[str, Any]:
    return {
        "rollouts": failures.num_rollouts,
        "failed": failures.failed,
        "retried": failures.retried,
        "reasons": [{**asdict(reason), "hint": reason.hint} for reason in failures.reasons],
    }


def _metric(metric: MetricComparison) -> dict[str, Any]:
    return {
        "base": metric.base,
        "fine_tuned": metric.fine_tuned,
        "difference": metric.difference,
        "interval": metric.interval,
        "no_interval": metric.no_interval,
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
