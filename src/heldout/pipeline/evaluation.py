"""The evaluation: the folder that holds one or two runs and their comparison. It is the only state.

    execution.json        the pipeline definition, steps, status and times  (replaced whole)
    lineage.json          which artifact was made from which, with content hashes
    <candidate>/          the run of each candidate, in a folder of its name; in executions of `heldout serve` as the service
                          names it: base-model-eval, fine-tuned-model-eval
    comparison.json       for each metric: base, fine-tuned, difference, interval, p-value
    report.html
    runner.log            the log of the detached process

One process at a time works on an evaluation and holds the lock on its file `lock`. The lock ends with the process. So an
evaluation with status Executing and a free lock was interrupted.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import ValidationError

from heldout.errors import HeldoutError, JobFailed, ReferenceProblem, RunError, StorageError, did_you_mean, shown
from heldout.job.registry import Registry
from heldout.pipeline.definition import BASE_STEP, FINE_TUNED_STEP, PIPELINE_PREFIX
from heldout.pipeline.state import ExecutionState, ExecutionStatus, StepState, StepStatus
from heldout.pipeline.steps import Definition, JobStep, parse_definition
from heldout.runs.remote_mirror import (
    folder_for,
    has_run,
    is_kept_here,
    machine_elsewhere,
    open_run,
    remove_if_never_begun,
)
from heldout.runs.remote_sync import Seen, fetching, forget
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN, Run, write_whole
from heldout.storage import Storage, is_remote, why_not_writable
from heldout.storage.claim import CLAIM_FILE, DEFAULT_TIMES, Claim, RemoteTimes, is_free
from heldout.storage.fence import FencedStorage
from heldout.storage.lock import FolderLock, holder_of

log = logging.getLogger(__name__)

STATE_FILE = "execution.json"
RUN_NAMES: Mapping[str, str] = {BASE_STEP: BASE_RUN, FINE_TUNED_STEP: FINE_TUNED_RUN}
_FILES = (STATE_FILE, "lineage.json", "comparison.json", "report.html")
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
LOCAL_ACCOUNT = "000000000000"


class Evaluation:
    """An evaluation folder that exists."""

    def __init__(self, folder: Path, state: ExecutionState, times: RemoteTimes = DEFAULT_TIMES) -> None:
        self.folder = folder
        self.state = state
        self.times = times
        """Intervals and limits of work at a remote location."""
        self._fence: FencedStorage | None = None

    @classmethod
    def create(
        cls,
        location: str,
        *,
        name: str,
        region: str,
        definition: Mapping[str, Any],
        registry: Registry | None = None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        pipeline_name: str | None = None,
        kms_key: str | None = None,
        execution_id: str | None = None,
        backend: str = "local",
        times: RemoteTimes = DEFAULT_TIMES,
    ) -> Self:
        """Create an evaluation at `location`, a local path or an `s3://` URI.

        execution_id: the last part of its ARN; a new one by default. backend: the name of the backend that plays it.

        Raises RunError when there is one already or the name is invalid, ReferenceProblem when nothing can be written there,
        InputError when the definition cannot be executed.
        """
        location = location.rstrip("/")
        cls.check_new(location, name)
        parse_definition(definition)
        pipeline_name = pipeline_name or f"{PIPELINE_PREFIX}-{name}"
        execution_id = execution_id or secrets.token_hex(6)
        state = ExecutionState(
            name=name,
            pipeline_name=pipeline_name,
            execution_id=execution_id,
            arn=f"arn:aws:sagemaker:{region}:{LOCAL_ACCOUNT}:pipeline/{pipeline_name}/execution/{execution_id}",
            region=region,
            location=location,
            definition=dict(definition),
            registry={} if registry is None else registry.model_dump(mode="json", by_alias=True, exclude_none=True),
            parameters=dict(parameters or {}),
            tags=dict(tags or {}),
            kms_key=kms_key,
            backend=backend,
        )
        evaluation = cls(folder_for(location), state, times)
        evaluation._create()
        return evaluation

    @classmethod
    def open(cls, location: str | Path, *, times: RemoteTimes = DEFAULT_TIMES) -> Self:
        """Open the evaluation at a local path or an `s3://` URI. Raises RunError when there is none."""
        location = str(location)
        folder = folder_for(location)
        if is_remote(location):
            _fetch(location, folder)
        return cls.open_folder(folder, times=times)

    @classmethod
    def open_folder(cls, folder: Path, *, times: RemoteTimes = DEFAULT_TIMES) -> Self:
        """Open the evaluation in a folder of this machine. Raises RunError when there is none."""
        path = folder / STATE_FILE
        if not path.is_file():
            raise RunError(f"no evaluation in {shown(str(folder))}: it has no {STATE_FILE}.{_hint(folder)}")
        try:
            return cls(folder, ExecutionState.model_validate_json(path.read_bytes()), times)
        except ValidationError as error:
            raise RunError(f"{path} is not an evaluation's state: {error.errors()[0]['msg']}") from error

    @staticmethod
    def is_at(location: str | Path) -> bool:
        """Whether there is an evaluation at a local path or an `s3://` URI."""
        return Storage.at(str(location)).exists(STATE_FILE)

    @classmethod
    def is_known(cls, location: str | Path) -> bool:
        """Whether there is an evaluation at a location, or this machine keeps the folder of one that is no longer there."""
        return (folder_for(str(location)) / STATE_FILE).exists() or cls.is_at(location)

    @classmethod
    def check_new(cls, location: str, name: str) -> None:
        """Checks that an evaluation can be created at `location`. Leaves no file behind.

        Raises RunError when there is an evaluation already or the name is invalid, ReferenceProblem when this machine cannot
        write there.
        """
        if not _NAME.fullmatch(name):
            raise RunError(
                f"name {shown(name)} is not an evaluation's name: up to 63 letters, digits and hyphens, first and last no hyphen"
            )
        if cls.is_at(location):
            raise RunError(
                f"there is an evaluation in {location} already; resume it (heldout resume {location}) or choose another name"
            )
        if not is_remote(location) and (reason := why_not_writable(Path(location))) is not None:
            output = location.rpartition("/")[0] or "/"
            raise ReferenceProblem(
                f"output {shown(output, 160)} cannot be written to ({reason}); give another folder, or s3://bucket/prefix: "
                "--output, s3_output_path in Python"
            )

    @property
    def definition(self) -> Definition:
        """The parsed pipeline definition."""
        return parse_definition(self.state.definition)

    @property
    def registry(self) -> Registry:
        """The registry that maps the definition's AWS names."""
        return Registry.model_validate(self.state.registry)

    @property
    def location(self) -> str:
        """Where the evaluation lies: an `s3://` URI, or `folder`, also after the folder was moved."""
        return self.state.location if is_remote(self.state.location) else str(self.folder)

    @property
    def status(self) -> ExecutionStatus:
        """The status. An evaluation that says Executing while no process works on it, here or on another machine, is Stopped."""
        if not self.state.status.is_final and not self.is_running():
            self.refresh()  # it may have ended after the state was read
            if not self.state.status.is_final and machine_elsewhere(self.location, self.times) is None:
                return ExecutionStatus.STOPPED
        return self.state.status

    def run_location(self, run_name: str) -> str:
        """The location of the run of this name, whether it exists yet or not."""
        return f"{self.location}/{run_name}"

    @property
    def run_names(self) -> dict[str, str]:
        """The name of the run of each job step, by the step's name: the candidate's, else the service's."""
        jobs = [step for step in self.definition.steps if isinstance(step, JobStep)]
        return {
            step.name: step.document.evaluation_config.candidate_name or RUN_NAMES.get(step.name, step.name)
            for step in jobs
        }

    def pair(self) -> tuple[Run, Run] | None:
        """The runs of the baseline and of the model that is compared with it; None before both have begun."""
        names, runs = self.run_names, self.runs()
        found = [runs.get(names.get(step, "")) for step in (BASE_STEP, FINE_TUNED_STEP)]
        baseline, evaluated = found
        return None if baseline is None or evaluated is None else (baseline, evaluated)

    def runs(self) -> dict[str, Run]:
        """The runs that have begun, by name; the base model's comes first."""
        steps = [(step.run_name, step.job_arn) for step in self.state.steps if step.run_name is not None]
        return {name: open_run(self.run_location(name)) for name, arn in steps if self.has_run(name, arn)}

    def has_run(self, run_name: str, job_arn: str | None) -> bool:
        """Whether the run of this name exists. job_arn: its job, as its step records it."""
        location = self.run_location(run_name)
        return is_kept_here(location, job_arn) or has_run(location)

    def is_running(self) -> bool:
        """Whether a process of this machine works on this evaluation now."""
        return holder_of(self.folder) is not None

    def refresh(self) -> None:
        """Read the state again: another process or machine may have changed it."""
        self.state = type(self).open(self.location).state

    def save(self, state: ExecutionState) -> None:
        """Replace execution.json, here and in the remote place if there is one."""
        self.state = state.model_copy(update={"changed_at": time.time()})
        self.write(STATE_FILE, _encoded(self.state))

    def update(self, **changes: object) -> None:
        """Change these fields and replace execution.json."""
        self.save(self.state.model_copy(update=changes))

    def update_step(self, step: StepState, **changes: object) -> StepState:
        """Add or change a step and replace execution.json."""
        changed = step.model_copy(update=changes)
        self.save(self.state.with_step(changed))
        return changed

    def note(self, note: str) -> None:
        """Keep a note for the reader about something that failed no step. The same note is kept once."""
        if note not in self.state.notes:
            self.update(notes=(*self.state.notes, note))

    def update_here(self, **changes: object) -> None:
        """Do as `update`, in the local folder only: no call to the remote place."""
        self.state = self.state.model_copy(update={**changes, "changed_at": time.time()})
        write_whole(self.folder / STATE_FILE, _encoded(self.state))

    def begin(self) -> None:
        """Mark the evaluation as executing on this machine. Steps that have not succeeded begin again; those with a job resume
        it."""
        kept = (_begun_again(step) for step in self.state.steps)
        steps = tuple(step for step in kept if step is not None)
        self.update_here(status=ExecutionStatus.EXECUTING, failure_reason=None, ended_at=None, steps=steps)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the evaluation, here and in the remote place. If that refuses, `publish` copies it later."""
        write_whole(self.folder / name, data)
        if is_remote(self.state.location):
            try:
                self._copy(name)
            except (StorageError, ReferenceProblem, JobFailed) as error:
                log.warning("%s is not copied yet: %s", name, error)

    def publish(self) -> None:
        """Copies the whole folder to the remote place, if there is one.

        Raises StorageError or ReferenceProblem when it refuses, JobFailed when another machine has taken over.
        """
        if is_remote(self.state.location):
            for name in reversed(_FILES):  # the state comes last: it promises that the rest is there
                if (self.folder / name).exists():
                    self._copy(name)

    def claim(self, note: Callable[[str], None]) -> Claim | None:
        """Claim a remote evaluation for this machine and fetch what the last machine left. Returns None for a local one.
        The caller holds the folder's lock.

        note: receives a line for each wait.
        Raises RunError when another machine works on it, JobFailed when another machine takes over meanwhile, StorageError or
        ReferenceProblem when the remote place refuses.
        """
        if not is_remote(self.state.location):
            return None
        storage, seen = self._storage, Seen(self.folder)
        try:
            claim = Claim.take(storage, before=seen.get(CLAIM_FILE), note=note, times=self.times)
            seen.note(CLAIM_FILE, claim.token)
            claim.note_fenced()  # an evaluation has no journal of its own
            with fetching(self.folder):
                _fetch_newer(storage, self.folder)
            # It checks the claim: what was fetched was read while this machine held it.
            self._fence = FencedStorage(storage, claim, times=self.times)
        except HeldoutError as error:
            # Processes that wait on this machine must see it end; another machine may still play it.
            self.update_here(status=ExecutionStatus.FAILED, failure_reason=str(error), ended_at=time.time())
            raise
        self.refresh()
        return claim

    def remove_if_never_begun(self) -> None:
        """Remove the evaluation, here and in its remote place, if none of its rollouts has begun and no process works on it."""
        try:
            lock = FolderLock.take(self.folder)
        except RunError:
            return
        try:
            # If the remote place keeps it, the local folder keeps it too: it can still be resumed.
            with suppress(StorageError, ReferenceProblem):
                self._remove_if_never_begun()
        finally:
            lock.release()

    def _create(self) -> None:
        """Write the state for the first time. The remote place comes first, so only one of two machines succeeds."""
        data = _encoded(self.state)
        if is_remote(self.state.location):
            version = self._storage.replace(STATE_FILE, data, None)
            if version is None and not self._is_copied(data):
                raise RunError(
                    f"there is an evaluation in {self.state.location} already, begun at the same moment; choose another name"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (
                self.folder / name for name in _FILES
            ):  # left by an evaluation that was removed in the remote place
                path.unlink(missing_ok=True)
            Seen(self.folder).note(STATE_FILE, version)
        write_whole(self.folder / STATE_FILE, data)

    def _is_copied(self, data: bytes) -> bool:
        found = self._storage.read_version(STATE_FILE)
        return found is not None and found.data == data

    def _copy(self, name: str) -> None:
        seen, path = Seen(self.folder), self.folder / name
        if self._fence is not None:
            seen.note(name, self._fence.write(name, path))
            return
        # Without a claim, only over what this machine has read or written itself.
        version = self._storage.replace(name, path, seen.get(name))
        if version is None:
            found = self._storage.read_version(name)
            if found is None or found.data != path.read_bytes():
                raise StorageError(f"{self.state.location}/{name} was changed by another machine; try again")
            version = found.version
        seen.note(name, version)

    @property
    def _storage(self) -> Storage:
        return Storage.at(self.state.location, kms_key=self.state.kms_key)

    def _remove_if_never_begun(self) -> None:
        for run in self.runs().values():
            remove_if_never_begun(run)
        if any(has_run(self.run_location(name)) for name in self.run_names.values()):
            return
        if is_remote(self.state.location):
            if not is_free(self._storage, but=Seen(self.folder).get(CLAIM_FILE)):
                return  # another machine works on it
            for name in (*_FILES, CLAIM_FILE):
                self._storage.delete(name)
            forget(self.folder)
        for name in (*_FILES, "lock"):
            (self.folder / name).unlink(missing_ok=True)
        for folder in (self.folder, self.folder.parent):
            try:
                folder.rmdir()
            except OSError:
                return


def _encoded(state: ExecutionState) -> bytes:
    return orjson.dumps(state.model_dump(mode="json"), option=orjson.OPT_INDENT_2)


def _begun_again(step: StepState) -> StepState | None:
    """The step as a resumed execution starts it; None if it must begin anew."""
    if step.status is StepStatus.SUCCEEDED:
        return step
    if step.job_arn is None:
        return None
    return step.model_copy(update={"status": StepStatus.STARTING, "ended_at": None, "failure_reason": None})


def evaluations_below(folder: Path) -> list[Path]:
    """Find the evaluation folders in `folder` and one level below, sorted by name."""
    return sorted({path.parent for depth in ("", "*/") for path in folder.glob(f"{depth}{STATE_FILE}")})


def _fetch(location: str, folder: Path) -> None:
    """Fetch what other machines did for an evaluation, unless a process of this machine works on it."""
    storage = Storage.at(location)
    if not (folder / STATE_FILE).exists() and not storage.exists(STATE_FILE):
        raise RunError(f"no evaluation at {location!r}: it has no {STATE_FILE}")
    with fetching(folder):
        if holder_of(folder) is not None:
            return
        try:
            _fetch_newer(storage, folder)
        except (StorageError, ReferenceProblem) as error:
            if not (folder / STATE_FILE).exists():
                raise
            log.warning("%s is shown as this machine knows it: %s", location, error)


def _fetch_newer(storage: Storage, folder: Path) -> None:
    found, seen = storage.read_version(STATE_FILE), Seen(folder)
    if found is None or ((folder / STATE_FILE).exists() and seen.get(STATE_FILE) == found.version):
        return
    for name in _FILES[1:]:
        if (file := storage.read_version(name)) is not None:
            write_whole(folder / name, file.data)
            seen.note(name, file.version)
    # The state comes last: an interrupted fetch is not yet an evaluation and is repeated.
    write_whole(folder / STATE_FILE, found.data)
    seen.note(STATE_FILE, found.version)


def _hint(folder: Path) -> str:
    if folder.is_dir():
        inside = evaluations_below(folder)
        return f" Did you mean {str(inside[0])!r}?" if inside else ""
    parent = folder.parent
    return did_you_mean(folder.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""
