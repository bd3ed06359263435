"""The run: the folder that holds all state of a job.

    job.json              the document, status and times            (replaced whole)
    prompts.parquet       the prompts as read, a row a prompt       (written once, before anything else starts)
    journal/              ended attempts while the job is not done  (append only)
    rollouts.parquet      a row a rollout                           (written when the job ends, or stops)
    trajectories.parquet  a row a turn
    attempts.parquet      a row an attempt
    metrics.json          the numbers

One process at a time works on a run: it holds the lock on `lock`. The lock ends with the process, so a run with status
InProgress and a free lock was interrupted.
"""

import enum
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heldout.errors import RunError, did_you_mean, shown
from heldout.job.card import RunCard
from heldout.job.document import JobConfigDocument
from heldout.metrics.settings import MetricSettings
from heldout.runs.journal import segments
from heldout.storage import discard_partial_files, is_remote, open_atomic
from heldout.storage.lock import FolderLock, holder_of

BASE_RUN = "base-model-eval"
FINE_TUNED_RUN = "fine-tuned-model-eval"
STATE_KEY = "heldout.job"
"""Key in the schema metadata of `rollouts.parquet` for job.json as it was when the table was written."""
_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


class JobStatus(enum.StrEnum):
    """The job's status, in the service's words."""

    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"


class SecondaryStatus(enum.StrEnum):
    """The job's activity or outcome, in the service's words."""

    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    EVALUATING = "Evaluating"
    UPLOADING = "Uploading"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"
    INTERRUPTED = "Interrupted"
    MAX_RUNTIME_EXCEEDED = "MaxRuntimeExceeded"


class JobState(BaseModel):
    """The content of `job.json`. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the evaluation."""
    run_name: str
    """The candidate's name; in jobs of `heldout serve` the service's: `base-model-eval` or `fine-tuned-model-eval`."""
    arn: str
    """ARN of the job, with account 000000000000."""
    document: dict[str, Any]
    """The JobConfigDocument that the job executes."""
    status: JobStatus = JobStatus.IN_PROGRESS
    """`InProgress`, `Completed`, `Failed` or `Stopped`."""
    secondary_status: SecondaryStatus = SecondaryStatus.STARTING
    """The job's activity or outcome."""
    failure_reason: str | None = None
    """Why the job failed, in one line."""
    created_at: float = Field(default_factory=time.time)
    """When the run was created."""
    started_at: float | None = None
    """When the latest start began."""
    ended_at: float | None = None
    """When the job ended; null while it plays."""
    incomplete: bool = False
    """Whether more rollouts failed for good than `max_failed_share` allows: failures may have changed every number."""
    retryable: int = 0
    """Rollouts that failed for good by something other than the agent and the model; `heldout resume --retry-failed` plays them
    again."""
    evaluation_seconds: float = 0.0
    """Time spent playing rollouts, over all starts."""
    num_prompts: int | None = None
    """Prompts to play; null until they are copied."""
    dataset_hash: str | None = None
    """SHA-256 of prompts, indices and order: equal for two runs of the same prompts."""
    card: RunCard | None = None
    """Versions and hashes of everything that took part; null in a run of an older version."""

    @property
    def is_interrupted(self) -> bool:
        """Whether the job was stopped before it was done."""
        return self.status is JobStatus.STOPPED and self.secondary_status is SecondaryStatus.INTERRUPTED


