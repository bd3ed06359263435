"""Renders the results of a rescoring for a terminal."""

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heldout.job.rollout_ids import short_id
from heldout.report.numbers import interval_text, number, percent
from heldout.report.sanitizing import one_line, visible
from heldout.rescoring.scores import Rescored

_SHOWN_DISAGREEMENTS = 10
_SHOWN_ERRORS = 3
_ERROR_CHARACTERS = 160


def rescored(result: Rescored) -> RenderableType:
    """Render the score, its agreement with the reward, the largest disagreements, the errors, and the files."""
    parts: list[RenderableType] = [_summary(result)]
    if result.disagreements:
        parts.append(_disagreements(result))
    if result.errors:
        parts.append(_errors(result))
    parts.append(Text.assemble(("scores ", "dim"), str(result.scores_path)))
    return Group(*parts)


def _summary(result: Rescored) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    skipped = f", {result.skipped:,} without a reward were left out" if result.skipped else ""
    grid.add_row("scorer", Text.assemble((visible(result.scorer), "bold"), f"  {result.scored:,} rollouts{skipped}"))
    if result.score_mean is not None:
        grid.add_row("mean score", f"{number(result.score_mean)} {interval_text(result.score_interval)}".rstrip())
    if result.agreement is None:
        grid.add_row("agreement", "nothing was scored, so there is nothing to compare")
        return grid
    confusion, correlation = result.agreement.confusion, result.agreement.rank_correlation
    interval = result.agreement.rank_interval
    grid.add_row("agreement", f"reward and score agree on {percent(confusion.agreement)} of rollouts")
    grid.add_row(
        "",
        f"both succeed {confusion.both_succeed:,}, only the reward {confusion.only_reward:,}, only the score "
        f"{confusion.only_score:,}, neither {confusion.neither:,}",
    )
    if not math.isnan(correlation):  # both vary
        known = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
        grid.add_row("rank correlation", f"{correlation:+.2f}{known}")
    return grid


def _disagreements(result: Rescored) -> Table:
    table = Table(title="where they disagree most", title_justify="left", title_style="bold")
    table.add_column("trajectory", overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for one in result.disagreements[:_SHOWN_DISAGREEMENTS]:
        table.add_row(Text(visible(short_id(one.trajectory_id))), number(one.reward), number(one.score))
    return table


def _errors(result: Rescored) -> Text:
    lines = [Text(f"{result.failed:,} rollouts got no score:", style="yellow")]
    for error, count in list(result.errors.items())[:_SHOWN_ERRORS]:
        lines.append(Text(f"  {count:,} × {one_line(error, _ERROR_CHARACTERS)}"))
    if len(result.errors) > _SHOWN_ERRORS:
        lines.append(
            Text(f"  and {len(result.errors) - _SHOWN_ERRORS:,} other errors, in the scores' column error", "dim")
        )
    return Text("\n").join(lines)
