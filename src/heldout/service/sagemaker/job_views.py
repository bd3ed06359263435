"""A job in SageMaker's form, read from its run's folder. The job may belong to a pipeline or stand alone."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow.parquet as pq

from heldout.backends.local.detached import PROGRESS_FILE
from heldout.backends.local.run_log import LOG_FILE
from heldout.pipeline.definition import JOB_CATEGORY, JOB_SCHEMA_VERSION
from heldout.runs.run import JobStatus, Run
from heldout.service.sagemaker.documents import with_service_output
from heldout.service.tags import wire_tags
from heldout.service.wire.operations import Reply

_FOLDER_MISSING = "its run folder is missing"
_MAX_REASON_CHARACTERS = 1024
"""The service's limit."""


class Status(NamedTuple):
    """A job's status and secondary status by the service's names."""

    status: str
    secondary: str

    @property
    def is_final(self) -> bool:
        """Whether the status changes no more, except through a request."""
        return self.status not in ("InProgress", "Stopping")


_FAILED = Status("Failed", "Failed")
_STOPPED = Status("Stopped", "Stopped")


class JobArguments(NamedTuple):
    """Arguments that a job was created with."""

    document: str
    """JSON text."""
    tags: Mapping[str, str]


class JobState(NamedTuple):
    """Progress of a job, read from its folder."""

    run: Run | None
    """None before the run is created, and after its folder was removed."""
    is_over: bool
    """Whether no process has work left to do for it."""


