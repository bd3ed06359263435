"""Shows a job while it plays: a live panel on a terminal, plain lines elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heldout.report.numbers import interval_text, number
from heldout.report.sanitizing import visible
from heldout.runs.progress import Progress

_REDRAWS_PER_SECOND = 4
_LINE_EVERY_SECONDS = 10.0
_SHOWN_REASONS = 4


@contextlib.asynccontextmanager
async def shown(progress: Progress, console: Console, title: str) -> AsyncIterator[None]:
    """Show `progress` on `console` inside the context."""
    task = asyncio.create_task(
        _live(progress, console, title) if console.is_terminal else _lines(progress, console, title)
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _live(progress: Progress, console: Console, title: str) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(panel(progress, title), refresh=True)
            await asyncio.sleep(1 / _REDRAWS_PER_SECOND)


async def _lines(progress: Progress, console: Console, title: str) -> None:
    while True:
        await asyncio.sleep(_LINE_EVERY_SECONDS)
        console.print(f"{_heading(progress, title)}: {line(progress)}", highlight=False, soft_wrap=True)


def line(progress: Progress) -> str:
    """Describe the job's progress in one line."""
    left = progress.seconds_left
    parts = [
        f"{progress.finished}/{progress.planned} rollouts",
        f"{progress.in_flight} playing",
        *_estimates(progress),
        f"{progress.turns / max(progress.seconds, 1e-9):.1f} turns/s",
    ]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.failures.total:
        parts.append(f"failed attempts: {visible(str(progress.failures.reasons[0]))}")
    if left is not None:
        parts.append(f"{_duration(left)} left")
    return ", ".join(parts)


def panel(progress: Progress, title: str) -> RenderableType:
    """Render the job's progress as a few lines with a bar."""
    grid = Table.grid(padding=(0, 2))
    left = progress.seconds_left
    grid.add_row("rollouts", f"{progress.finished}/{progress.planned}, {progress.in_flight} playing")
    grid.add_row(
        "rate", f"{_rate(progress):.2f} rollouts/s, {progress.turns / max(progress.seconds, 1e-9):.1f} turns/s"
    )
    grid.add_row("so far", ", ".join(_estimates(progress)) or "-")
    grid.add_row("tokens", f"{progress.prompt_tokens:,} prompt, {progress.response_tokens:,} response")
    for reason in progress.failures.reasons[:_SHOWN_REASONS]:
        advice = f"; {reason.hint}" if reason.hint else ""
        grid.add_row(Text("failed attempts", style="yellow"), Text(visible(f"{reason}{advice}")))
    grid.add_row("time", f"{_duration(progress.seconds)}, {'-' if left is None else _duration(left)} left")
    bar = Table.grid()  # a bar by itself does not end its line
    bar.add_row(ProgressBar(total=max(progress.planned, 1), completed=progress.finished, width=60))
    return Group(Text(_heading(progress, title), style="bold"), bar, grid)


def _heading(progress: Progress, title: str) -> str:
    return f"{title} ({progress.step})" if progress.step else title


def _rate(progress: Progress) -> float:
    return (progress.finished - progress.finished_before) / max(progress.seconds, 1e-9)


def _estimates(progress: Progress) -> list[str]:
    """The score so far, with intervals that hold at every look, and the number of prompts that it is from."""
    estimate = progress.totals.estimate()
    if estimate.num_prompts == 0:
        return []
    reward, success = interval_text(estimate.reward_interval), interval_text(estimate.success_interval)
    if estimate.no_reward_interval:
        reward = f"(no interval: {estimate.no_reward_interval})"
    prompts = "1 prompt" if estimate.num_prompts == 1 else f"{estimate.num_prompts:,} prompts"
    return [
        f"success {number(estimate.success_rate)} {success}",
        f"reward {number(estimate.reward_mean)} {reward}",
        f"from {prompts}",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
