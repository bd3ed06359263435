"""A job as SageMaker describes it: from the run's folder, whether it is a pipeline's or by itself."""

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
from heldout.service.operations import Reply
from heldout.service.sagemaker.documents import with_service_output
from heldout.service.sagemaker.tags import wire_tags

_GONE = "its run folder is gone"
_LONGEST_REASON = 1024
"""Characters: the service's bound."""


class Status(NamedTuple):
    """A job's status and secondary status, in the service's words."""

    status: str
    secondary: str

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.status not in ("InProgress", "Stopping")


class Given(NamedTuple):
    """What a job was made with."""

    document: str
    """JSON."""
    tags: Mapping[str, str]


class Seen(NamedTuple):
    """What has become of a job."""

    run: Run | None
    """None when it is not made yet, or, of a job that is over, when someone has taken its folder away."""
    is_over: bool
    """Whether no process has anything more to do for it."""


@dataclass(frozen=True)
class Job:
    """A job that there is. What is not in its record is looked up when it is asked for, and once."""

    name: str
    arn: str
    role: str
    created_at: float
    is_stopping: bool
    """Whether it was asked to stop."""
    run_name: str
    """By which its log tells its lines from those of another job of its execution."""
    place: Callable[[], Path]
    """The folder that its process works on: the run's, or that of its execution."""
    find: Callable[[], Given]
    look: Callable[[], Seen]

    @functools.cached_property
    def given(self) -> Given:
        return self.find()

    @functools.cached_property
    def seen(self) -> Seen:
        return self.look()

    @property
    def log(self) -> Path:
        """The file in which its process says everything that is not elsewhere."""
        return self.place() / LOG_FILE

    @property
    def run(self) -> Run | None:
        return self.seen.run

    @property
    def is_over(self) -> bool:
        return self.seen.is_over

    @property
    def status(self) -> Status:
        if self.run is None and self.is_over:
            return Status("Failed", "Failed")
        if self.run is None:
            return Status("Stopping", "Stopping") if self.is_stopping else Status("InProgress", "Starting")
        state = self.run.state
        match state.status:
            case JobStatus.COMPLETED if not self.is_over:
                return Status("InProgress", "Uploading")
            case JobStatus.IN_PROGRESS if self.is_over:
                return Status("Stopped", "Stopped") if self.is_stopping else Status("Failed", "Failed")
            case JobStatus.IN_PROGRESS:
                return (
                    Status("Stopping", "Stopping") if self.is_stopping else Status("InProgress", state.secondary_status)
                )
            case JobStatus.STOPPED if state.is_interrupted:  # without being asked: it is about to go on
                return Status("Stopped", "Stopped") if self.is_stopping else Status("InProgress", "Interrupted")
            case JobStatus.STOPPED | JobStatus.FAILED if (
                not self.is_over
            ):  # its step goes on with it, or is about to end too
                return Status("Stopping", "Stopping") if self.is_stopping else Status("InProgress", "Starting")
            case _:
                return Status(state.status, state.secondary_status)

    def entry(self) -> Reply:
        """What lists are sorted by, without a look at the run; and the job, as `Job`."""
        return {"JobArn": self.arn, "JobName": self.name, "CreationTime": _time(self.created_at), "Job": self}

    def summary(self) -> Reply:
        """As ListJobs has it."""
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
        """As DescribeJob has it."""
        status = self.status
        return {
            "JobName": self.name,
            "JobArn": self.arn,
            "RoleArn": self.role,
            "JobCategory": JOB_CATEGORY,
            "JobConfigSchemaVersion": JOB_SCHEMA_VERSION,
            "JobConfigDocument": with_service_output(self.given.document, self._service_output()),
            "CreationTime": _time(self.created_at),
            "LastModifiedTime": _time(self._changed_at()),
            "EndTime": _time(self._ended_at(status)),
            "JobStatus": status.status,
            "SecondaryStatus": status.secondary,
            "SecondaryStatusTransitions": self._transitions(status),
            "FailureReason": self._failure(),
            "Tags": wire_tags(self.given.tags),
        }

    def _failure(self) -> str | None:
        if self.run is None:
            return _GONE if self.is_over else None
        reason = self.run.state.failure_reason
        return None if reason is None else reason[:_LONGEST_REASON]

    def _changed_at(self) -> float:
        if self.run is None:
            return self.created_at
        try:
            return (self.run.folder / "job.json").stat().st_mtime
        except FileNotFoundError:  # taken away since it was read
            return self.run.state.ended_at or self.created_at

    def _ended_at(self, status: Status) -> float | None:
        """None while it goes on, also on the report of what is played."""
        return self.run.state.ended_at if self.run is not None and status.is_final else None

    def _transitions(self, status: Status) -> list[Reply]:
        """What can be told from the times that a run keeps: made, begun, and ended; not each step between."""
        begun = None if self.run is None else self.run.state.started_at
        ended = self._ended_at(status)
        steps = [("Starting", self.created_at)]
        if begun is not None:
            steps.append(("Evaluating" if status.is_final else status.secondary, begun))
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
        """MLflow's ids as the run has them; counts of rollouts and tokens, called as sagemaker-train 1.27's AgentRFTJob says."""
        if self.run is None:
            return {}
        output = dict(self.run.state.document.get("ServiceOutput") or {})
        if (progress := self._progress(self.run)) is not None:
            output["ProgressInfo"] = progress
        if (tokens := _token_usage(self.run)) is not None:
            output["BillableTokenUsage"] = tokens
        return output

    def _progress(self, run: Run) -> dict[str, int] | None:
        """Rollouts, counted as steps: the words that SDKs look for."""
        if run.state.status is JobStatus.COMPLETED and run.state.num_prompts is not None:
            planned = run.state.num_prompts * run.document.hyperparameters.eval_group_size
            return {"CurrentStep": planned, "MaxSteps": planned}
        try:
            known = orjson.loads((self.place() / PROGRESS_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if known["run"] != run.state.run_name:
            return None
        return {"CurrentStep": known["finished"], "MaxSteps": known["planned"]}


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _token_usage(run: Run) -> dict[str, int] | None:
    """None as long as there is no table of rollouts."""
    try:
        return _summed_tokens(run.rollouts_path, run.rollouts_path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@functools.lru_cache(maxsize=256)
def _summed_tokens(path: Path, changed_at: int) -> dict[str, int]:
    """changed_at: so that a file that was replaced is read again."""
    table = pq.read_table(path, columns=["prompt_tokens", "response_tokens"])
    prompt, response = (sum(value or 0 for value in column.to_pylist()) for column in table.columns)
    return {"PrefillTokenCount": prompt, "SampleTokenCount": response}
