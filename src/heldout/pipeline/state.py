"""How far a pipeline execution has come: what `execution.json` holds. Data only."""

import enum
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ExecutionStatus(enum.StrEnum):
    """Of a pipeline execution, in the service's words (PipelineExecutionStatus)."""

    EXECUTING = "Executing"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self not in (ExecutionStatus.EXECUTING, ExecutionStatus.STOPPING)


class StepStatus(enum.StrEnum):
    """Of a step, in the service's words (StepStatus)."""

    STARTING = "Starting"
    EXECUTING = "Executing"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"


class StepState(BaseModel):
    """A step that was begun. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    """`Job` or `Lineage`."""
    status: StepStatus
    started_at: float
    ended_at: float | None = None
    job_arn: str | None = None
    run_name: str | None = None
    """The run's folder in the evaluation's."""
    failure_reason: str | None = None


class ExecutionState(BaseModel):
    """What `execution.json` holds. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pipeline_name: str
    execution_id: str
    arn: str
    region: str
    location: str
    """Where the user wanted the evaluation: a local path or an `s3://` URI."""
    definition: dict[str, Any]
    registry: dict[str, Any] = Field(default_factory=dict)
    """The registry that maps the definition's AWS names, as it was at the start."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    kms_key: str | None = None
    status: ExecutionStatus = ExecutionStatus.EXECUTING
    failure_reason: str | None = None
    created_at: float = Field(default_factory=time.time)
    changed_at: float = Field(default_factory=time.time)
    ended_at: float | None = None
    steps: tuple[StepState, ...] = ()
    """Those begun, in the order they were."""
    notes: tuple[str, ...] = ()
    """What a reader must know and no step failed for."""

    def step(self, name: str) -> StepState | None:
        """The step of this name; None: not begun."""
        return next((step for step in self.steps if step.name == name), None)

    def with_step(self, step: StepState) -> "ExecutionState":
        """With this step in the place of the one of its name, or as the last."""
        kept = [step if other.name == step.name else other for other in self.steps]
        return self.model_copy(update={"steps": tuple(kept if self.step(step.name) else [*kept, step])})
