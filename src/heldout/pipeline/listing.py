"""Lists the evaluations and runs in an output, local or remote. Of remote ones only the states are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from heldout.errors import HeldoutError, RunError
from heldout.job.document import JobConfigDocument
from heldout.metrics.catalog import SUCCESS_RATE
from heldout.pipeline.evaluation import STATE_FILE, Evaluation, evaluations_below
from heldout.pipeline.state import ExecutionState, ExecutionStatus
from heldout.runs.remote_mirror import folder_for, machine_elsewhere
from heldout.runs.run import JobState, JobStatus, Run, runs_below
from heldout.storage import Storage, is_remote
from heldout.storage.claim import DEFAULT_TIMES, RemoteTimes
from heldout.storage.lock import holder_of

_JOB_FILE = "job.json"


@dataclass(frozen=True, slots=True)
class Listed:
    """An evaluation or a run in an output."""

    location: str
    state: ExecutionState | JobState
    status: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An evaluation or a run whose state cannot be read."""

    location: str
    problem: str
    """The reason, in one line."""


@dataclass(frozen=True, slots=True)
class RunNumbers:
    """The results of a run, in short. Those that are not known yet are None."""

    model: str
    """The model's label."""
    success_rate: float | None
    """pass@1."""
    failed: int | None
    rollouts: int | None
    """Rollouts that ended, failed ones included."""


def run_numbers(location: str) -> RunNumbers | None:
    """Reads the results of the run at `location` from its `metrics.json`; None where there is no run that can be read."""
    storage = Storage.at(location)
    if not storage.exists(_JOB_FILE):
        return None
    try:
        state = JobState.model_validate_json(storage.read(_JOB_FILE))
        model = JobConfigDocument.model_validate(state.document).model.label
        if not storage.exists("metrics.json"):
            return RunNumbers(model, success_rate=None, failed=None, rollouts=None)
        numbers = orjson.loads(storage.read("metrics.json"))
    except (HeldoutError, ValidationError, orjson.JSONDecodeError):
        return None  # `listed` names a state that cannot be read
    counts = numbers["rollouts"]
    return RunNumbers(
        model=model,
        success_rate=numbers["metrics"].get(SUCCESS_RATE),
        failed=counts["failed"],
        rollouts=counts["scored"] + counts["failed"],
    )


def listed(output: str, *, times: RemoteTimes = DEFAULT_TIMES) -> Iterator[Listed | Unreadable]:
    """List the evaluations in `output`, a local path or an `s3://` URI, then the runs, each sorted by name.

    Raises RunError when there is no such folder, StorageError when a remote place refuses.
    """
    output = output.rstrip("/") or output[:1]
    for location in _evaluations(output):
        try:
            yield _evaluation(location, times)
        except (HeldoutError, ValidationError) as error:
            yield Unreadable(location, _problem(STATE_FILE, error))
    for location in _runs(output):
        try:
            yield _run(location, times)
        except (HeldoutError, ValidationError) as error:
            yield Unreadable(location, _problem(_JOB_FILE, error))


def _evaluation(location: str, times: RemoteTimes) -> Listed:
    state = ExecutionState.model_validate_json(Storage.at(location).read(STATE_FILE))
    if state.status.is_final:
        return Listed(location, state, str(state.status))
    if not (folder_for(location) / STATE_FILE).is_file():  # there is no local folder to fetch it into either
        status = ExecutionStatus.STOPPED if machine_elsewhere(location, times) is None else state.status
        return Listed(location, state, str(status))
    evaluation = Evaluation.open(location, times=times)
    status = evaluation.status
    return Listed(location, evaluation.state, str(status))


def _run(location: str, times: RemoteTimes) -> Listed:
    state = JobState.model_validate_json(Storage.at(location).read(_JOB_FILE))
    if state.status is not JobStatus.IN_PROGRESS:
        return Listed(location, state, str(state.status))
    folder = folder_for(location)
    is_played_here = holder_of(folder) is not None
    if is_played_here or not is_remote(location):
        state = Run.open(folder).state  # The remote state lags behind; a run that no process plays has ended.
    is_interrupted = (
        state.status is JobStatus.IN_PROGRESS and not is_played_here and machine_elsewhere(location, times) is None
    )
    return Listed(location, state, "Interrupted" if is_interrupted else str(state.status))


def _evaluations(output: str) -> list[str]:
    return _places(output, STATE_FILE, 1) if is_remote(output) else [str(f) for f in evaluations_below(_folder(output))]


def _runs(output: str) -> list[str]:
    return _places(output, _JOB_FILE, 2) if is_remote(output) else [str(f) for f in runs_below(_folder(output))]


def _folder(output: str) -> Path:
    folder = Path(output)
    if not output or not folder.is_dir():
        raise RunError(f"no folder {output!r}; give the --output of an evaluation")
    return folder


def _places(output: str, file: str, depth: int) -> list[str]:
    """Find the folders that hold `file`, at most `depth` levels below a remote output."""
    names = (info.name.split("/") for info in Storage.at(output).list())
    return sorted("/".join([output, *parts[:-1]]) for parts in names if parts[-1] == file and len(parts) - 1 <= depth)


def _problem(file: str, error: HeldoutError | ValidationError) -> str:
    return f"its {file} cannot be read: {error.errors()[0]['msg'] if isinstance(error, ValidationError) else error}"
