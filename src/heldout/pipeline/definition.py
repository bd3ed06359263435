"""The three shapes of an evaluation, rendered to pipeline definitions that SageMaker Pipelines takes as they are.

Schema version 2020-12-01. The steps: CreateEvaluationAction (Lineage), EvaluateBaseModel and EvaluateFineTunedModel
(Job), AssociateLineage (Lineage), one after the other. Source: the pipeline contract of the SageMaker Python SDK's
multi-turn RL evaluator (sagemaker-train 1.27.0). Pure data.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heldout.errors import InputError
from heldout.job.document import JobConfigDocument

VERSION = "2020-12-01"
JOB_CATEGORY = "AgentRFTEvaluation"
JOB_LOG_GROUP = f"/aws/sagemaker/Job/{JOB_CATEGORY}"
"""The CloudWatch Logs group of the jobs' logs. Source: sagemaker-train 1.27, `common_utils/log_streamer.py`."""
JOB_SCHEMA_VERSION = "1.0.0"
PIPELINE_PREFIX = "SagemakerEvaluation-MTRLEvaluation"

ACTION_STEP = "CreateEvaluationAction"
BASE_STEP = "EvaluateBaseModel"
FINE_TUNED_STEP = "EvaluateFineTunedModel"
ASSOCIATE_STEP = "AssociateLineage"

_EXECUTION_ID = {"Get": "Execution.PipelineExecutionId"}
_EXECUTION_ARN = {"Get": "Execution.PipelineExecutionArn"}
_REPORTS = {BASE_STEP: "base-eval-report", FINE_TUNED_STEP: "fine-tuned-eval-report"}


class Shape(enum.StrEnum):
    """The policies that an evaluation plays. The value is the shape's name in the start summary."""

    BASE_ONLY = "Base model only"
    FINE_TUNED_ONLY = "Fine-tuned model only"
    COMPARISON = "Base + Fine-tuned comparison"


def choose_shape(*, has_fine_tuned: bool, evaluate_base_model: bool) -> Shape:
    """Choose the shape. Without a fine-tuned model it is always the base model's evaluation."""
    if not has_fine_tuned:
        return Shape.BASE_ONLY
    return Shape.COMPARISON if evaluate_base_model else Shape.FINE_TUNED_ONLY


