"""An evaluation as someone waits for it: its steps, and how the job that plays goes. Read from its folder alone.

In a terminal one panel that is drawn again; in a notebook one output that is replaced; elsewhere a line for each change.
"""

import importlib
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heldout.backends.detached import PROGRESS_FILE
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import StepState, StepStatus

_LINE_EVERY_SECONDS = 10.0
_STYLES = {StepStatus.SUCCEEDED: "green", StepStatus.FAILED: "red", StepStatus.STOPPED: "yellow"}


class Watcher:
    """Shows one evaluation while inside, as it is each time `show` is called."""

    def __init__(self, evaluation: Evaluation, console: Console | None = None) -> None:
        self._evaluation = evaluation
        self._console = console or Console()
        self._stack = ExitStack()
        self._live: Live | None = None
        self._notebook: Any = None
        self._said: str | None = None
        self._said_at = 0.0

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
        """Shows the evaluation as it is now."""
        if self._notebook is not None:
            self._notebook.update(panel(self._evaluation))
        elif self._live is not None:
            self._live.update(panel(self._evaluation), refresh=True)
        else:
            self._say()

    def _say(self) -> None:
        at = self._evaluation.state.steps[-1:]
        key = f"{self._evaluation.status} {at[0].name if at else ''}"
        is_due = time.monotonic() - self._said_at >= _LINE_EVERY_SECONDS
        if key == self._said and not is_due:
            return
        progress = _progress(self._evaluation)
        self._said, self._said_at = key, time.monotonic()
        self._console.print(
            f"{self._evaluation.state.name}: {key}{': ' + progress['line'] if progress else ''}",
            highlight=False,
            soft_wrap=True,
        )


def panel(evaluation: Evaluation) -> Panel:
    """The evaluation's steps, and the job that plays."""
    state = evaluation.state
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("step", "status", "time"):
        table.add_column(title, header_style="dim")
    for step in evaluation.definition.steps:
        begun = state.step(step.name)
        status = "Waiting" if begun is None else str(begun.status)
        style = "dim" if begun is None else _STYLES.get(begun.status, "cyan")
        table.add_row(step.name, Text(status, style=style), _seconds(begun))
    parts: list[RenderableType] = [table]
    if progress := _progress(evaluation):
        bar = ProgressBar(total=max(progress["planned"], 1), completed=progress["finished"], width=60)
        parts += ["", bar, Text(progress["line"])]
    if state.failure_reason:
        parts += ["", Text(state.failure_reason, style="red")]
    return Panel(Group(*parts), title=f"{state.name}: {evaluation.status}", title_align="left")


def _progress(evaluation: Evaluation) -> dict[str, Any] | None:
    """What is known of the job that plays; None when none does."""
    path = evaluation.folder / PROGRESS_FILE
    playing = {step.run_name for step in evaluation.state.steps if step.ended_at is None}
    if not evaluation.is_running() or not path.exists():
        return None
    known: dict[str, Any] = orjson.loads(path.read_bytes())
    return known if known["run"] in playing else None


def _seconds(step: StepState | None) -> str:
    if step is None:
        return ""
    minutes, seconds = divmod(round((step.ended_at or time.time()) - step.started_at), 60)
    return f"{minutes}:{seconds:02}"
