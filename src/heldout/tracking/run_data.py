"""A run folder as data of an MLflow run: parameters, metrics, tags and a description. Imports no MLflow.

MLflow's page of evaluation runs shows every metric as a column by default, in the order in which they were logged, and in its
view of comparisons the first five (checked against MLflow 3.17). So the headline metrics are logged first, and the ends of
intervals are no metrics: those of headline metrics are tags, and all are in `metrics.json`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson

from heldout.errors import MetricError
from heldout.job.card import RunCard
from heldout.job.document import JobConfigDocument
from heldout.metrics.catalog import MEAN_REWARD, RESPONSE_TOKENS, SUCCESS_RATE, TURNS, resolve
from heldout.metrics.failures import FailureReason
from heldout.report.card_rows import card_rows
from heldout.report.numbers import interval_text, number
from heldout.runs.run import Run
from heldout.version import __version__

TABLES = ("prompts.parquet", "rollouts.parquet", "trajectories.parquet", "attempts.parquet")
_ARTIFACTS = ("report.html", "metrics.json", "job.json", *TABLES)
_TABLE_CHARACTERS = 2_200
"""Older servers take 5,000 characters in a tag; a description is one, and may hold a comparison's table as well."""
_MOST_REASON_CHARACTERS = 2_000
_MOST_PARAMETER_CHARACTERS = 6_000
_MOST_NAME_CHARACTERS = 240
"""MLflow takes 250 in a metric's name; `_2` may follow."""
_HEADLINES = (SUCCESS_RATE, MEAN_REWARD, TURNS, RESPONSE_TOKENS)
"""The metrics after the primary one."""
_INTERVAL_TAG = "heldout.interval."
_NAMED_RENAMES = 20
_MOST_REASONS = 3
_NO_BREAK_SPACES = "\N{NO-BREAK SPACE}" * 2
_NOT_IN_NAMES = re.compile(r"[^\w.:/ -]", re.ASCII)


@dataclass(frozen=True, slots=True)
class RunData:
    """A run without its trajectories and the content of its artifacts."""

    parameters: dict[str, str]
    metrics: dict[str, float]
    """By wire name, the headline metrics first."""
    tags: dict[str, str]
    note: str
    """Markdown."""
    artifacts: tuple[str, ...]
    """Names of the files in the run folder that go along, those that are there."""

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read a run folder; a run that has not ended has no metrics."""
        document = orjson.loads(run.metrics_path.read_bytes()) if run.metrics_path.exists() else {}
        names = MetricNames()
        headlines = headline_metrics(document.get("metrics", {}), run.metric_settings.primary_metric)
        return cls(
            parameters=_parameters(run.document) | _card_parameters(run.state.card),
            metrics=_metrics(document, headlines, names),
            tags=_tags(run, document) | interval_tags(headlines, document.get("intervals", {})),
            note=_note(run, document, names),
            artifacts=tuple(name for name in _ARTIFACTS if (run.folder / name).is_file()),
        )


def metric_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits and `_ - . : / space`, in the form of a relative path."""
    parts = (part for part in _NOT_IN_NAMES.sub("_", name).split("/") if part not in ("", "."))
    return "/".join("_" if part == ".." else part for part in parts)[:_MOST_NAME_CHARACTERS] or "_"


class MetricNames:
    """Gives each metric a name that MLflow accepts and that no other metric of the run has.

    `renamed` maps the names that had to be changed to those that they have in MLflow.
    """

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}
        self._taken: set[str] = set()

    def add(self, name: str) -> str:
        """Returns the name in MLflow. Metrics that differ only in characters that MLflow lacks get `_2`, `_3` and so on."""
        cleaned = unique = metric_name(name)
        number = 1
        while unique in self._taken:
            number += 1
            unique = f"{cleaned}_{number}"
        self._taken.add(unique)
        if unique != name:
            self.renamed[name] = unique
        return unique

    @property
    def note(self) -> str:
        """Says which metrics have another name in MLflow, in Markdown; empty if none has."""
        if not self.renamed:
            return ""
        pairs = "; ".join(f"`{old}` is `{new}`" for old, new in list(self.renamed.items())[:_NAMED_RENAMES])
        more = len(self.renamed) - _NAMED_RENAMES
        return f"Names that MLflow does not take: {pairs}{f'; and {more} more' if more > 0 else ''}."


def headline_metrics(names: Iterable[str], primary: str) -> list[str]:
    """The metrics among `names` that a reader looks at first: the primary one, pass@1, the mean reward, turns and tokens.

    names: wire names. primary: any spelling of the primary metric; one that is not among `names` is left out.
    """
    known = list(names)
    try:
        first = [resolve(primary, known)]
    except MetricError:  # such as an agent metric that no rollout reported
        first = []
    return list(dict.fromkeys(name for name in (*first, *_HEADLINES) if name in known))