class Run:
    """An existing run folder."""

    def __init__(self, folder: Path, state: JobState) -> None:
        self.folder = folder
        self.state = state
        self.document = JobConfigDocument.model_validate(state.document)

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        name: str,
        run_name: str,
        region: str,
        document: JobConfigDocument,
        job_name: str | None = None,
    ) -> Self:
        """Creates a run in `folder`, which must not hold one.

        name: the evaluation's. job_name: the job's name in an evaluation of several jobs.

        Raises RunError if there is a run already, or if the name is not a job's.
        """
        if not _JOB_NAME.fullmatch(name):
            raise RunError(
                f"name {shown(name)} is not a job name: up to 63 letters, digits and hyphens, first and last no hyphen"
            )
        if (folder / "job.json").exists():
            raise RunError(
                f"there is a run in {folder} already; resume it (heldout resume {folder}) or choose another --name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        arn = f"arn:aws:sagemaker:{region}:000000000000:job/AgentRFTEvaluation/{job_name or name}"
        wire = orjson.loads(document.to_json())
        run = cls(folder, JobState(name=name, run_name=run_name, arn=arn, document=wire))
        run.save(run.state)
        return run

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the run in `folder`, from its tables where it has no job.json.

        Raises RunError when there is none, naming the nearest run.
        """
        path = folder / "job.json"
        if not path.is_file():
            if (state := _state_in_tables(folder / "rollouts.parquet")) is not None:
                return cls(folder, state)
            raise RunError(f"no run in {shown(str(folder))}: it has no job.json.{_hint(folder)}")
        try:
            return cls(folder, JobState.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise RunError(f"{path} is not a job's state: {error.errors()[0]['msg']}") from error

    @property
    def location(self) -> str:
        """The location that the user gave: `folder` itself, or an `s3://` URI."""
        output = self.document.output_data_config.location.rstrip("/")
        return f"{output}/{self.state.name}/{self.state.run_name}" if is_remote(output) else str(self.folder)

    @property
    def kms_key(self) -> str | None:
        """The key that encrypts a remote output; None leaves it to the bucket."""
        return self.document.output_data_config.kms_key_arn

    @property
    def prompts_path(self) -> Path:
        return self.folder / "prompts.parquet"

    @property
    def journal_folder(self) -> Path:
        return self.folder / "journal"

    @property
    def rollouts_path(self) -> Path:
        return self.folder / "rollouts.parquet"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def metric_settings(self) -> MetricSettings:
        """The job's hyperparameters that decide about its metrics."""
        parameters = self.document.hyperparameters
        return MetricSettings(
            pass_k_values=parameters.pass_k_values,
            success_threshold=parameters.success_threshold,
            failed_rollouts="exclude" if parameters.failed_rollouts == "exclude" else "zero",
            max_failed_share=parameters.max_failed_share,
            primary_metric=parameters.primary_metric,
            seed=parameters.seed,
        )

    @property
    def has_journal(self) -> bool:
        """Whether the journal still holds attempts: the job is not done, or its results are being written."""
        return bool(segments(self.journal_folder))

    @property
    def has_rollouts(self) -> bool:
        """Whether the journal or the tables may hold a finished rollout."""
        return self.has_journal or self.rollouts_path.exists()

    def save(self, state: JobState) -> None:
        """Replaces job.json."""
        self.state = state
        write_whole(self.folder / "job.json", orjson.dumps(state.model_dump(mode="json"), option=orjson.OPT_INDENT_2))

    def update(self, **changes: object) -> None:
        """Replaces job.json with these fields changed."""
        self.save(self.state.model_copy(update=changes))

    def complete(self, *, incomplete: bool, retryable: int = 0) -> None:
        """Marks the run done and removes its journal, unless rollouts can be opened again. All results are written before."""
        self.update(
            incomplete=incomplete,
            retryable=retryable,
            status=JobStatus.COMPLETED,
            secondary_status=SecondaryStatus.COMPLETED,
            failure_reason=None,
            ended_at=time.time(),
        )
        self.drop_journal()

    def drop_journal(self) -> None:
        """Removes the journal of a run that is done and has no rollout that can be opened again."""
        if self.state.retryable:
            return
        shutil.rmtree(self.journal_folder, ignore_errors=True)

    @property
    def is_begun(self) -> bool:
        """Whether a rollout has begun, in this start or an earlier one."""
        return self.journal_folder.exists() or self.rollouts_path.exists()

    def remove(self) -> None:
        """Removes the folder of a run that has not begun, and the two folders above it if they are then empty."""
        for path in (self.folder / "job.json", self.folder / "lock", self.prompts_path):
            path.unlink(missing_ok=True)
        for folder in (self.folder, *self.folder.parents[:2]):
            try:
                folder.rmdir()
            except OSError:
                return

    @contextmanager
    def locked(self, lock: FolderLock | None = None) -> Iterator[None]:
        """Holds the run's lock and reads the latest `state`. lock: the lock if the caller already holds it.

        Raises RunError when another process holds it.
        """
        lock = lock or FolderLock.take(self.folder)
        try:
            lock.sign()
            discard_partial_files(self.folder)
            self.state = type(self).open(self.folder).state
            yield
        finally:
            lock.release()

    def is_running(self) -> bool:
        """Whether a process of this machine works on this run now."""
        return holder_of(self.folder) is not None


def _state_in_tables(path: Path) -> JobState | None:
    """Reads the job's state from the table of its rollouts: Completed if it has all of them, else Stopped.

    None when the table holds no state.
    """
    if not path.is_file():
        return None
    import pyarrow as pa  # slow to import, and only needed here
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows, metadata = file.metadata.num_rows, file.schema_arrow.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} cannot be read ({str(error).splitlines()[0]}); copy the whole folder again") from error
    if (written := metadata.get(STATE_KEY.encode())) is None:
        return None
    try:
        state = JobState.model_validate_json(written)
        group_size = JobConfigDocument.model_validate(state.document).hyperparameters.eval_group_size
    except ValidationError as error:
        raise RunError(f"{path} holds no job's state that can be read: {error.errors()[0]['msg']}") from error
    is_done = state.num_prompts is not None and rows == state.num_prompts * group_size
    return state.model_copy(
        update={
            "status": JobStatus.COMPLETED if is_done else JobStatus.STOPPED,
            "secondary_status": SecondaryStatus.COMPLETED if is_done else SecondaryStatus.STOPPED,
        }
    )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file. A reader sees the old content or the new, never a part of it, also after a crash."""
    with open_atomic(path) as file:
        file.write(data)


def runs_below(folder: Path) -> list[Path]:
    """Returns the run folders in `folder` and two levels below (output / name / run), in name order."""
    found = {path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}job.json")}
    return sorted(found)


def _hint(folder: Path) -> str:
    if folder.is_dir():
        inside = runs_below(folder)
        return f" Did you mean {str(inside[0])!r}?" if inside else ""
    parent = folder.parent
    return did_you_mean(folder.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""
