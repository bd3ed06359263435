"""Supervision of jobs and executions: each runs in a process of its own, which is restarted when it dies.

The folder of a job or execution holds its progress and is read on each look; the supervisor only keeps the list of folders. A job
that was asked to stop is never restarted here. A job that stopped without being asked was interrupted, for example by a shutdown
that signals every process; it is resumed like one that died.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from heldout.backends.local.detached import is_concluded, signal_stop, start_detached, start_detached_run
from heldout.backends.local.run_log import LOG_FILE, STARTED, lines_of
from heldout.errors import HeldoutError, RunError
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import ExecutionStatus, StepStatus
from heldout.runs.run import JobStatus, Run, SecondaryStatus
from heldout.service.store import Record, Store
from heldout.storage.lock import FolderLock, holder_of

LOOK_EVERY_SECONDS = 1.0
_MAX_STARTS = 4
"""The first start and three restarts: a job that kills its process each time then fails."""
_STEADY_SECONDS = 600.0
"""A process that lived this long before it died was not killed by its job's start, so the count of starts begins again."""
_GRACE_SECONDS = 120.0
"""After a stop request, rollouts in flight may finish for this long. SageMaker gives a training job as much."""
_STOPPED = "stopped on request"
_log = logging.getLogger(__name__)


class SupervisedJob(Record):
    """A job or an execution that a process of its own runs."""

    arn: str
    is_made: bool = False
    """Whether its folder was created. The record is durable first, and a server may be killed between the two."""
    is_stopping: bool = False
    """Whether a client asked it to stop."""


class Work(Protocol):
    """A folder that a process of its own works on."""

    @property
    def folder(self) -> Path: ...

    def is_over(self, *, is_stopping: bool) -> bool:
        """Whether it has ended. A stopped one has ended only if a client asked it to stop (`is_stopping`)."""
        ...

    def start(self) -> None:
        """Starts a process that resumes it. Raises RunError if a process already works on it."""
        ...

    def end(self, failure: str | None) -> None:
        """Records that it has failed for this reason, or that it was stopped (None)."""
        ...


@dataclass(frozen=True, slots=True)
class JobWork:
    """The run of a job that belongs to no pipeline. tags: of its MLflow run."""

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
    """The evaluation of a pipeline execution."""

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
class _Supervised:
    work: Work
    starts: int = 0
    started_at: float = 0.0
    """Time of the latest start, on the supervisor's clock."""
    problem: str | None = None
    """The file error of the latest look; None if it succeeded."""
    stop_at: float | None = None
    """When to signal its process (again), on the monotonic clock; None if it was not asked to stop."""
    num_signals: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Supervisor:
    """Keeps the jobs and executions of one server running. Its methods may be called from any thread."""

    def __init__(
        self,
        store: Store,
        *,
        look_every_seconds: float = LOOK_EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """store: where the records of supervised jobs are. look_every_seconds: how often `watch` checks each folder.

        clock: seconds that never go back.
        """
        self._store = store
        self._look_every_seconds = look_every_seconds
        self._clock = clock
        self._supervised: dict[str, _Supervised] = {}

    def supervise(self, record: SupervisedJob, work: Work) -> None:
        """Runs `work` to its end, or stops it if its record in the store says so."""
        supervised = self._supervised[record.arn] = _Supervised(work)
        # Read after the entry exists: a stop request that arrives from now on finds the entry.
        current = self._store.find(type(record), record.key)
        if current is not None and current.is_stopping:
            supervised.stop_at = self._clock()
        self._look_safely(record.arn, supervised)

    def resume(self, record: SupervisedJob, work: Work) -> None:
        """Restarts `work` that has ended, and runs it to its end.

        Raises RunError if a process already works on it, another HeldoutError or OSError if it cannot be started.
        """
        supervised = _Supervised(work, starts=1, started_at=self._clock())
        with supervised.lock:
            before = self._supervised.get(record.arn)
            # Registered before it starts: a stop request that arrives meanwhile finds it, and waits for the lock.
            self._supervised[record.arn] = supervised
            try:
                work.start()
            except BaseException:
                if before is None:
                    del self._supervised[record.arn]
                else:
                    self._supervised[record.arn] = before
                raise
        current = self._store.find(type(record), record.key)
        if current is not None and current.is_stopping:
            self.stop(record.arn)

    def stop(self, arn: str) -> None:
        """Asks a supervised job to stop. Has no effect on one that has ended or was already asked."""
        supervised = self._supervised.get(arn)
        if supervised is not None and supervised.stop_at is None:
            supervised.stop_at = self._clock()
            self._look_safely(arn, supervised)

    @property
    def num_running(self) -> int:
        """Number of supervised jobs that have a process now."""
        return sum(holder_of(supervised.work.folder) is not None for supervised in list(self._supervised.values()))

    async def watch(self) -> None:
        """Checks all supervised jobs periodically until cancelled."""
        while True:
            await asyncio.sleep(self._look_every_seconds)
            await asyncio.to_thread(self._look_at_all)

    def _look_at_all(self) -> None:
        for arn, supervised in list(self._supervised.items()):
            self._look_safely(arn, supervised)

    def _look_safely(self, arn: str, supervised: _Supervised) -> None:
        """Looks at one job. A failed look is repeated: the folder may be away, or the disk full, for a moment."""
        try:
            self._look(arn, supervised)
        except Exception as error:  # noqa: BLE001  # the boundary between jobs: none ends the supervision of another, or its own
            problem = str(error) if isinstance(error, HeldoutError | OSError) else repr(error)
            if problem != supervised.problem:
                _log.warning("%s is looked at again: %s", supervised.work.folder, problem)
            supervised.problem = problem
        else:
            supervised.problem = None

    def _look(self, arn: str, supervised: _Supervised) -> None:
        with supervised.lock:
            if self._supervised.get(arn) is not supervised:
                return
            if holder_of(supervised.work.folder) is not None:
                self._signal_if_due(supervised)
            elif supervised.work.is_over(is_stopping=supervised.stop_at is not None):
                del self._supervised[arn]
            elif supervised.stop_at is not None:
                supervised.work.end(None)
            elif self._starts_left(supervised) == 0:
                log = supervised.work.folder / LOG_FILE
                supervised.work.end(f"its process died {_MAX_STARTS} times; last line of {log}: {_last_line(log)}")
            else:
                try:
                    supervised.work.start()
                except RunError:
                    if holder_of(supervised.work.folder) is None:
                        raise
                    return  # another process has just started it
                supervised.starts += 1
                supervised.started_at = self._clock()

    def _starts_left(self, supervised: _Supervised) -> int:
        if self._clock() - supervised.started_at >= _STEADY_SECONDS:
            supervised.starts = 0
        return _MAX_STARTS - supervised.starts

    def _signal_if_due(self, supervised: _Supervised) -> None:
        """Signals the process to stop: once, and again after the grace period."""
        stop_at = supervised.stop_at
        is_due = stop_at is not None and supervised.num_signals < 2 and self._clock() >= stop_at
        if is_due and signal_stop(supervised.work.folder):
            supervised.num_signals += 1
            supervised.stop_at = self._clock() + _GRACE_SECONDS


def _last_line(log: Path) -> str:
    last = deque((line.text for line in lines_of(log) if line.text != STARTED), maxlen=1)
    return last[0][:200] if last else "none"
