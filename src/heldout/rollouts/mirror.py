"""A run whose output is remote: played in a folder of this machine, copied out as it goes.

What is finished reaches the remote place within seconds, as whole journal segments, so that the run can be resumed on
another machine when this one is gone. When the job is done the journal's copies are removed and the results are there.
"""

import asyncio
import hashlib
import logging
import os
import shutil
from pathlib import Path

from heldout.errors import RunError, StorageError
from heldout.rollouts.journal import Journal, segments
from heldout.rollouts.run import JobState, JobStatus, Run
from heldout.storage import Storage, is_remote, open_atomic

log = logging.getLogger(__name__)

_SEAL_EVERY_SECONDS = 10.0
"""The most that is lost with the machine: rollouts finished in this time."""
_FINISH_WAITS_SECONDS = (1.0, 5.0, 15.0, 60.0, 120.0)
"""A night's results are not given up because a place is away for a minute."""
_BEGINNING = ("prompts.parquet", "job.json")
"""What a resume elsewhere needs from the first moment on."""
_RESULTS = (
    "job.json",
    "prompts.parquet",
    "rollouts.parquet",
    "trajectories.parquet",
    "attempts.parquet",
    "metrics.json",
    "report.html",
)


def folder_for(location: str) -> Path:
    """Where the run at `location` is worked on: the place itself, or for a remote one a folder of this machine."""
    if not is_remote(location):
        return Path(location)
    return state_folder() / hashlib.sha256(location.rstrip("/").encode()).hexdigest()[:24]


def state_folder() -> Path:
    """Where this machine keeps what belongs to no output: $XDG_STATE_HOME/heldout, by default ~/.local/state/heldout."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "heldout"


def has_run(location: str) -> bool:
    """Whether there is a run at a local path or an `s3://` URI."""
    return Storage.at(location).exists("job.json")


def new_folder(location: str) -> Path:
    """The folder to work in for a new run at `location`. Raises RunError when there is a run at a remote one already.

    Also the first touch of a remote place: StorageError or ReferenceProblem when it refuses.
    """
    folder = folder_for(location)
    if is_remote(location):
        if has_run(location):
            raise RunError(
                f"there is a run at {location} already; resume it (heldout resume {location}) or choose another --name"
            )
        # What this machine may still hold of a run that was removed there since.
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def open_run(location: str) -> Run:
    """The run at a local path or an `s3://` URI, which is fetched if this machine does not have it.

    Raises RunError when there is none.
    """
    folder = folder_for(location)
    if is_remote(location) and not _is_current(Storage.at(location), folder):
        shutil.rmtree(folder, ignore_errors=True)
        _fetch(Storage.at(location), location, folder)
    return Run.open(folder)


def remove_if_never_begun(run: Run) -> None:
    """Takes a run away again, here and in its remote place, if no rollout was ever begun in it.

    Raises StorageError or ReferenceProblem when the remote place refuses; then it is still in both.
    """
    if run.is_begun:
        return
    if is_remote(run.location):
        for name in _BEGINNING:
            Storage.at(run.location).delete(name)
    run.remove()


def _is_current(storage: Storage, folder: Path) -> bool:
    """Whether this machine has the run, and it was not completed elsewhere meanwhile."""
    if not (folder / "job.json").exists():
        return False
    run = Run.open(folder)
    if run.state.status is JobStatus.COMPLETED or run.is_running() or not storage.exists("job.json"):
        return True
    return JobState.model_validate_json(storage.read("job.json")).status is not JobStatus.COMPLETED


def _fetch(storage: Storage, location: str, folder: Path) -> None:
    names = [file.name for file in storage.list()]
    if not {"job.json", "rollouts.parquet"} & set(names):
        raise RunError(f"no run at {location!r}: it has no job.json")
    # job.json last: a fetch that was cut short is no run, and is made again.
    for name in sorted(names, key=lambda name: name == "job.json"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with storage.open(name) as source, open_atomic(target) as copy:
            while block := source.read(1024 * 1024):
                copy.write(block)


class Mirror:
    """Copies one run to its remote place while it is played."""

    def __init__(self, run: Run, location: str, *, kms_key: str | None) -> None:
        self._run = run
        self._storage = Storage.at(location, kms_key=kms_key)
        self._copied: set[str] = set()

    async def begin(self) -> None:
        """Copies what is needed to resume elsewhere. Raises StorageError or ReferenceProblem when the place refuses."""
        await asyncio.to_thread(self._copy, [self._run.folder / name for name in _BEGINNING])

    async def keep_up(self, journal: Journal) -> None:
        """Copies every few seconds what was finished meanwhile; runs until cancelled."""
        while True:
            await asyncio.sleep(_SEAL_EVERY_SECONDS)
            journal.seal()
            try:
                await asyncio.to_thread(self._copy_sealed)
            except StorageError as error:
                log.warning("not copied yet, the next try is in %g s: %s", _SEAL_EVERY_SECONDS, error)

    async def finish(self) -> None:
        """Copies the results; of a run that is not done also the journal, of one that is done removes it there.

        Raises StorageError when the place still refuses after some minutes; everything is still in the local folder then.
        """
        for wait in _FINISH_WAITS_SECONDS:
            try:
                return await asyncio.to_thread(self._finish)
            except StorageError as error:
                log.warning("the results are not copied yet, the next try is in %g s: %s", wait, error)
                await asyncio.sleep(wait)
        return await asyncio.to_thread(self._finish)

    def _finish(self) -> None:
        self._copied.clear()  # job.json and an unsealed segment have changed
        if self._run.has_journal:
            self._copy(segments(self._run.journal_folder))
        self._copy([path for name in _RESULTS[1:] if (path := self._run.folder / name).exists()])
        self._copy([self._run.folder / "job.json"])
        if not self._run.has_journal:
            for file in list(self._storage.list("journal")):
                self._storage.delete(file.name)

    def _copy_sealed(self) -> None:
        self._copy(segments(self._run.journal_folder)[:-1])

    def _copy(self, paths: list[Path]) -> None:
        for path in paths:
            name = path.relative_to(self._run.folder).as_posix()
            if name not in self._copied:
                self._storage.upload(name, path)
                self._copied.add(name)