@dataclass(frozen=True, slots=True)
class EvaluationJobs:
    """The jobs of one evaluation: one, or both."""

    base: JobConfigDocument | None
    fine_tuned: JobConfigDocument | None

    def __post_init__(self) -> None:
        if self.base is None and self.fine_tuned is None:
            raise InputError("an evaluation needs a job; it has neither a base model's nor a fine-tuned model's")

    @property
    def shape(self) -> Shape:
        """The shape that these jobs have."""
        if self.fine_tuned is None:
            return Shape.BASE_ONLY
        return Shape.FINE_TUNED_ONLY if self.base is None else Shape.COMPARISON

    @property
    def all(self) -> tuple[JobConfigDocument, ...]:
        """In the order they are played."""
        return tuple(job for job in (self.base, self.fine_tuned) if job is not None)

    @property
    def evaluated(self) -> JobConfigDocument:
        """The job of the evaluated model: the fine-tuned one if there is one."""
        return self.fine_tuned or self.all[0]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a definition needs besides the job documents: account, region, role, tags, network."""

    region: str
    account: str
    """12 digits."""
    role_arn: str
    pipeline_name: str
    tags: tuple[tuple[str, str], ...] = ()
    """Key and value of each."""
    security_group_ids: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()


def render(jobs: EvaluationJobs, surroundings: Surroundings) -> dict[str, Any]:
    """Render the pipeline definition of an evaluation: a JSON object that holds the job documents as JSON strings."""
    steps = [_create_action(jobs.evaluated, surroundings)]
    documents = {
        name: document
        for name, document in ((BASE_STEP, jobs.base), (FINE_TUNED_STEP, jobs.fine_tuned))
        if document is not None
    }
    for name, document in documents.items():
        steps.append(_evaluate(name, document, surroundings, after=steps[-1]["Name"]))
    steps.append(_associate(documents, surroundings))
    return {"Version": VERSION, "Metadata": {}, "Parameters": [], "Steps": steps}


def _create_action(document: JobConfigDocument, surroundings: Surroundings) -> dict[str, Any]:
    is_package = document.model_package_config is not None
    source = {"SourceUri": document.model.text, "SourceType": "ModelPackage" if is_package else "Model"}
    action = {
        "ActionName": _EXECUTION_ID,
        "ActionType": "Evaluation",
        "Source": source,
        "Properties": {"PipelineExecutionArn": _EXECUTION_ARN, "PipelineName": surroundings.pipeline_name},
    }
    context = {
        "ContextName": _EXECUTION_ID,
        "ContextType": "PipelineExecution",
        "Source": {"SourceUri": _EXECUTION_ARN},
    }
    association = {
        "Source": {"Name": _EXECUTION_ID, "Type": "Action"},
        "Destination": {"Name": _EXECUTION_ID, "Type": "Context"},
        "AssociationType": "ContributedTo",
    }
    return {
        "Name": ACTION_STEP,
        "Type": "Lineage",
        "Arguments": {"Actions": [action], "Contexts": [context], "Associations": [association]},
    }


def _evaluate(name: str, document: JobConfigDocument, surroundings: Surroundings, *, after: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "JobCategory": JOB_CATEGORY,
        "RoleArn": surroundings.role_arn,
        "JobConfigSchemaVersion": JOB_SCHEMA_VERSION,
        "JobConfigDocument": document.to_json(),
    }
    if surroundings.security_group_ids or surroundings.subnets:
        arguments["VpcConfig"] = {
            "SecurityGroupIds": list(surroundings.security_group_ids),
            "Subnets": list(surroundings.subnets),
        }
    if surroundings.tags:
        arguments["Tags"] = [{"Key": key, "Value": value} for key, value in surroundings.tags]
    return {"Name": name, "Type": "Job", "DependsOn": [after], "Arguments": arguments}


def _associate(documents: Mapping[str, JobConfigDocument], surroundings: Surroundings) -> dict[str, Any]:
    return {
        "Name": ASSOCIATE_STEP,
        "Type": "Lineage",
        "DependsOn": [list(documents)[-1]],
        "Arguments": {
            "Artifacts": [_report_artifact(step, document) for step, document in documents.items()],
            "Associations": [_report_association(step, surroundings) for step in documents],
        },
    }


def _report_artifact(step: str, document: JobConfigDocument) -> dict[str, Any]:
    named = {"ArtifactName": _joined("-", _EXECUTION_ID, _REPORTS[step]), "ArtifactType": "EvaluationReport"}
    if document.output_data_config.mlflow_config is None:
        # Without tracking the job names no MLflow run, and a step that reads a missing value fails.
        return {**named, "Source": {"SourceUri": document.output_data_config.location}}
    details = f"Steps.{step}.JobConfigDocument.ServiceOutput.MlflowDetails"
    return {
        **named,
        "Source": {"SourceUri": {"Get": f"{details}.RunId"}},
        "Properties": {
            "MlflowExperimentId": {"Get": f"{details}.ExperimentId"},
            "MlflowRunName": {"Get": f"{details}.RunName"},
        },
    }


def _report_association(step: str, surroundings: Surroundings) -> dict[str, Any]:
    actions = f"arn:aws:sagemaker:{surroundings.region}:{surroundings.account}:action"
    return {
        "Source": {"Name": _joined("-", _EXECUTION_ID, _REPORTS[step]), "Type": "Artifact"},
        "Destination": {"Arn": _joined("/", actions, _EXECUTION_ID)},
        "AssociationType": "ContributedTo",
    }


def _joined(on: str, *values: object) -> dict[str, Any]:
    return {"Std:Join": {"On": on, "Values": list(values)}}
