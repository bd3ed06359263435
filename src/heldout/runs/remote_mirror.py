"""Mirrors a run with a remote output: the job plays in a folder of this machine, which is copied out while it plays.

Finished rollouts reach the remote place within seconds, as whole journal segments, so that another machine can resume the run
when this one is gone. When the job is done, the results replace the copies of the journal.
"""

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from heldout.errors import HeldoutError, JobFailed, ReferenceProblem, RunError, StorageError
from heldout.runs.journal import Journal, segments
from heldout.runs.remote_sync import Seen, catch_up, end_writer, fetching, forget
from heldout.runs.run import Run
from heldout.storage import Storage, is_remote
from heldout.storage.claim import CLAIM_FILE, DEFAULT_TIMES, Claim, RemoteTimes, holder, is_free
from heldout.storage.fence import FencedStorage
from heldout.storage.lock import holder_of

log = logging.getLogger(__name__)

_BEGINNING = ("prompts.parquet", "job.json")
"""The files that a resume on another machine needs from the start."""
_RESULTS = (
    "prompts.parquet",
    "rollouts.parquet",
    "trajectories.parquet",
    "attempts.parquet",
    "metrics.json",
    "report.html",
)


def folder_for(location: str) -> Path:
    """Returns the working folder of the run at `location`: the location itself, or for a remote one a folder of this machine."""
    if not is_remote(location):
        return Path(location)
    return state_folder() / hashlib.sha256(location.rstrip("/").encode()).hexdigest()[:24]


def state_folder() -> Path:
    """Returns this machine's folder for state outside of outputs: $XDG_STATE_HOME/heldout, by default ~/.local/state/heldout."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "heldout"


def has_run(location: str) -> bool:
    """Whether there is a run at a local path or an `s3://` URI."""
    return Storage.at(location).exists("job.json")


def new_folder(location: str) -> Path:
    """Returns the working folder for a new run at `location`.

    Raises RunError when there is a run at a remote location already, StorageError or ReferenceProblem when the place refuses.
    """
    folder = folder_for(location)
    if is_remote(location):
        if has_run(location):
            raise RunError(
                f"there is a run at {location} already; resume it (heldout resume {location}) or choose another --name"
            )
        # This machine may still hold a run that was removed from the remote place since.
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def open_run(location: str) -> Run:
    """Opens the run at a local path or an `s3://` URI. Fetches a remote run first, unless this machine plays it now.

    Raises RunError when there is none.
    """
    folder = folder_for(location)
    if is_remote(location):
        storage = Storage.at(location)
        if not (folder / "job.json").exists() and not any(map(storage.exists, ("job.json", "rollouts.parquet"))):
            raise RunError(f"no run at {location!r}: it has no job.json")
        with fetching(folder):
            if holder_of(folder) is None:
                catch_up(storage, folder)
    return Run.open(folder)


def is_kept_here(location: str, arn: str | None) -> bool:
    """Whether this machine's folder for a remote location holds the run of this ARN, whether or not the location has it."""
    return (
        is_remote(location)
        and (folder_for(location) / "job.json").exists()
        and Run.open(folder_for(location)).state.arn == arn
    )


def machine_elsewhere(location: str, times: RemoteTimes = DEFAULT_TIMES) -> str | None:
    """Returns the other machine that works at `location` now; None when there is none, or the place cannot be asked."""
    if not is_remote(location):
        return None
    try:
        return holder(Storage.at(location), but=Seen(folder_for(location)).get(CLAIM_FILE), times=times)
    except (StorageError, ReferenceProblem) as error:
        log.warning("cannot ask whether another machine works on %s: %s", location, error)
        return None


def remove_if_never_begun(run: Run) -> None:
    """Removes a run in which no rollout has begun, here and in its remote place.

    Raises StorageError or ReferenceProblem when the remote place refuses; both copies stay then.
    """
    if run.is_begun:
        return
    if is_remote(run.location):
        storage = Storage.at(run.location)
        if not is_free(storage, but=Seen(run.folder).get(CLAIM_FILE)) or any(
            file.size for file in storage.list("journal")
        ):
            return  # another machine plays it
        for name in (*_BEGINNING, *(file.name for file in storage.list("journal")), CLAIM_FILE):
            storage.delete(name)
        forget(run.folder)
    run.remove()


