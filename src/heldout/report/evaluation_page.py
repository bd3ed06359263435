"""The page of two runs and their comparison."""

from collections.abc import Sequence

import numpy as np

from heldout.metrics.comparison import Comparison, PromptMove
from heldout.report.charts import change_bars, dumbbell, interval_bar
from heldout.report.labels import is_rate, label, shown
from heldout.report.numbers import number, signed, signed_interval
from heldout.report.page_records import Chart, Page, Row, Tile
from heldout.report.policy_view import PolicyView
from heldout.report.run_page import charts, partial_notes, rescored_disagreements, section
from heldout.report.sanitizing import one_line, visible

_MOVED_PROMPTS = 12
"""How many of the prompts that moved most are shown, in each direction."""
_PROMPT_CHARACTERS = 90
_TILES = 6


def evaluation_page(base: PolicyView, tuned: PolicyView, comparison: Comparison) -> Page:
    """The page of two runs and their comparison."""
    views = [base, tuned]
    primary = comparison.metrics[comparison.primary]
    is_clear = primary.interval is not None and not primary.interval[0] <= 0 <= primary.interval[1]
    tone = "even" if not is_clear or not comparison.is_comparable else "up" if primary.difference > 0 else "down"
    moved = (
        f"{comparison.wins:,} prompts went better, {comparison.losses:,} worse and {comparison.ties:,} the same, by their "
        "mean reward"
    )
    gained, lost = _moved_rows(base, comparison)
    disagreements = _compared_disagreements(views, comparison)
    return Page(
        title=visible(tuned.run.state.name),
        kicker=f"{base.name} against {tuned.name}, {comparison.num_prompts:,} shared prompts",
        headline=visible(_capitalized(comparison.verdict)),
        tone=tone,
        summary=[
            f"{_capitalized(label(comparison.primary))}: {shown(comparison.primary, primary.base)} with {base.name}, "
            f"{shown(comparison.primary, primary.fine_tuned)} with {tuned.name}, each over the same prompts.",
            f"{moved}.",
            *(f"{visible(_capitalized(reading))}." for reading in comparison.readings),
        ],
        notes=[*partial_notes(views), *(visible(note) for note in comparison.notes)],
        tiles=_change_tiles(comparison),
        changes=_change_rows(comparison),
        charts=[*charts(views), _moves_chart(comparison)],
        gained=gained,
        lost=lost,
        policies=[section(view, reasons) for view, reasons in zip(views, disagreements, strict=True)],
    )


def _change_tiles(comparison: Comparison) -> list[Tile]:
    names = [comparison.primary, *(name for name in comparison.metrics if name != comparison.primary)]
    tiles = []
    for name in names[:_TILES]:
        metric = comparison.metrics[name]
        tiles.append(
            Tile(
                label(name),
                shown(name, metric.fine_tuned),
                f"{signed(metric.difference)} {signed_interval(metric.interval)}".rstrip(),
                before=shown(name, metric.base),
            )
        )
    return tiles


def _change_rows(comparison: Comparison) -> list[Row]:
    """Draw the differences. Rates share one scale; each other unit has its own."""
    widest = max(
        (
            abs(end)
            for metric in comparison.metrics.values()
            if is_rate(metric.name)
            for end in metric.interval or (metric.difference, metric.difference)
        ),
        default=1.0,
    )
    rows = []
    for name, metric in comparison.metrics.items():
        ends = metric.interval or (metric.difference, metric.difference)
        reach = widest if is_rate(name) else max(abs(end) for end in ends)
        reach = reach or 1.0
        is_clear = metric.interval is not None and not metric.interval[0] <= 0 <= metric.interval[1]
        style = "even" if not is_clear else "tuned"
        cells = (
            label(name),
            shown(name, metric.base),
            shown(name, metric.fine_tuned),
            signed(metric.difference),
            signed_interval(metric.interval),
            _p(metric.p_value),
            _p(metric.adjusted_p_value),
        )
        rows.append(Row(cells, interval_bar(metric.difference, metric.interval, -reach, reach, style)))
    return rows


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _moves_chart(comparison: Comparison) -> Chart:
    differences = np.array([move.difference for move in comparison.moves], dtype=np.float64)
    return Chart(
        "Who moved",
        "Each bar is a prompt: the difference between its two mean rewards.",
        change_bars(differences, label=f"{len(differences):,} prompts"),
        is_wide=True,
    )


def _moved_rows(base: PolicyView, comparison: Comparison) -> tuple[list[Row], list[Row]]:
    """Draw the prompts that gained most and those that lost most, on one scale."""
    gained = [move for move in comparison.moves if move.difference > 0][:_MOVED_PROMPTS]
    lost = [move for move in comparison.moves if move.difference < 0][:_MOVED_PROMPTS]
    moves = [*gained, *lost]
    prompts = base.prompts(move.key for move in moves)
    values = [value for move in moves for value in (move.base, move.fine_tuned)]
    scale = min(values, default=0.0), max(values, default=1.0)
    rows = [_moved_row(move, prompts[move.key].text if move.key in prompts else move.key, scale) for move in moves]
    return rows[: len(gained)], rows[len(gained) :]


def _moved_row(move: PromptMove, text: str, scale: tuple[float, float]) -> Row:
    cells = (
        one_line(text, _PROMPT_CHARACTERS),
        number(move.base),
        number(move.fine_tuned),
        signed(move.difference),
    )
    return Row(cells, dumbbell(move.base, move.fine_tuned, *scale))


def _compared_disagreements(views: Sequence[PolicyView], comparison: Comparison) -> list[list[tuple[str, str]]]:
    """Choose each policy's most typical rollout of the prompt that gained most and of the one that lost most."""
    gained = next((move for move in comparison.moves if move.difference > 0), None)
    lost = next((move for move in comparison.moves if move.difference < 0), None)
    named = [(m, why) for m, why in ((gained, "gained most from"), (lost, "lost most by")) if m is not None]
    chosen: list[list[tuple[str, str]]] = []
    for view in views:
        prompts = view.prompts(move.key for move, _ in named)
        reasons = rescored_disagreements(view)
        for move, why in named:
            indices = prompts[move.key].indices if move.key in prompts else ()
            members = np.flatnonzero(np.isin(view.rows.prompt_index, indices))
            if len(members):
                rewards = view.rows.rewards_or_zero[members]
                ordinary = members[np.argmin(np.abs(rewards - rewards.mean()))]
                reasons.append(
                    (
                        view.rows.ids_at(np.array([ordinary]))[0],
                        f"an ordinary rollout of the prompt that {why} {views[1].name}",
                    )
                )
        chosen.append(reasons)
    return chosen


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
