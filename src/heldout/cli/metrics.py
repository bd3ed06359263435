"""The `metrics` command: the catalog of metrics, as a table or as JSON."""

from dataclasses import asdict, dataclass

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from heldout.cli.output import JsonOption, print_json, print_shown
from heldout.metrics.catalog import SUCCESS_RATE, catalog, find, pattern, spellings, uses
from heldout.metrics.metric import Metric


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """One line of the catalog as plain data: what `heldout metrics` prints and the docs list."""

    name: str
    """The name on the wire. `{k}` and `{name}` stand for a parameter."""
    label: str
    spellings: tuple[str, ...]
    """Further accepted names."""
    unit: str
    range: str
    """The range, such as `0 to 1` or `from 0 up`; empty when any number is possible."""
    direction: str
    meaning: str
    uses: tuple[str, ...]
    """Those of run, gate, comparison and plan to which it applies."""


def metric_entries() -> list[MetricEntry]:
    """Lists the whole catalog in order, with pass@1, which has its own names and can be planned, before pass@k."""
    success_rate = find(SUCCESS_RATE)
    rows = [*([] if success_rate is None else [success_rate]), *map(pattern, catalog())]
    names = [row.name for row in rows]
    return [_entry(row, names) for row in rows]


def add_to(app: typer.Typer) -> None:
    """Adds this command to the command line."""
    app.command("metrics")(metrics_command)


def metrics_command(as_json: JsonOption = False) -> None:
    """List every metric: its names, unit, range, which way is better, where it applies and what it means."""
    entries = metric_entries()
    if as_json:
        print_json([asdict(entry) for entry in entries])
    else:
        print_shown(_table(entries))


def _table(entries: list[MetricEntry]) -> RenderableType:
    table = Table(title="metrics", title_justify="left", title_style="bold", show_lines=True)
    table.add_column("name, and other spellings", no_wrap=True)
    for heading in ("unit and range", "meaning"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        table.add_row(
            Text("\n".join((entry.name, *(f"  {other}" for other in dict.fromkeys((entry.label, *entry.spellings)))))),
            Text(", ".join(filter(None, (entry.unit or "the agent's own", entry.range)))),
            Text(_meaning(entry)),
        )
    return table


def _meaning(entry: MetricEntry) -> str:
    direction = "" if entry.direction == "neither" else f"; {entry.direction}"
    return f"{entry.meaning}{direction}. For: {', '.join(entry.uses)}."


def _entry(metric: Metric, names: list[str]) -> MetricEntry:
    return MetricEntry(
        name=metric.name,
        label=metric.label,
        spellings=tuple(name for name in spellings(metric, names) if name not in (metric.name, metric.label)),
        unit=metric.unit,
        range=_range(metric.low, metric.high),
        direction=metric.direction.value,
        meaning=metric.meaning,
        uses=uses(metric),
    )


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"from {low:g} up"
    return "" if high is None else f"up to {high:g}"