class Mirror:
    """Copies one run to its remote place while it is played. The copying machine holds a claim on the place: see `claim`."""

    def __init__(
        self, run: Run, *, note: Callable[[str], None] = lambda _: None, times: RemoteTimes = DEFAULT_TIMES
    ) -> None:
        """note: called with what it waits for, in one line."""
        self._run = run
        self._storage = Storage.at(run.location, kms_key=run.kms_key)
        self._seen = Seen(run.folder)
        self._note = note
        self._times = times
        self._copied: set[str] = set()
        self._claim: Claim | None = None
        self._fence: FencedStorage | None = None

    @property
    def writer(self) -> str:
        """The part of the names of journal segments that marks this start."""
        assert self._claim is not None
        return self._claim.token

    @property
    def is_claimed(self) -> bool:
        """Whether `claim` has succeeded."""
        return self._fence is not None

    def claim(self) -> None:
        """Makes this the only machine that plays the run, and fetches what others have finished. The caller holds the run's lock.

        Raises RunError when another machine plays it, StorageError or ReferenceProblem when the place refuses, JobFailed when
        another machine takes over meanwhile.
        """
        # The caller holds the lock: the process that made the last claim from this folder is dead.
        self._claim = claim = Claim.take(
            self._storage, before=self._seen.get(CLAIM_FILE), note=self._note, times=self._times
        )
        self._seen.note(CLAIM_FILE, claim.token)
        for token in reversed(claim.unfenced):
            end_writer(self._storage, token)
        claim.note_fenced()
        with fetching(self._run.folder):
            catch_up(self._storage, self._run.folder, writer=claim.token)
        self._copied = {file.name for file in self._storage.list("journal")}
        self._run.state = Run.open(self._run.folder).state
        # It checks the claim: everything read above was read while this machine held it.
        self._fence = FencedStorage(self._storage, claim, times=self._times)

    def release(self) -> None:
        """Lets other machines resume the run."""
        if self._claim is not None:
            self._claim.release()

    def abandon(self) -> None:
        """Leaves the claim to expire, as the death of this process would."""
        if self._claim is not None:
            self._claim.abandon()

    def check(self) -> None:
        """Renews the claim. Raises JobFailed when another machine has taken over."""
        assert self._claim is not None
        self._claim.check()

    async def begin(self) -> None:
        """Copies the files that a resume on another machine needs.

        Raises StorageError or ReferenceProblem when the place refuses, JobFailed when another machine has taken over.
        """
        await asyncio.to_thread(self._begin)

    def publish_state(self) -> None:
        """Copies job.json. If the place refuses, the results bring the next copy.

        Raises JobFailed when another machine has taken over.
        """
        try:
            self._write("job.json")
        except (StorageError, ReferenceProblem) as error:
            log.warning("job.json is not copied yet: %s", error)

    async def keep_up(self, journal: Journal) -> None:
        """Copies newly finished rollouts every few seconds, until cancelled.

        Raises JobFailed when another machine has taken over. Any other failure is a warning, and the next try follows.
        """
        while True:
            await asyncio.sleep(self._times.seal_every_seconds)
            try:
                journal.seal()
                await asyncio.to_thread(self.copy_sealed)
            except JobFailed:
                raise
            except Exception as error:  # noqa: BLE001  # a mirror that ends in silence loses every later rollout with the machine
                reason = str(error) if isinstance(error, HeldoutError | OSError) else repr(error)
                log.warning("not copied yet, the next try is in %g s: %s", self._times.seal_every_seconds, reason)

    async def finish(self) -> None:
        """Copies the results. Copies the journal of a run that is not done, and removes the remote journal of one that is.

        Raises StorageError when the place still refuses after some minutes, JobFailed when another machine has taken over;
        everything is still in the local folder then.
        """
        try:
            await patiently(self._finish, "the results", self._times)
        except (StorageError, ReferenceProblem) as error:
            raise StorageError(
                f"the results are not copied to {self._run.location}, they are in {self._run.folder} on this machine: {error}; "
                f"copy them later with: heldout resume {self._run.location}"
            ) from error

    def copy_sealed(self) -> None:
        """Copies the journal's finished segments. Raises as `begin`."""
        assert self._claim is not None
        self._claim.check()
        self._copy(_written(segments(self._run.journal_folder)[:-1]))

    def _begin(self) -> None:
        if not self._storage.exists("prompts.parquet"):  # written once
            self._write("prompts.parquet")
        self._copy(_written(segments(self._run.journal_folder)))
        self._write("job.json")

    def _finish(self) -> None:
        if self._fence is None:  # the run was done before this start; only the copy is repeated
            self.claim()
        assert self._claim is not None
        self._claim.check()
        self._copy(_written(segments(self._run.journal_folder)))
        for name in _RESULTS:
            if (self._run.folder / name).exists():
                self._write(name)
        self._write("job.json")
        if not self._run.has_journal:
            self._claim.check()
            for file in list(self._storage.list("journal")):
                self._storage.delete(file.name)

    def _copy(self, paths: list[Path]) -> None:
        """Copies journal segments in the order of their numbers: `end_writer` relies on it."""
        assert self._fence is not None
        for path in paths:
            name = path.relative_to(self._run.folder).as_posix()
            if name not in self._copied:
                self._fence.add(name, path)
                self._copied.add(name)

    def _write(self, name: str) -> None:
        assert self._fence is not None
        version = self._fence.write(name, self._run.folder / name)
        if name == "job.json":
            self._seen.note(name, version)


async def patiently(copy: Callable[[], None], what: str, times: RemoteTimes = DEFAULT_TIMES) -> None:
    """Runs `copy`, and tries again while the remote place refuses.

    Raises StorageError or ReferenceProblem when it still refuses after some minutes.
    """
    for wait in times.finish_waits_seconds:
        try:
            await asyncio.to_thread(copy)
            return
        except (StorageError, ReferenceProblem) as error:
            log.warning("not copied yet, the next try is in %g s: %s: %s", wait, what, error)
            await asyncio.sleep(wait)
    await asyncio.to_thread(copy)


def _written(paths: list[Path]) -> list[Path]:
    """Returns the files that are not empty."""
    return [path for path in paths if path.stat().st_size]
