"""Renders comparisons, rankings and plans for a terminal."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heldout.metrics.comparison import Comparison
from heldout.metrics.planning import NextRollouts, Plan
from heldout.metrics.ranking import Ranking
from heldout.report.console import numbers_table
from heldout.report.labels import label
from heldout.report.numbers import number, percent, signed, signed_interval
from heldout.report.sanitizing import one_line, visible

_SHOWN_MOVES = 5
_PROMPT_CHARACTERS = 60


def comparison(compared: Comparison, prompts: Mapping[str, str]) -> RenderableType:
    """Render the verdict, one row per metric, and the prompts that moved most. prompts: text by prompt key."""
    table = numbers_table()
    table.add_column("metric", overflow="fold")
    for name in (compared.base, compared.fine_tuned):
        table.add_column(name, justify="right", min_width=6, overflow="fold")
    for name in ("difference", f"{compared.confidence:.0%} interval", "p", "p\ncorrected"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, metric in compared.metrics.items():
        table.add_row(
            label(name),
            number(metric.base),
            number(metric.fine_tuned),
            signed(metric.difference),
            signed_interval(metric.interval),
            _p_value(metric.p_value),
            _p_value(metric.adjusted_p_value),
        )
    parts: list[RenderableType] = [Text(visible(compared.verdict), style="bold")]
    parts += [Text(f"  {visible(reading)}") for reading in compared.readings]
    parts += [table, Text(_fared(compared))]
    parts += [Text.assemble(("! ", "bold yellow"), visible(note)) for note in compared.notes]
    moved = [move for move in compared.moves[:_SHOWN_MOVES] if move.difference]
    if moved:
        parts.append(Text("moved most (mean reward):", style="dim"))
    parts += [
        Text(
            f"  {number(move.base)} to {number(move.fine_tuned)}  {one_line(prompts.get(move.key, move.key), _PROMPT_CHARACTERS)}"
        )
        for move in moved
    ]
    return Group(*parts)


def _fared(compared: Comparison) -> str:
    counts = f"{compared.wins} better, {compared.losses} worse, {compared.ties} the same"
    return f"{compared.num_prompts} shared prompts: {counts} (mean reward)"


def _p_value(p_value: float) -> str:
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def ranking(ranked: Ranking) -> RenderableType:
    """Render the runs in order and name those whose difference is not shown."""
    table = Table(title=f"{label(ranked.metric)} on {ranked.num_prompts} shared prompts", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("run", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("cannot be told from", overflow="fold")
    for run in ranked.runs:
        table.add_row(str(run.rank), run.name, number(run.value), ", ".join(run.tied_with))
    return Group(table, *(Text.assemble(("! ", "bold yellow"), visible(note)) for note in ranked.notes))


def plan(planned: Plan, seen: float | None, following: NextRollouts | None) -> RenderableType:
    """Render a plan. seen: the smallest difference that the pilot itself could have shown."""
    title = f"to show a difference of {planned.difference:g} with power {planned.power:.0%}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("rollouts a prompt", "prompts", "rollouts a run", "power"):
        table.add_column(name, justify="right")
    for option in planned.options:
        style = "bold" if option == planned.recommended else ""
        table.add_row(
            str(option.group_size),
            f"{option.num_prompts:,}",
            f"{option.num_rollouts:,}",
            percent(option.power),
            style=style,
        )
    parts: list[RenderableType] = [table, Text(planned.advice)]
    if seen is not None:
        parts.append(Text(f"the pilot itself could have shown a difference of {number(seen)} or more"))
    if following is not None:
        parts.append(Text(following.advice))
    return Group(*parts)
