"""The play context: one frozen record that is handed from `evaluate` down to the engine."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from heldout.rollouts.engine import StopSwitch
from heldout.runs.progress import Progress
from heldout.runs.remote_mirror import Mirror
from heldout.runs.run import Run
from heldout.storage.claim import DEFAULT_TIMES, RemoteTimes
from heldout.storage.lock import FolderLock

Display = Callable[[Run, Progress], AbstractAsyncContextManager[None]]
"""Shows the progress of a job while its context is open."""


@contextlib.asynccontextmanager
async def no_display(run: Run, progress: Progress) -> AsyncIterator[None]:  # noqa: ARG001
    """Shows nothing."""
    yield


def _ignore(_: str) -> None:
    """Drops a line of text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayContext:
    """Settings of one start of an evaluation or a job. They change how it is played and shown, never its results."""

    switch: StopSwitch = field(default_factory=StopSwitch)
    """Stops the job from outside."""
    display: Display = no_display
    note: Callable[[str], None] = _ignore
    """Receives each warning: a line that the user has to see, although the job succeeds."""
    say: Callable[[str], None] = _ignore
    """Receives a line before each slow activity other than rollouts."""
    on_stop: Callable[[bool], None] | None = None
    """Called at each SIGINT and SIGTERM with whether it is a repeated one. None: this process keeps its signal handlers."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the job's MLflow run. The tags of an evaluation replace them."""
    max_runtime_seconds: int | None = None
    """Seconds after which this start begins no new rollout. None: the job's own limit."""
    step: str = ""
    """The place of the job among those of its evaluation, such as `2 of 2`; empty for the only one."""
    lock: FolderLock | None = None
    """The lock of the folder, if the caller holds it already. It is released at the end."""
    retry_failed: bool = False
    """Plays rollouts again that failed for good by something other than the agent and the model, also of a job that is done."""
    drop_damaged: bool = False
    """Drops the damaged lines of the journal, each with a warning, instead of failing at the first."""
    times: RemoteTimes = DEFAULT_TIMES
    """Intervals and limits of work at a remote location."""
    mirror: Mirror | None = None
    """Copies the run to its remote place. Set by the backend for a run that has one."""
