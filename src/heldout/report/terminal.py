"""A run's results as a person reads them in a terminal."""

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heldout.metrics.summary import Summary
from heldout.report.findings import Finding


def results(
    summary: Summary, findings: Iterable[Finding], *, title: str, where: str, is_partial: bool
) -> RenderableType:
    """The table, what to know about it, and where the run lies."""
    parts: list[RenderableType] = [_table(summary, title, is_partial=is_partial)]
    warnings = [*_about_counts(summary), *(Text.assemble((f.seen, "yellow"), "; ", f.advice) for f in findings)]
    parts += [Text.assemble(("! ", "bold yellow"), warning) for warning in warnings]
    parts.append(Text.assemble(("run ", "dim"), where))
    return Group(*parts)


def _table(summary: Summary, title: str, *, is_partial: bool) -> Table:
    level = f"{summary.confidence:.0%} interval"
    table = Table(title=title + (" (partial)" if is_partial else ""), title_justify="left", title_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column(level, justify="right")
    table.add_column("note", style="dim", overflow="fold")
    for number, section in enumerate(_rows(summary)):
        if number:
            table.add_section()
        for row in section:
            table.add_row(*row)
    return table


def _rows(summary: Summary) -> Iterator[list[tuple[str, str, str, str]]]:
    reward = [
        _row(summary, f"eval/reward/{name}", name if name != "mean" else "mean reward") for name in ("mean", "std")
    ]
    yield [*reward, _row(summary, "eval/reward/zero_frac", "share of zero rewards")]
    yield list(_pass_rows(summary))
    turns = _row(summary, "eval/turns/mean", "turns")
    tokens = [
        _row(summary, "eval/tokens/prompt_mean", "prompt tokens a turn"),
        _row(summary, "eval/tokens/response_mean", "response tokens a turn"),
    ]
    yield [turns, *tokens]
    own = [name for name in summary.metrics if name.startswith("agent/")]
    if own:
        yield [_row(summary, name, name.removeprefix("agent/")) for name in sorted(own)]
    if "eval/logprob/nz_mean" in summary.metrics:
        yield [_row(summary, "eval/logprob/nz_mean", "log-probability a token")]


def _pass_rows(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    names = [name for name in summary.metrics if name.startswith("eval/reward/pass_")]
    for name in sorted(names, key=lambda n: ("power" in n, int(n.rpartition("_")[2]))):
        k = name.rpartition("_")[2]
        yield _row(summary, name, f"pass^{k}" if "power" in name else f"pass@{k}")


def _row(summary: Summary, metric: str, label: str) -> tuple[str, str, str, str]:
    value = summary.metrics.get(metric)
    interval = summary.intervals.get(metric)
    return (
        label.replace("_", " "),
        "-" if value is None else number(value),
        "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]",
        summary.notes.get(metric, ""),
    )


def number(value: float) -> str:
    """A number with three significant digits, more only where they are before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def _about_counts(summary: Summary) -> Iterator[Text]:
    if summary.missing:
        yield Text(f"{summary.missing} rollouts have not been played: these numbers are partial")