@dataclass(frozen=True)
class Job:
    """A job. What its record does not hold is read on first use, once."""

    name: str
    arn: str
    role: str
    created_at: float
    is_stopping: bool
    """Whether a client asked it to stop."""
    run_name: str
    """Marks the job's lines in a log that several jobs of an execution share."""
    folder_of: Callable[[], Path]
    """The folder that its process works on: the run's, or its execution's."""
    arguments_of: Callable[[], JobArguments]
    state_of: Callable[[], JobState]

    @functools.cached_property
    def arguments(self) -> JobArguments:
        return self.arguments_of()

    @functools.cached_property
    def state(self) -> JobState:
        return self.state_of()

    @property
    def log(self) -> Path:
        """The log file of its process."""
        return self.folder_of() / LOG_FILE

    @property
    def run(self) -> Run | None:
        return self.state.run

    @property
    def is_over(self) -> bool:
        return self.state.is_over

    @property
    def status(self) -> Status:
        if self.run is None:
            return _FAILED if self.is_over else self._unless_stopping("Starting")
        state = self.run.state
        match state.status:
            case JobStatus.COMPLETED if not self.is_over:
                return Status("InProgress", "Uploading")
            case JobStatus.IN_PROGRESS if self.is_over:
                return _STOPPED if self.is_stopping else _FAILED
            case JobStatus.IN_PROGRESS:
                return self._unless_stopping(state.secondary_status)
            case JobStatus.STOPPED if state.is_interrupted:  # without a request: the supervisor resumes it
                return _STOPPED if self.is_stopping else Status("InProgress", "Interrupted")
            case JobStatus.STOPPED | JobStatus.FAILED if not self.is_over:  # its step retries it or is about to end
                return self._unless_stopping("Starting")
            case _:
                return Status(state.status, state.secondary_status)

    def _unless_stopping(self, secondary: str) -> Status:
        return Status("Stopping", "Stopping") if self.is_stopping else Status("InProgress", secondary)

    def entry(self) -> Reply:
        """The members that lists sort by, without reading the run, and the job itself as `Job`."""
        return {"JobArn": self.arn, "JobName": self.name, "CreationTime": _time(self.created_at), "Job": self}

    def summary(self) -> Reply:
        """An entry of ListJobs."""
        status = self.status
        return {
            "JobArn": self.arn,
            "JobName": self.name,
            "JobCategory": JOB_CATEGORY,
            "JobStatus": status.status,
            "JobSecondaryStatus": status.secondary,
            "CreationTime": _time(self.created_at),
            "LastModifiedTime": _time(self._changed_at()),
            "EndTime": _time(self._ended_at(status)),
        }

    def description(self) -> Reply:
        """The reply of DescribeJob."""
        status = self.status
        return {
            "JobName": self.name,
            "JobArn": self.arn,
            "RoleArn": self.role,
            "JobCategory": JOB_CATEGORY,
            "JobConfigSchemaVersion": JOB_SCHEMA_VERSION,
            "JobConfigDocument": with_service_output(self.arguments.document, self._service_output()),
            "CreationTime": _time(self.created_at),
            "LastModifiedTime": _time(self._changed_at()),
            "EndTime": _time(self._ended_at(status)),
            "JobStatus": status.status,
            "SecondaryStatus": status.secondary,
            "SecondaryStatusTransitions": self._transitions(status),
            "FailureReason": self._failure(),
            "Tags": wire_tags(self.arguments.tags),
        }

    def _failure(self) -> str | None:
        if self.run is None:
            return _FOLDER_MISSING if self.is_over else None
        reason = self.run.state.failure_reason
        return None if reason is None else reason[:_MAX_REASON_CHARACTERS]

    def _changed_at(self) -> float:
        if self.run is None:
            return self.created_at
        try:
            return (self.run.folder / "job.json").stat().st_mtime
        except FileNotFoundError:  # removed since it was read
            return self.run.state.ended_at or self.created_at

    def _ended_at(self, status: Status) -> float | None:
        """None until the job has ended, which includes writing its results."""
        return self.run.state.ended_at if self.run is not None and status.is_final else None

    def _transitions(self, status: Status) -> list[Reply]:
        """Transitions at the times that a run records: creation, start and end."""
        started = None if self.run is None else self.run.state.started_at
        ended = self._ended_at(status)
        steps = [("Starting", self.created_at)]
        if started is not None:
            steps.append(("Evaluating" if status.is_final else status.secondary, started))
        if ended is not None:
            steps.append((status.secondary, ended))
        ends = [start for _, start in steps[1:]] + [ended]
        transitions = [
            {"Status": name, "StartTime": _time(start), "EndTime": _time(end)}
            for (name, start), end in zip(steps, ends, strict=True)
        ]
        transitions[-1]["StatusMessage"] = self._failure()
        return transitions

    def _service_output(self) -> dict[str, Any]:
        """MLflow ids of the run, and counts of rollouts and tokens by the names that sagemaker-train 1.27's AgentRFTJob reads."""
        if self.run is None:
            return {}
        output = dict(self.run.state.document.get("ServiceOutput") or {})
        if (progress := self._progress(self.run)) is not None:
            output["ProgressInfo"] = progress
        if (tokens := _token_usage(self.run)) is not None:
            output["BillableTokenUsage"] = tokens
        return output

    def _progress(self, run: Run) -> dict[str, int] | None:
        """Finished and planned rollouts, by the step names that SDKs read."""
        if run.state.status is JobStatus.COMPLETED and run.state.num_prompts is not None:
            planned = run.state.num_prompts * run.document.hyperparameters.eval_group_size
            return {"CurrentStep": planned, "MaxSteps": planned}
        try:
            progress = orjson.loads((self.folder_of() / PROGRESS_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if progress["run"] != run.state.run_name:
            return None
        return {"CurrentStep": progress["finished"], "MaxSteps": progress["planned"]}


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _token_usage(run: Run) -> dict[str, int] | None:
    """Token counts of a run; None before it has a table of rollouts."""
    try:
        return _summed_tokens(run.rollouts_path, run.rollouts_path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@functools.lru_cache(maxsize=256)
def _summed_tokens(path: Path, changed_at: int) -> dict[str, int]:
    """changed_at: part of the cache key, so that a replaced file is read again."""
    table = pq.read_table(path, columns=["prompt_tokens", "response_tokens"])
    prompt, response = (sum(value or 0 for value in column.to_pylist()) for column in table.columns)
    return {"PrefillTokenCount": prompt, "SampleTokenCount": response}
