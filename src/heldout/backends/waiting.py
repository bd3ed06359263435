"""The display of `Execution.wait`: the steps of an evaluation, the progress of the job that plays, and new log lines.

A terminal shows one panel below the log lines and redraws it. A notebook shows one output with the last log lines and
replaces it. Elsewhere, each change and each log line is one line.
"""

import importlib
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heldout.backends.base import LogLine, StartedEvaluation, StepDetail
from heldout.pipeline.state import ExecutionStatus
from heldout.report.console import plain_console
from heldout.report.sanitizing import visible

_LINE_EVERY_SECONDS = 10.0
_LOOKS_AT_THE_END = 20
"""Reads of some thousand lines each, for the rest of the log at the end. A longer rest is not shown."""
_NOTEBOOK_LINES = 30
_LONGEST_LINE = 4_000
"""The number of characters of a log line that are shown."""
_STYLES = {"Succeeded": "green", "Failed": "red", "Stopped": "yellow"}


class Watcher:
    """Shows an evaluation each time that `show` is called, while its context is open."""

    def __init__(self, evaluation: StartedEvaluation, console: Console | None = None) -> None:
        self._evaluation = evaluation
        self._console = console or plain_console()
        self._stack = ExitStack()
        self._live: Live | None = None
        self._notebook: Any = None
        self._printed: str | None = None
        self._printed_at = 0.0
        self._last_lines: deque[Text] = deque(maxlen=_NOTEBOOK_LINES)

    def __enter__(self) -> Self:
        if self._console.is_jupyter:
            self._notebook = importlib.import_module("IPython.display").display(Text(""), display_id=True)
        elif self._console.is_terminal:
            self._live = self._stack.enter_context(Live(console=self._console, auto_refresh=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def show(self) -> None:
        """Shows the current status and the new log lines. For an evaluation that is over, the rest of the log."""
        for lines in self._new_lines():
            if self._notebook is not None:
                self._last_lines.extend(lines)
            else:
                self._console.print(Text("\n").join(lines), soft_wrap=True)  # at once: each print draws the panel again
        if self._notebook is not None:
            self._notebook.update(panel(self._evaluation, self._last_lines))
        elif self._live is not None:
            self._live.update(panel(self._evaluation), refresh=True)
        else:
            self._say()

    def _new_lines(self) -> Iterator[list[Text]]:
        """New log lines, in blocks."""
        evaluation = self._evaluation
        is_over = ExecutionStatus(evaluation.status.overall_status).is_final
        for _ in range(_LOOKS_AT_THE_END if is_over else 1):
            lines = evaluation.new_log_lines()
            if not lines:
                return
            yield [log_line(line, evaluation.name) for line in lines]
        if is_over:
            yield [Text(f"the log is longer; the rest is not shown ({evaluation.where_to_look()})", style="dim")]

    def _say(self) -> None:
        status = self._evaluation.status
        at = status.step_details[-1:]
        key = f"{status.overall_status} {at[0].name if at else ''}"
        is_due = time.monotonic() - self._printed_at >= _LINE_EVERY_SECONDS
        if key == self._printed and not is_due:
            return
        progress = self._evaluation.progress()
        self._printed, self._printed_at = key, time.monotonic()
        self._console.print(
            f"{self._evaluation.name}: {key}{': ' + progress.line if progress else ''}",
            highlight=False,
            soft_wrap=True,
        )


def log_line(line: LogLine, evaluation: str) -> Text:
    """A log line with its time and the name of its run, or of the evaluation if it belongs to no run.

    Control characters are made visible and line ends are indented, so the text cannot act on a terminal or imitate another line.
    """
    text = visible(line.text[:_LONGEST_LINE]).replace("\n", "\n    ") + ("…" if len(line.text) > _LONGEST_LINE else "")
    return Text.assemble(
        (f"{line.time.astimezone():%Y-%m-%d %H:%M:%S} ", "dim"), (f"{visible(line.run or evaluation)}: ", "cyan"), text
    )


def panel(evaluation: StartedEvaluation, log: Collection[Text] = ()) -> Panel:
    """A panel with the steps of the evaluation and the job that plays. log: lines to show below them."""
    state = evaluation.status
    begun = {step.name: step for step in state.step_details}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("step", "status", "time"):
        table.add_column(title, header_style="dim")
    for name in evaluation.planned_steps:
        step = begun.get(name)
        status = "Waiting" if step is None else step.status
        style = "dim" if step is None else _STYLES.get(status, "cyan")
        table.add_row(name, Text(status, style=style), _seconds(step))
    parts: list[RenderableType] = [table]
    if progress := evaluation.progress():
        lines = Table.grid()  # a bar by itself does not end its line
        if progress.planned:
            lines.add_row(ProgressBar(total=progress.planned, completed=progress.finished, width=60))
        lines.add_row(Text(progress.line))
        parts += ["", lines]
    if state.failure_reason:
        parts += ["", Text(state.failure_reason, style="red")]
    parts += ["", *log] if log else []
    return Panel(Group(*parts), title=f"{evaluation.name}: {state.overall_status}", title_align="left")


def _seconds(step: StepDetail | None) -> str:
    if step is None or step.start_time is None:
        return ""
    minutes, seconds = divmod(round(((step.end_time or datetime.now(UTC)) - step.start_time).total_seconds()), 60)
    return f"{minutes}:{seconds:02}"
