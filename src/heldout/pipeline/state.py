"""The state of a pipeline execution, stored in `execution.json`. Data only."""

import enum
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ExecutionStatus(enum.StrEnum):
    """The status of a pipeline execution, named as in the service (PipelineExecutionStatus)."""

    EXECUTING = "Executing"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"

    @property
    def is_final(self) -> bool:
        """Whether the execution has ended."""
        return self not in (ExecutionStatus.EXECUTING, ExecutionStatus.STOPPING)


class StepStatus(enum.StrEnum):
    """The status of a step, named as in the service (StepStatus)."""

    STARTING = "Starting"
    EXECUTING = "Executing"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"


class StepState(BaseModel):
    """A step that has begun. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    """`Job` or `Lineage`."""
    status: StepStatus
    started_at: float
    ended_at: float | None = None
    job_arn: str | None = None
    run_name: str | None = None
    """The name of the run's folder in the evaluation."""
    failure_reason: str | None = None


class ExecutionState(BaseModel):
    """The content of `execution.json`. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pipeline_name: str
    execution_id: str
    arn: str
    region: str
    location: str
    """The location that the user gave: a local path or an `s3://` URI."""
    definition: dict[str, Any]
    registry: dict[str, Any] = Field(default_factory=dict)
    """The registry that maps the definition's AWS names, as it was at the start."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    kms_key: str | None = None
    backend: str = "local"
    """The name of the backend that plays it."""
    status: ExecutionStatus = ExecutionStatus.EXECUTING
    failure_reason: str | None = None
    created_at: float = Field(default_factory=time.time)
    changed_at: float = Field(default_factory=time.time)
    ended_at: float | None = None
    steps: tuple[StepState, ...] = ()
    """The steps that have begun, in order."""
    notes: tuple[str, ...] = ()
    """Notes for the reader about things that failed no step."""

    def step(self, name: str) -> StepState | None:
        """Find the step of this name; None if it has not begun."""
        return next((step for step in self.steps if step.name == name), None)

    def with_step(self, step: StepState) -> "ExecutionState":
        """Replace the step of the same name, or append this one."""
        kept = [step if other.name == step.name else other for other in self.steps]
        return self.model_copy(update={"steps": tuple(kept if self.step(step.name) else [*kept, step])})
