"""The evaluation: the folder that one or two jobs and their comparison leave behind. It is the only state there is.

    execution.json        the pipeline definition, steps, status and times  (replaced whole)
    lineage.json          what came of what, with content hashes
    base-model-eval/      the base model's run
    fine-tuned-model-eval/
    comparison.json       for each metric: base, fine-tuned, difference, interval, p-value
    report.html
    runner.log            what the detached process said

One process at a time works on an evaluation: it holds the lock on `lock`. The lock goes with the process, so one whose
status says Executing and whose lock is free was interrupted.
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

from heldout.errors import HeldoutError, ReferenceProblem, RunError, StorageError, did_you_mean, shown
from heldout.job.registry import Registry
from heldout.pipeline.definition import BASE_STEP, FINE_TUNED_STEP, PIPELINE_PREFIX
from heldout.pipeline.state import ExecutionState, ExecutionStatus, StepState, StepStatus
from heldout.pipeline.steps import Definition, parse_definition
from heldout.runs.remote_mirror import folder_for, has_run, machine_elsewhere, open_run, remove_if_never_begun
from heldout.runs.remote_sync import Seen, fetching, forget
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN, Run, write_whole
from heldout.storage import Storage, is_remote, why_not_writable
from heldout.storage.claim import CLAIM_FILE, Claim
from heldout.storage.lock import FolderLock, holder_of

log = logging.getLogger(__name__)

STATE_FILE = "execution.json"
RUN_NAMES: Mapping[str, str] = {BASE_STEP: BASE_RUN, FINE_TUNED_STEP: FINE_TUNED_RUN}
_FILES = (STATE_FILE, "lineage.json", "comparison.json", "report.html")
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
LOCAL_ACCOUNT = "000000000000"


class Evaluation:
    """An evaluation folder that is there."""

    def __init__(self, folder: Path, state: ExecutionState) -> None:
        self.folder = folder
        self.state = state

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
    ) -> Self:
        """A new evaluation at `location`, a local path or an `s3://` URI. execution_id: of its ARN; by default a new one.

        Raises RunError when there is one already or the name is not one, ReferenceProblem when nothing can be written there,
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
        )
        evaluation = cls(folder_for(location), state)
        evaluation._create()
        return evaluation

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """The evaluation at a local path or an `s3://` URI. Raises RunError when there is none."""
        location = str(location)
        folder = folder_for(location)
        if is_remote(location):
            _fetch(location, folder)
        return cls.open_folder(folder)

    @classmethod
    def open_folder(cls, folder: Path) -> Self:
        """The evaluation that is worked on in this folder of this machine. Raises RunError when there is none."""
        path = folder / STATE_FILE
        if not path.is_file():
            raise RunError(f"no evaluation in {shown(str(folder))}: it has no {STATE_FILE}.{_hint(folder)}")
        try:
            return cls(folder, ExecutionState.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise RunError(f"{path} is not an evaluation's state: {error.errors()[0]['msg']}") from error

    @staticmethod
    def is_at(location: str | Path) -> bool:
        """Whether there is an evaluation at a local path or an `s3://` URI."""
        return Storage.at(str(location)).exists(STATE_FILE)

    @classmethod
    def check_new(cls, location: str, name: str) -> None:
        """Raises RunError when there is an evaluation at `location` already, or the name is not one; ReferenceProblem when
        nothing can be written there on this machine. Leaves nothing behind."""
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
        """The pipeline definition, taken apart."""
        return parse_definition(self.state.definition)

    @property
    def registry(self) -> Registry:
        """What the definition's AWS names stand for."""
        return Registry.model_validate(self.state.registry)

    @property
    def location(self) -> str:
        """Where the user wanted it; `folder` itself unless that is remote. A folder that was moved is where it is."""
        return self.state.location if is_remote(self.state.location) else str(self.folder)

    @property
    def status(self) -> ExecutionStatus:
        """The status; Stopped for one that says it is executing when no process works on it, here or elsewhere."""
        if not self.state.status.is_final and not self.is_running():
            self.refresh()  # it may have ended since the state was read
            if not self.state.status.is_final and machine_elsewhere(self.location) is None:
                return ExecutionStatus.STOPPED
        return self.state.status

    def run_location(self, run_name: str) -> str:
        """Where the run of this name is, or will be."""
        return f"{self.location}/{run_name}"

    def runs(self) -> dict[str, Run]:
        """The runs that were begun, by name, the base model's first."""
        names = [step.run_name for step in self.state.steps if step.run_name is not None]
        return {name: open_run(where) for name in names if has_run(where := self.run_location(name))}

    def is_running(self) -> bool:
        """Whether a process of this machine works on this evaluation now."""
        return holder_of(self.folder) is not None

    def refresh(self) -> None:
        """Reads the state again, as another process or machine may have changed it."""
        self.state = type(self).open(self.location).state

    def save(self, state: ExecutionState) -> None:
        """Replaces execution.json, in the remote place too where there is one."""
        self.state = state.model_copy(update={"changed_at": time.time()})
        self.write(STATE_FILE, _encoded(self.state))

    def update(self, **changes: object) -> None:
        """Replaces execution.json with these fields changed."""
        self.save(self.state.model_copy(update=changes))

    def update_step(self, step: StepState, **changes: object) -> StepState:
        """Replaces execution.json with a step begun or changed."""
        changed = step.model_copy(update=changes)
        self.save(self.state.with_step(changed))
        return changed

    def note(self, note: str) -> None:
        """Keeps what a reader must know and no step failed for, once."""
        if note not in self.state.notes:
            self.update(notes=(*self.state.notes, note))

    def update_here(self, **changes: object) -> None:
        """`update`, but what is in a remote place stays as it is, and is not waited for."""
        self.state = self.state.model_copy(update={**changes, "changed_at": time.time()})
        write_whole(self.folder / STATE_FILE, _encoded(self.state))

    def begin(self) -> None:
        """Marks the execution as going on, on this machine; steps that did not succeed are to be begun again, those with a job go
        on with it."""
        kept = (_begun_again(step) for step in self.state.steps)
        steps = tuple(step for step in kept if step is not None)
        self.update_here(status=ExecutionStatus.EXECUTING, failure_reason=None, ended_at=None, steps=steps)

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file of the evaluation's, in the remote place too if there is one; what that refuses, `publish` does."""
        write_whole(self.folder / name, data)
        if is_remote(self.state.location):
            try:
                self._copy(name)
            except (StorageError, ReferenceProblem) as error:
                log.warning("%s is not copied yet: %s", name, error)

    def publish(self) -> None:
        """Copies all of it to the remote place, where there is one. Raises StorageError or ReferenceProblem when that refuses."""
        if is_remote(self.state.location):
            for name in reversed(_FILES):  # the state, which says that the rest is there, last
                if (self.folder / name).exists():
                    self._copy(name)

    def claim(self, note: Callable[[str], None]) -> Claim | None:
        """Makes this the one machine that works on the evaluation, as the last one left it; None for one that is not remote. The
        caller holds the folder's lock.

        note: told what is waited for. Raises RunError when another machine works on it, StorageError or ReferenceProblem when
        the remote place refuses.
        """
        if not is_remote(self.state.location):
            return None
        storage, seen = self._storage, Seen(self.folder)
        try:
            claim = Claim.take(storage, before=seen.get(CLAIM_FILE), note=note)
            seen.note(CLAIM_FILE, claim.token)
            with fetching(self.folder):
                _fetch_newer(storage, self.folder)
        except HeldoutError as error:
            # For who waits for it here; elsewhere it may go on.
            self.update_here(status=ExecutionStatus.FAILED, failure_reason=str(error), ended_at=time.time())
            raise
        self.refresh()
        return claim

    def remove_if_never_begun(self) -> None:
        """Takes it away again, here and in its remote place, if no rollout was ever begun in it and no process is about to."""
        try:
            lock = FolderLock.take(self.folder)
        except RunError:
            return
        try:
            # What a remote place does not let go of stays here too: an evaluation that can be gone on with.
            with suppress(StorageError, ReferenceProblem):
                self._remove_if_never_begun()
        finally:
            lock.release()

    def _create(self) -> None:
        """Writes it for the first time: in a remote place before it is here, so that of two machines one has it."""
        data = _encoded(self.state)
        if is_remote(self.state.location):
            version = self._storage.replace(STATE_FILE, data, None)
            if version is None and not self._is_copied(data):
                raise RunError(
                    f"there is an evaluation in {self.state.location} already, begun at the same moment; choose another name"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.folder / name for name in _FILES):  # of one that was removed there since
                path.unlink(missing_ok=True)
            Seen(self.folder).note(STATE_FILE, version)
        write_whole(self.folder / STATE_FILE, data)

    def _is_copied(self, data: bytes) -> bool:
        found = self._storage.read_version(STATE_FILE)
        return found is not None and found.data == data

    def _copy(self, name: str) -> None:
        Seen(self.folder).note(name, self._storage.upload(name, self.folder / name))

    @property
    def _storage(self) -> Storage:
        return Storage.at(self.state.location, kms_key=self.state.kms_key)

    def _remove_if_never_begun(self) -> None:
        for run in self.runs().values():
            remove_if_never_begun(run)
        if any(has_run(self.run_location(name)) for name in RUN_NAMES.values()):
            return
        if is_remote(self.state.location):
            if self._storage.exists(CLAIM_FILE):
                return  # another machine works on it
            for name in _FILES:
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
    """A step as it stands when the execution goes on; None for one of which there is nothing to go on with."""
    if step.status is StepStatus.SUCCEEDED:
        return step
    if step.job_arn is None:
        return None
    return step.model_copy(update={"status": StepStatus.STARTING, "ended_at": None, "failure_reason": None})


def open_only_run(location: str) -> Run:
    """The run at a local path or an `s3://` URI, or in the evaluation there, if it has no other.

    Raises RunError when there is none, or several to choose from.
    """
    if not Evaluation.is_at(location):
        return open_run(location)
    runs = Evaluation.open(location).runs()
    if len(runs) == 1:
        return next(iter(runs.values()))
    names = " or ".join(f"{location.rstrip('/')}/{name}" for name in runs)
    raise RunError(
        f"evaluation {location} has {len(runs)} runs; name one: {names}"
        if runs
        else f"evaluation {location} has begun no run yet"
    )


def evaluations_below(folder: Path) -> list[Path]:
    """The evaluation folders in `folder` and one level below, in name order."""
    return sorted({path.parent for depth in ("", "*/") for path in folder.glob(f"{depth}{STATE_FILE}")})


def _fetch(location: str, folder: Path) -> None:
    """Brings what other machines did of an evaluation here, unless it is worked on here."""
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
    # The state last: a fetch that was cut short is no evaluation, and is made again.
    write_whole(folder / STATE_FILE, found.data)
    seen.note(STATE_FILE, found.version)


def _hint(folder: Path) -> str:
    if folder.is_dir():
        inside = evaluations_below(folder)
        return f" Did you mean {str(inside[0])!r}?" if inside else ""
    parent = folder.parent
    return did_you_mean(folder.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""
