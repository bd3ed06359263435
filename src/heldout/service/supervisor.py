"""Keeps running what is to run: starts the processes of jobs and executions, and starts them again when they die.

How far each has come is read from its folder, every time: this knows only which folders to look at. Stopping is final: what was
asked to stop is never started again here. What stopped without being asked was interrupted (a machine that is shut down tells
every process to stop), and goes on like what died.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from heldout.backends.local.detached import is_concluded, start_detached, start_detached_run, tell_to_stop
from heldout.backends.local.run_log import LOG_FILE, STARTED, lines_of
from heldout.errors import HeldoutError, RunError
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import ExecutionStatus, StepStatus
from heldout.runs.run import JobStatus, Run, SecondaryStatus
from heldout.storage.lock import FolderLock, holder_of

_LOOK_EVERY_SECONDS = 1.0
_STARTS = 4
"""One, and then again after a process that died: a job that takes its process along each time is given up."""
_GRACE_SECONDS = 120.0
"""After which what is in flight is given up, of a job that was asked to stop: what the hosted service gives a training job."""
_STOPPED = "stopped on request"
_log = logging.getLogger(__name__)


class Work(Protocol):
    """Something with a folder that a process of its own works on."""

    @property
    def folder(self) -> Path: ...

    def is_over(self, *, is_stopping: bool) -> bool:
        """Whether it has ended. is_stopping: whether it was asked to stop; if not, having stopped is no end."""
        ...

    def start(self) -> None:
        """Starts a process that goes on with it. Raises RunError when one is at it."""
        ...

    def end(self, failure: str | None) -> None:
        """Writes down that it has ended: failed with this reason, or stopped."""
        ...


@dataclass(frozen=True, slots=True)
class JobWork:
    """A job that is no pipeline's."""

    folder: Path
    tags: Mapping[str, str]

    def is_over(self, *, is_stopping: bool) -> bool:
        run = Run.open(self.folder)
        return is_concluded(run) and (is_stopping or not run.state.is_interrupted)

    def start(self) -> None:
        start_detached_run(Run.open(self.folder), self.tags)

    def end(self, failure: str | None) -> None:
        run = Run.open(self.folder)
        with run.locked():
            run.update(
                status=JobStatus.STOPPED if failure is None else JobStatus.FAILED,
                secondary_status=SecondaryStatus.STOPPED if failure is None else SecondaryStatus.FAILED,
                failure_reason=failure,
                ended_at=time.time(),
            )


@dataclass(frozen=True, slots=True)
class ExecutionWork:
    """An execution of a pipeline."""

    folder: Path

    def is_over(self, *, is_stopping: bool) -> bool:
        status = Evaluation.open_folder(self.folder).state.status
        return status.is_final and (is_stopping or status is not ExecutionStatus.STOPPED)

    def start(self) -> None:
        start_detached(Evaluation.open_folder(self.folder))

    def end(self, failure: str | None) -> None:
        lock = FolderLock.take(self.folder)
        try:
            evaluation = Evaluation.open_folder(self.folder)
            ended = StepStatus.STOPPED if failure is None else StepStatus.FAILED
            for step in evaluation.state.steps:
                if step.ended_at is None:
                    evaluation.update_step(step, status=ended, ended_at=time.time(), failure_reason=failure or _STOPPED)
            status = ExecutionStatus.STOPPED if failure is None else ExecutionStatus.FAILED
            evaluation.update(status=status, failure_reason=failure or _STOPPED, ended_at=time.time())
        finally:
            lock.release()


@dataclass(slots=True)
class _Charge:
    work: Work
    starts: int = 0
    stop_at: float | None = None
    """When to tell it (again) to stop, on the monotonic clock; None: it is not to stop."""
    told: int = 0
    busy: threading.Lock = field(default_factory=threading.Lock)


class Supervisor:
    """What one server has to keep running. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._charges: dict[str, _Charge] = {}

    def take(self, key: str, work: Work, is_stopping: Callable[[], bool]) -> None:
        """Has `work` run to its end from where it stands, or, when it was asked to stop before, has it stopped."""
        charge = self._charges[key] = _Charge(work)
        if is_stopping():  # asked only now: whoever asks it to stop from here on finds it
            charge.stop_at = time.monotonic()
        self._look(key, charge)

    def resume(self, key: str, work: Work) -> None:
        """Starts `work` that has ended again, and has it run to its end. Raises RunError when a process is at it."""
        work.start()
        self._charges[key] = _Charge(work, starts=1)

    def stop(self, key: str) -> None:
        """Asks what was taken under this key to stop; once is enough. One that has ended stays as it is."""
        charge = self._charges.get(key)
        if charge is not None and charge.stop_at is None:
            charge.stop_at = time.monotonic()
            self._look(key, charge)

    @property
    def num_running(self) -> int:
        """How many a process works on now."""
        return sum(holder_of(charge.work.folder) is not None for charge in list(self._charges.values()))

    async def watch(self) -> None:
        """Looks after everything that was taken, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            await asyncio.to_thread(self._look_at_all)

    def _look_at_all(self) -> None:
        for key, charge in list(self._charges.items()):
            try:
                self._look(key, charge)
            except (HeldoutError, OSError) as error:
                # One folder that was moved away or cannot be read must not keep the others from being looked after.
                _log.warning("%s is not looked after any more: %s", charge.work.folder, error)
                self._charges.pop(key, None)

    def _look(self, key: str, charge: _Charge) -> None:
        with charge.busy:
            if self._charges.get(key) is not charge:
                return
            if holder_of(charge.work.folder) is not None:
                self._tell(charge)
            elif charge.work.is_over(is_stopping=charge.stop_at is not None):
                del self._charges[key]
            elif charge.stop_at is not None:
                charge.work.end(None)
            elif charge.starts == _STARTS:
                log = charge.work.folder / LOG_FILE
                charge.work.end(f"its process died {_STARTS} times; what it said last: {_last_line(log)} ({log})")
            else:
                charge.starts += 1
                with contextlib.suppress(RunError):  # someone else has just started it
                    charge.work.start()

    def _tell(self, charge: _Charge) -> None:
        """Tells the process to stop, if it is to: once, and once more when it has had its time."""
        is_due = charge.stop_at is not None and charge.told < 2 and time.monotonic() >= charge.stop_at
        if is_due and tell_to_stop(charge.work.folder):
            charge.told += 1
            charge.stop_at = time.monotonic() + _GRACE_SECONDS


def _last_line(log: Path) -> str:
    last = deque((line.text for line in lines_of(log) if line.text != STARTED), maxlen=1)
    return last[0][:200] if last else "nothing"
