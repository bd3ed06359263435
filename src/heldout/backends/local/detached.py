"""Detached runners from the outside: starts one, stops it, and checks whether it has finished.

The starter takes the folder's lock and passes it to the runner (`heldout.backends.local.runner`), so that the folder never seems
abandoned.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from heldout.backends.local.run_log import LOG_FILE, STARTED, add_line
from heldout.pipeline.evaluation import Evaluation
from heldout.runs.run import JobStatus, Run
from heldout.storage.lock import FolderLock, holder_of

PROGRESS_FILE = "progress.json"
"""The progress of the job that plays, written by the runner about once a second."""
CONCLUDED_FILE = "concluded"
"""Marks a job of its own whose report and MLflow run are done."""
_START_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 0.05


def start_detached(evaluation: Evaluation) -> None:
    """Starts or resumes an evaluation in a detached runner, whose output goes to `runner.log` in the folder.

    Raises RunError when a process already works on it.
    """
    lock = FolderLock.take(evaluation.folder)
    try:
        evaluation.refresh()
        evaluation.begin()  # it says Executing from now on, although its runner takes a second to start
        _start(evaluation.folder, lock, about="")
    finally:
        lock.release()


def start_detached_run(run: Run, tags: Mapping[str, str]) -> None:
    """Starts or resumes a job that belongs to no evaluation. tags: of its MLflow run. Raises RunError as
    `start_detached` does."""
    lock = FolderLock.take(run.folder)
    try:
        (run.folder / CONCLUDED_FILE).unlink(missing_ok=True)  # left by an earlier runner that was interrupted
        _start(run.folder, lock, json.dumps(dict(tags)), about=run.state.run_name)
    finally:
        lock.release()


def is_concluded(run: Run) -> bool:
    """Whether a job of its own is over. Report and MLflow run follow its rollouts, so a complete run may not be concluded yet."""
    match run.state.status:
        case JobStatus.IN_PROGRESS:
            return False
        case JobStatus.COMPLETED:
            return (run.folder / CONCLUDED_FILE).exists()
        case _:
            return True


def stop_detached(evaluation: Evaluation) -> bool:
    """Asks the process that works on an evaluation to stop. A repeated request stops rollouts in flight too.

    Returns whether there is such a process. Waits for one that is starting, for at most 30 seconds.
    """
    deadline = time.monotonic() + _START_SECONDS
    while (pid := holder_of(evaluation.folder)) == 0 and time.monotonic() < deadline:
        time.sleep(_ASK_AGAIN_SECONDS)
    return bool(pid) and signal_stop(evaluation.folder)


def signal_stop(folder: Path) -> bool:
    """Asks the process that works on `folder` to stop, without waiting. Returns False when none is ready to receive
    the signal."""
    pid = holder_of(folder)
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def _start(folder: Path, lock: FolderLock, *further: str, about: str) -> None:
    """about: the run of the log's first lines, until the runner names one."""
    add_line(folder / LOG_FILE, about, STARTED)
    command = (sys.executable, "-m", "heldout.backends.local.runner", str(folder.absolute()), str(lock.descriptor))
    with (folder / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [*command, *further],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.descriptor],
            start_new_session=True,  # signals and the end of the terminal do not reach it
        )
    # Collects the exit status when the runner ends before this process.
    threading.Thread(target=process.wait, daemon=True).start()
