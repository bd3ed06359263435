"""The detached runner: plays an evaluation, or a job of its own, in a process that outlives its starter.

    python -m heldout.backends.local.runner FOLDER LOCK [TAGS]

LOCK is the descriptor of the folder's lock, inherited from the starter (`heldout.backends.local.detached`). The runner holds it
until it has nothing more to do, so an unfinished folder with a free lock belongs to a runner that died.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import orjson

from heldout.backends.local.backend import folder_backend
from heldout.backends.local.detached import CONCLUDED_FILE, PROGRESS_FILE
from heldout.backends.local.evaluation import run_to_end, stopped_by_signals
from heldout.backends.local.job import play_job
from heldout.backends.local.run_log import stamp_output
from heldout.background import logged_failure, start_task
from heldout.errors import HeldoutError, InputError
from heldout.pipeline.evaluation import STATE_FILE, Evaluation
from heldout.pipeline.state import StepStatus
from heldout.report.live import line
from heldout.rollouts.card import check_unchanged
from heldout.rollouts.context import Display, PlayContext
from heldout.runs.progress import Progress
from heldout.runs.run import JobStatus, Run, SecondaryStatus, write_whole
from heldout.storage.lock import FolderLock

_WRITE_EVERY_SECONDS = 1.0


_PARTS = 10
"""The number of progress lines of a job."""


class ProgressLog:
    """The progress lines in the log of a job: every tenth of the rollouts, and the first failure of each kind."""

    def __init__(self, progress: Progress, write: Callable[[str], None]) -> None:
        self._progress = progress
        self._write = write
        self._last_part = self._part()
        self._seen_failures: set[str] = set()

    def write_start(self) -> None:
        before = self._progress.finished_before
        ended = f", {before} of them already ended" if before else ""
        self._write(f"playing {self._progress.planned} rollouts{ended}")

    def write_new(self) -> None:
        """Writes new lines: another tenth of the rollouts, or the first failure of a kind with its reason."""
        for kind, reason in list(self._progress.first_failures.items()):
            if kind not in self._seen_failures:
                self._seen_failures.add(kind)
                self._write(f"an attempt failed, the first with {kind}: {' '.join(reason.split())}")
        if self._part() > self._last_part and self._progress.finished < self._progress.planned:
            self._last_part = self._part()
            self._write(line(self._progress))

    def write_end(self) -> None:
        self.write_new()
        self._write(f"played {line(self._progress)}")
        for reason in self._progress.failures.reasons:
            advice = f"; {reason.hint}" if reason.hint else ""
            self._write(f"failed attempts: {reason}{advice}")

    def _part(self) -> int:
        return _PARTS * self._progress.finished // max(self._progress.planned, 1)


def main() -> None:
    """Plays the evaluation, or the job, that the command line names."""
    folder, lock = Path(sys.argv[1]), FolderLock.inherited(int(sys.argv[2]))
    try:
        if (folder / STATE_FILE).exists():
            evaluation = Evaluation.open_folder(folder)
            stamp_output(lambda: _current_run(evaluation))
            backend = folder_backend(evaluation.state.backend)
            run_to_end(backend.play(evaluation, _context(folder, lock)))
        else:
            run = Run.open(folder)
            stamp_output(lambda: run.state.run_name)
            run_to_end(_play_run(run, lock, json.loads(sys.argv[3])))
    except HeldoutError as error:
        # execution.json or job.json records it already; this line is for readers of the log.
        print(f"heldout: {error}", file=sys.stderr)
        sys.exit(1)


async def _play_run(run: Run, lock: FolderLock, tags: Mapping[str, str]) -> None:
    # A lock of its own, released after the rollouts; this process holds the inherited one until it ends.
    context = _context(run.folder, FolderLock(os.dup(lock.descriptor)), tags)
    with stopped_by_signals(context.switch, context.on_stop):
        lock.sign()
        _check_unchanged(run, context)
        await play_job(run, context)
    write_whole(run.folder / CONCLUDED_FILE, b"")


def _check_unchanged(run: Run, context: PlayContext) -> None:
    """Raises InputError when the job's agent or dataset has changed since it began, and records that it has failed."""
    if run.state.status is JobStatus.COMPLETED:
        return
    try:
        for warning in check_unchanged([run]):
            context.note(warning)
    except InputError as error:
        run.update(
            status=JobStatus.FAILED,
            secondary_status=SecondaryStatus.FAILED,
            failure_reason=str(error),
            ended_at=time.time(),
        )
        raise


def _context(folder: Path, lock: FolderLock, tags: Mapping[str, str] | None = None) -> PlayContext:
    """Prints to the log and writes the progress file."""
    return PlayContext(
        display=_written_to(folder),
        note=lambda text: print(f"! {text}"),
        say=print,
        on_stop=lambda again: print("stopping at once" if again else "waiting for the rollouts in flight"),
        tags=tags or {},
        lock=lock,
    )


def _current_run(evaluation: Evaluation) -> str:
    """Returns the name of the last run that has begun and not succeeded, the run of a failure's log lines; empty between runs."""
    steps = reversed(evaluation.state.steps)
    return next((step.run_name for step in steps if step.run_name and step.status is not StepStatus.SUCCEEDED), "")


def _written_to(folder: Path) -> Display:
    @contextlib.asynccontextmanager
    async def written(run: Run, progress: Progress) -> AsyncIterator[None]:
        progress_log = ProgressLog(progress, print)
        progress_log.write_start()
        writing = start_task(_keep_written(folder, run, progress, progress_log), "the writing of the progress")
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            progress_log.write_end()

    return written


async def _keep_written(folder: Path, run: Run, progress: Progress, progress_log: ProgressLog) -> None:
    """Keeps `progress.json` and the log up to date with the job's progress."""
    while True:
        content = {
            "run": run.state.run_name,
            "planned": progress.planned,
            "finished": progress.finished,
            "line": line(progress),
        }
        with logged_failure("the progress was not written"):
            write_whole(folder / PROGRESS_FILE, orjson.dumps(content))
        progress_log.write_new()
        await asyncio.sleep(_WRITE_EVERY_SECONDS)


if __name__ == "__main__":
    main()
