"""An evaluation, or a job by itself, in a process of its own, that outlives whoever started it. Everything about it is read
from its folder.

    python -m heldout.backends.local.detached FOLDER LOCK [TAGS]

The process holds the folder's lock from before it starts (its parent takes it and hands it down) until it has nothing more to do,
so a folder whose status says that it goes on and whose lock is free is one whose process has died.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import orjson

from heldout.backends.local.evaluation import Display, play_evaluation, play_run, run_to_end, stopped_by_signals
from heldout.backends.local.progress_log import Narrator
from heldout.backends.local.run_log import LOG_FILE, STARTED, add_line, stamp_output
from heldout.errors import HeldoutError
from heldout.pipeline.evaluation import STATE_FILE, Evaluation
from heldout.pipeline.state import StepStatus
from heldout.report.live import line
from heldout.rollouts.engine import StopSwitch
from heldout.runs.progress import Progress
from heldout.runs.run import JobStatus, Run, write_whole
from heldout.storage.lock import FolderLock, holder_of

PROGRESS_FILE = "progress.json"
_CONCLUDED_FILE = "concluded"
_WRITE_EVERY_SECONDS = 1.0
_START_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 0.05


def start_detached(evaluation: Evaluation) -> None:
    """Starts, or goes on with, an evaluation in a process of its own; its output goes to `runner.log` in the folder.

    Raises RunError when a process works on it already.
    """
    lock = FolderLock.take(evaluation.folder)
    try:
        evaluation.refresh()
        evaluation.begin()  # from here on it says it is executing, though its process takes a second to come up
        _start(evaluation.folder, lock, about="")
    finally:
        lock.release()


def start_detached_run(run: Run, tags: Mapping[str, str]) -> None:
    """`start_detached` for a job that is no evaluation's. tags: of its MLflow run."""
    lock = FolderLock.take(run.folder)
    try:
        (run.folder / _CONCLUDED_FILE).unlink(missing_ok=True)  # of an earlier process, that was interrupted
        _start(run.folder, lock, json.dumps(dict(tags)), about=run.state.run_name)
    finally:
        lock.release()


def is_concluded(run: Run) -> bool:
    """Whether nothing more is to be done for a job that was started by itself; report and tracking come after its rollouts."""
    match run.state.status:
        case JobStatus.IN_PROGRESS:
            return False
        case JobStatus.COMPLETED:
            return (run.folder / _CONCLUDED_FILE).exists()
        case _:
            return True


def stop_detached(evaluation: Evaluation) -> bool:
    """Asks the process that works on an evaluation to stop; asked again, it gives up what is in flight.

    Returns whether there is one. Waits for one that is starting until it hears, some seconds at most.
    """
    deadline = time.monotonic() + _START_SECONDS
    while (pid := holder_of(evaluation.folder)) == 0 and time.monotonic() < deadline:
        time.sleep(_ASK_AGAIN_SECONDS)
    return bool(pid) and tell_to_stop(evaluation.folder)


def tell_to_stop(folder: Path) -> bool:
    """`stop_detached` for any folder, that waits for nothing: False also when its process cannot hear yet."""
    pid = holder_of(folder)
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def main() -> None:
    """Plays the evaluation, or the job, that the command line names."""
    folder, lock = Path(sys.argv[1]), FolderLock.inherited(int(sys.argv[2]))
    try:
        if (folder / STATE_FILE).exists():
            evaluation = Evaluation.open_folder(folder)
            stamp_output(lambda: _played_now(evaluation))
            run_to_end(_play(evaluation, lock))
        else:
            run = Run.open(folder)
            stamp_output(lambda: run.state.run_name)
            run_to_end(_play_run(run, lock, json.loads(sys.argv[3])))
    except HeldoutError as error:
        # It is in execution.json or job.json already; the log is for who looks there.
        print(f"heldout: {error}", file=sys.stderr)
        sys.exit(1)


def _start(folder: Path, lock: FolderLock, *further: str, about: str) -> None:
    """about: the run that the log's lines are about until the process says so itself."""
    add_line(folder / LOG_FILE, about, STARTED)
    with (folder / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "heldout.backends.local.detached",
                str(folder.absolute()),
                str(lock.descriptor),
                *further,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.descriptor],
            # A session of its own: neither the terminal's signals nor its end reach it.
            start_new_session=True,
        )
    # Someone must collect it when it ends before its parent does.
    threading.Thread(target=process.wait, daemon=True).start()


def _played_now(evaluation: Evaluation) -> str:
    """The name of the run that was begun and is not done, empty between runs; one that failed stays it, so that the reason is its
    own."""
    steps = reversed(evaluation.state.steps)
    return next((step.run_name for step in steps if step.run_name and step.status is not StepStatus.SUCCEEDED), "")


async def _play(evaluation: Evaluation, lock: FolderLock) -> None:
    await play_evaluation(
        evaluation, _written_to(evaluation.folder), lock=lock, on_stop=_told, note=_print_note, say=print
    )


async def _play_run(run: Run, lock: FolderLock, tags: Mapping[str, str]) -> None:
    switch = StopSwitch()
    with stopped_by_signals(switch, _told):
        lock.sign()
        await play_run(
            run,
            _written_to(run.folder),
            switch,
            tags=tags,
            note=_print_note,
            say=print,
            # One that is released when the rollouts are done, while this process still holds its own.
            lock=FolderLock(os.dup(lock.descriptor)),
        )
    write_whole(run.folder / _CONCLUDED_FILE, b"")


def _told(again: bool) -> None:
    print("stopping at once" if again else "finishing what is in flight")


def _print_note(note: str) -> None:
    print(f"! {note}")


def _written_to(folder: Path) -> Display:
    @contextlib.asynccontextmanager
    async def written(run: Run, progress: Progress) -> AsyncIterator[None]:
        narrator = Narrator(progress, print)
        narrator.begin()
        writing = asyncio.create_task(_keep_written(folder, run, progress, narrator))
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            narrator.end()

    return written


async def _keep_written(folder: Path, run: Run, progress: Progress, narrator: Narrator) -> None:
    """Keeps `progress.json`, and the log, at what is known of the job that plays."""
    while True:
        known = {
            "run": run.state.run_name,
            "planned": progress.planned,
            "finished": progress.finished,
            "line": line(progress),
        }
        write_whole(folder / PROGRESS_FILE, orjson.dumps(known))
        narrator.look()
        await asyncio.sleep(_WRITE_EVERY_SECONDS)


if __name__ == "__main__":
    main()
