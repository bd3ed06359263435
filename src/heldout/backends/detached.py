"""An evaluation in a process of its own, that outlives whoever started it. Everything about it is read from its folder.

    python -m heldout.backends.detached FOLDER LOCK

The process holds the evaluation's lock from before it starts (its parent takes it and hands it down), so a folder whose
status says Executing and whose lock is free is one whose process has died.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson

from heldout.backends.evaluation import play_evaluation, run_to_end
from heldout.errors import HeldoutError
from heldout.pipeline.evaluation import Evaluation
from heldout.report.live import line
from heldout.rollouts.progress import Progress
from heldout.rollouts.run import Run, write_whole
from heldout.storage.lock import FolderLock, holder_of

PROGRESS_FILE = "progress.json"
LOG_FILE = "runner.log"
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
        with (evaluation.folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "heldout.backends.detached",
                    str(evaluation.folder.absolute()),
                    str(lock.descriptor),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.descriptor],
                # A session of its own: neither the terminal's signals nor its end reach it.
                start_new_session=True,
            )
    finally:
        lock.release()
    # Someone must collect it when it ends before its parent does.
    threading.Thread(target=process.wait, daemon=True).start()


def stop_detached(evaluation: Evaluation) -> bool:
    """Asks the process that works on an evaluation to stop; asked again, it gives up what is in flight.

    Returns whether there is one. Waits for one that is starting until it hears, some seconds at most.
    """
    deadline = time.monotonic() + _START_SECONDS
    while (pid := holder_of(evaluation.folder)) == 0 and time.monotonic() < deadline:
        time.sleep(_ASK_AGAIN_SECONDS)
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def main() -> None:
    """Plays the evaluation that the command line names."""
    folder, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    evaluation = Evaluation.open_folder(folder)
    try:
        run_to_end(_play(evaluation, FolderLock.inherited(descriptor)))
    except HeldoutError as error:
        # It is in execution.json already; the log is for who looks there.
        print(f"heldout: {error}", file=sys.stderr)
        sys.exit(1)


async def _play(evaluation: Evaluation, lock: FolderLock) -> None:
    @contextlib.asynccontextmanager
    async def written(run: Run, progress: Progress) -> AsyncIterator[None]:
        writing = asyncio.create_task(_keep_written(evaluation.folder, run, progress))
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    def told(again: bool) -> None:
        print("stopping at once" if again else "finishing what is in flight", flush=True)

    await play_evaluation(evaluation, written, lock=lock, on_stop=told, say=lambda doing: print(doing, flush=True))


async def _keep_written(folder: Path, run: Run, progress: Progress) -> None:
    """Keeps `progress.json` at what is known of the job that plays."""
    while True:
        known = {
            "run": run.state.run_name,
            "planned": progress.planned,
            "finished": progress.finished,
            "line": line(progress),
        }
        write_whole(folder / PROGRESS_FILE, orjson.dumps(known))
        await asyncio.sleep(_WRITE_EVERY_SECONDS)


if __name__ == "__main__":
    main()