def interval_tags(
    names: Iterable[str], intervals: Mapping[str, Iterable[float] | None], prefix: str = ""
) -> dict[str, str]:
    """Tags `heldout.interval.<prefix><name>` with the text `[low, high]`, of those metrics that have an interval."""
    return {
        f"{_INTERVAL_TAG}{prefix}{metric_name(name)}": orjson.dumps(list(ends)).decode()
        for name in names
        if (ends := intervals.get(name)) is not None
    }


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]], *, room: int = _TABLE_CHARACTERS) -> str:
    """A table in Markdown, of cells without `|`; rows that do not fit into `room` characters are only counted below it."""
    titles = list(header)
    lines = [_row(titles), "|" + "---|" * len(titles)]
    used, left_out = sum(map(len, lines)), 0
    for cells in rows:
        line = _row(cells)
        if used + len(line) > room:
            left_out += 1
            continue
        lines.append(line)
        used += len(line) + 1
    return "\n".join(lines) + (f"\n\n{left_out} more in the artifacts." if left_out else "")


def _parameters(document: JobConfigDocument) -> dict[str, str]:
    prompts = document.prompts
    values: dict[str, object] = {
        "model": document.model.text,
        "agent": document.agent_config.agent.text,
        "dataset": prompts.data_source.dataset,
        "limit": prompts.limit,
        "shuffle_seed": prompts.shuffle_seed,
        **document.hyperparameters.to_dict(),
    }
    return {name: _text(value)[:_MOST_PARAMETER_CHARACTERS] for name, value in values.items() if value is not None}


def _card_parameters(card: RunCard | None) -> dict[str, str]:
    """The card's lines as `card.<name>`, without those that are parameters or tags of their own."""
    rows = () if card is None else card_rows(card)
    return {
        f"card.{row.name.replace(' ', '_')}": row.text[:_MOST_PARAMETER_CHARACTERS]
        for row in rows
        if row.name not in ("agent", "changes", "dataset", "model", "sampling")
    }


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _metrics(document: Mapping[str, Any], headlines: Iterable[str], names: MetricNames) -> dict[str, float]:
    values: Mapping[str, float | None] = document.get("metrics", {})
    logged = {name: names.add(name) for name in values}
    ordered = ((logged[name], values[name]) for name in dict.fromkeys([*headlines, *values]))
    return {name: value for name, value in ordered if value is not None and math.isfinite(value)}


def _tags(run: Run, document: Mapping[str, Any]) -> dict[str, str]:
    state = run.state
    tags = {
        "heldout.version": __version__,
        "heldout.evaluation": state.name,
        "heldout.job_arn": state.arn,
        "heldout.run": run.location,
        "mlflow.source.name": f"heldout {__version__}",
        "mlflow.source.type": "JOB",
        "mlflow.runType": "genai_evaluate",  # among MLflow's evaluation runs, and no line on stdout when it ends
    }
    if state.card is not None and state.card.changes:
        tags["heldout.changes"] = "; ".join(state.card.changes)[:_MOST_REASON_CHARACTERS]
    if document.get("partial"):
        tags["heldout.partial"] = "true"
    if document.get("incomplete"):
        tags["heldout.incomplete"] = "true"
    if state.failure_reason:
        tags["heldout.failure_reason"] = state.failure_reason[:_MOST_REASON_CHARACTERS]
    return tags


def _note(run: Run, document: Mapping[str, Any], names: MetricNames) -> str:
    if run.state.failure_reason:
        return f"**The job failed:** {run.state.failure_reason[:_MOST_REASON_CHARACTERS]}"
    if not document:
        return "No rollout has finished."
    counts, intervals = document["rollouts"], document["intervals"]
    head = f"{counts['prompts']} prompts, {counts['scored']} rollouts scored, {counts['failed']} failed"
    if document["partial"]:
        head = f"**Partial results:** {head}, {counts['missing'] or 'some'} not played"
    if document.get("incomplete"):
        head = f"**Incomplete results:** {head}"
    rows = (
        (f"`{names.renamed.get(name, name)}`", number(document["metrics"][name]), interval_text(tuple(ends)))
        for name, ends in intervals.items()
        if document["metrics"].get(name) is not None
    )
    table = markdown_table(("metric", "value", f"{document['confidence']:.0%} interval"), rows)
    reasons = [f"- failed: {_reason(reason)}" for reason in document.get("failures", ())[:_MOST_REASONS]]
    readings = [_reading(reading) for reading in document.get("readings", ())]
    return "\n\n".join(filter(None, [f"{head}.", "\n".join([*reasons, *readings]), names.note, table]))


def _reason(reason: Mapping[str, Any]) -> str:
    names = ("boundary", "kind", "count", "message", "message_count")
    found = FailureReason(**{name: reason[name] for name in names})
    return f"{found}: {found.hint}" if found.hint else str(found)


def _reading(reading: Mapping[str, Any]) -> str:
    values = (
        f"`{metric_name(name)}` {number(value)} {interval_text(reading['intervals'].get(name))}".rstrip()
        for name, value in reading["metrics"].items()
    )
    return f"- incomplete; with {reading['rule']}: {', '.join(values)}"


def _row(cells: Iterable[str]) -> str:
    # MLflow's pages set the columns of a table without any space between them.
    return "| " + " | ".join(f"{cell}{_NO_BREAK_SPACES}" for cell in cells) + " |"
