"""comparison.json as data for the MLflow runs of the base and the fine-tuned policy. Imports no MLflow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from heldout.errors import RunError, shown
from heldout.report.numbers import interval_text, number
from heldout.tracking.run_data import MetricNames, headline_metrics, interval_tags, markdown_table, metric_name

DIFFERENCE = "difference"
"""Prefix of the MLflow metrics that are a difference: fine-tuned minus base."""
_P_VALUE_TAG = "heldout.p_value."


@dataclass(frozen=True, slots=True)
class ComparisonData:
    """A comparison, as it is written to both runs."""

    verdict: str
    metrics: dict[str, float]
    """`difference/<name>`."""
    tags: dict[str, str]
    """Of the headline differences: `heldout.interval.difference/<name>` and `heldout.p_value.difference/<name>`."""
    note: str
    """Markdown: the verdict and a table."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises RunError when the file is missing or is no comparison."""
        try:
            document = orjson.loads(path.read_bytes())
            return cls(
                verdict=document["verdict"],
                metrics=_metrics(document["metrics"]),
                tags=_tags(document),
                note=_note(document),
            )
        except FileNotFoundError as error:
            raise RunError(f"no comparison in {shown(str(path))}: an evaluation of two policies writes it") from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not a comparison: {type(error).__name__} {error}") from error


def _metrics(compared: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    names = MetricNames()
    for name, found in compared.items():
        logged = names.add(f"{DIFFERENCE}/{name}")
        if found["difference"] is not None and math.isfinite(found["difference"]):
            metrics[logged] = found["difference"]
    return metrics


def _tags(document: Mapping[str, Any]) -> dict[str, str]:
    compared = document["metrics"]
    headlines = headline_metrics(compared, document["primary"])
    intervals = {name: compared[name]["interval"] for name in headlines}
    p_values = {
        f"{_P_VALUE_TAG}{DIFFERENCE}/{metric_name(name)}": str(compared[name]["p_value"])
        for name in headlines
        if compared[name]["p_value"] is not None
    }
    return interval_tags(headlines, intervals, f"{DIFFERENCE}/") | p_values


def _note(document: Mapping[str, Any]) -> str:
    rows = (
        (
            f"`{metric_name(name)}`",
            _number(found["base"]),
            _number(found["fine_tuned"]),
            _number(found["difference"]),
            interval_text(found["interval"] and tuple(found["interval"])),
            _number(found["p_value"]),
        )
        for name, found in document["metrics"].items()
    )
    header = ("metric", document["base"], document["fine_tuned"], "difference", "interval", "p")
    table = markdown_table(header, rows)
    prompts = document["prompts"]
    moved = ", ".join(f"{prompts[how]} {how}" for how in ("better", "worse", "same"))
    counts = f"{prompts['shared']} shared prompts: {moved}."
    readings = (f"- {reading}" for reading in document.get("readings", ()))
    parts = [f"**{document['verdict']}**", *readings, counts, *document["notes"], table]
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
