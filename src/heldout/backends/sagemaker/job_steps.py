"""The job steps of a pipeline definition, and the service's output in a job document."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heldout.pipeline.evaluation import RUN_NAMES


@dataclass(frozen=True, slots=True)
class JobStep:
    """A step of type Job. Its document is not validated, because any client may have written it."""

    name: str
    run_name: str
    output: str
    mlflow_arn: str | None


def job_steps(definition: Mapping[str, Any]) -> list[JobStep]:
    """The steps of type Job, in order."""
    return [_job_step(step) for step in definition.get("Steps", ()) if step.get("Type") == "Job"]


def service_output(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The service's output in the document of a described job; empty if there is none."""
    output = _parsed(job.get("JobConfigDocument")).get("ServiceOutput")
    return output if isinstance(output, Mapping) else {}


def _job_step(step: Mapping[str, Any]) -> JobStep:
    output = _parsed(step["Arguments"].get("JobConfigDocument")).get("OutputDataConfig") or {}
    name = step["Name"]
    mlflow = output.get("MlflowConfig") or {}
    return JobStep(name, RUN_NAMES.get(name, name), output.get("S3OutputPath") or "", mlflow.get("MlflowResourceArn"))


def _parsed(document: object) -> Mapping[str, Any]:
    if not isinstance(document, str):
        return {}
    value = json.loads(document)
    return value if isinstance(value, Mapping) else {}
