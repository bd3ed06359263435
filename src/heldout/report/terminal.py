"""Renders a run's results for a terminal."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heldout.job.rollout_ids import short_id
from heldout.metrics.catalog import MEAN_REWARD, shown_metrics
from heldout.metrics.metric import Metric, Section
from heldout.metrics.summary import Summary
from heldout.report.console import numbers_table
from heldout.report.finding import Finding, Weight
from heldout.report.labels import heading, shown
from heldout.report.numbers import interval_text, number
from heldout.report.sanitizing import visible
from heldout.report.slices import Slice

_MARKS = {Weight.DOUBT: ("!", "bold yellow"), Weight.PATTERN: ("-", "bold cyan"), Weight.NOTE: ("-", "cyan")}
_SHOWN_PATTERNS = 4
"""The most findings shown besides warnings, so that table and findings fit on one screen."""


def results(
    summary: Summary, findings: Iterable[Finding], *, title: str, where: Path | str, is_partial: bool
) -> RenderableType:
    """Render the table, its notes and findings, and the run's location."""
    parts: list[RenderableType] = [_table(summary, title, is_partial=is_partial)]
    warnings = _warnings(summary, findings)
    if warnings.row_count:
        parts += ["", warnings, ""]
    parts.append(Text.assemble(("run ", "dim"), str(where)))
    return Group(*parts)


def slice_table(found: Iterable[Slice], column: str, confidence: float = 0.95) -> RenderableType:
    """Render the results by a column of the dataset. Each slice has its own interval."""
    table = numbers_table(title=f"by {visible(column)}", title_justify="left", title_style="bold")
    table.add_column(visible(column), overflow="fold")
    for name in ("prompts", "rollouts", "failed", "success", f"{confidence:.0%} interval", heading(MEAN_REWARD)):
        table.add_column(name, justify="right", no_wrap=True)
    for part in found:
        table.add_row(
            Text(visible(part.value)),
            f"{part.num_prompts:,}",
            f"{part.num_rollouts:,}",
            f"{part.failed:,}",
            "-" if part.success is None else number(part.success),
            interval_text(part.success_interval),
            "-" if part.reward is None else number(part.reward),
        )
    return table


def _table(summary: Summary, title: str, *, is_partial: bool) -> Table:
    states = [name for name, holds in (("partial", is_partial), ("incomplete", summary.is_incomplete)) if holds]
    table = Table(title=title + (f" ({', '.join(states)})" if states else ""), title_justify="left", title_style="bold")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column(f"{summary.confidence:.0%} interval", justify="right", no_wrap=True)
    table.add_column("note", style="dim", overflow="fold")
    table.add_row("prompts", f"{summary.num_prompts:,}", "", "")
    table.add_row("rollouts", f"{summary.scored + summary.failed:,}", "", _failed_note(summary))
    for section in _sections(summary):
        if section:
            table.add_section()
        for row in section:
            table.add_row(*row)
    return table


def _failed_note(summary: Summary) -> str:
    if not summary.failed:
        return ""
    commonest = f": {visible(str(summary.failures[0]))}" if summary.failures else ""
    others = f"; {len(summary.failures) - 1} more reasons" if len(summary.failures) > 1 else ""
    return f"{summary.failed:,} of them failed for good{commonest}{others}"


def incomplete_lines(summary: Summary) -> list[str]:
    """Lines that say why a run is incomplete, with its numbers under both rules for failures; none for other runs."""
    if not summary.is_incomplete:
        return []
    total = summary.scored + summary.failed
    lines = [f"incomplete: {summary.failed:,} of {total:,} rollouts failed, more than max_failed_share allows"]
    for reading in summary.readings:
        values = (
            f"{heading(name)} {shown(name, value)} {interval_text(reading.intervals.get(name))}".rstrip()
            for name, value in reading.metrics.items()
        )
        lines.append(f"with {reading.rule}: {', '.join(values)}")
    return lines


def _sections(summary: Summary) -> Iterator[list[tuple[str, str, str, str]]]:
    for section in Section:
        metrics = [metric for metric in shown_metrics(summary.metrics) if metric.section is section]
        yield [_row(summary, metric.name) for metric in metrics if _has_row(metric, summary)]


def _has_row(metric: Metric, summary: Summary) -> bool:
    return not metric.is_hidden_when_absent or metric.name in summary.metrics


def _row(summary: Summary, metric: str) -> tuple[str, str, str, str]:
    value = summary.metrics.get(metric)
    return (
        heading(metric),
        "-" if value is None else number(value),
        "none" if metric in summary.no_interval else interval_text(summary.intervals.get(metric)),
        summary.notes.get(metric, ""),
    )


def _warnings(summary: Summary, findings: Iterable[Finding]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    if summary.missing:
        seen = f"{summary.missing:,} rollouts have not been played: these numbers are partial"
        grid.add_row(Text("!", style="bold yellow"), Text(seen, style="yellow"))
    for place, sentence in enumerate(incomplete_lines(summary)):
        grid.add_row(Text("" if place else "!", style="bold yellow"), Text(sentence, style="yellow"))
    doubts, others = _parted(findings)
    for finding in [*doubts, *others[:_SHOWN_PATTERNS]]:
        mark, style = _MARKS[finding.weight]
        opened = f"; open {visible(short_id(finding.trajectory_ids[0]))}" if finding.trajectory_ids else ""
        grid.add_row(Text(mark, style=style), Text(visible(finding.seen), style=style.removeprefix("bold ")))
        grid.add_row("", Text(visible(finding.advice) + opened, style="dim"))
    if len(others) > _SHOWN_PATTERNS:
        grid.add_row("", f"and {len(others) - _SHOWN_PATTERNS} more, in report.html")
    return grid


def _parted(findings: Iterable[Finding]) -> tuple[list[Finding], list[Finding]]:
    given = list(findings)
    return [f for f in given if f.weight is Weight.DOUBT], [f for f in given if f.weight is not Weight.DOUBT]
