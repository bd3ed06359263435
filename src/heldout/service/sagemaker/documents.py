"""Job documents as they come in requests: checked at once against what this machine has, so that no job starts in vain."""

import json
from typing import Any, NamedTuple

from heldout.backends.local.services import check_document
from heldout.errors import HeldoutError
from heldout.job.document import JobConfigDocument
from heldout.job.references import AgentCoreRuntime, LambdaAgent, model_uri
from heldout.pipeline.definition import JOB_CATEGORY, JOB_SCHEMA_VERSION
from heldout.service.context import Context
from heldout.service.mlflow.apps import registry_with_apps
from heldout.service.wire.faults import invalid, not_found


class Playable(NamedTuple):
    """A job that can be played here."""

    document: JobConfigDocument
    """With every AWS name that is mapped replaced by what it stands for."""
    output: str
    """Where its run goes: a local path or an `s3://` URI, no slash at the end."""


def playable(context: Context, document: JobConfigDocument, *, where: str = "JobConfigDocument") -> Playable:
    """The job of a document. Raises ServiceError (ValidationException) naming what is not on this machine and not mapped."""
    registry = registry_with_apps(context)
    try:
        here = registry.localized(document)
    except HeldoutError as error:
        raise invalid(f"{where}: {error}") from error
    _check_mlflow(context, here)
    try:
        check_document(here)
    except (HeldoutError, OSError) as error:
        names = [name for name in (model_uri(here.model), _agent_arn(here)) if name is not None]
        nearest = "".join(registry.nearest(name) for name in names if name in str(error))
        raise invalid(f"{where}: {error}{nearest}") from error
    return Playable(here, here.output_data_config.location.rstrip("/"))


def _check_mlflow(context: Context, document: JobConfigDocument) -> None:
    """Every app of this server's own account is mapped; an ARN of another account is one in AWS."""
    config = document.output_data_config.mlflow_config
    if config is not None and f":{context.account}:mlflow-app/" in config.mlflow_resource_arn:
        raise invalid(f"MlflowResourceArn: MLflow app {config.mlflow_resource_arn!r} does not exist")


def _agent_arn(document: JobConfigDocument) -> str | None:
    agent = document.agent_config.agent
    return agent.arn if isinstance(agent, AgentCoreRuntime | LambdaAgent) else None


def parse_document(text: str) -> JobConfigDocument:
    """A document. Raises ServiceError (ValidationException) for what its schema does not allow."""
    try:
        return JobConfigDocument.parse(text)
    except HeldoutError as error:
        raise invalid(f"JobConfigDocument does not match schema version {JOB_SCHEMA_VERSION}: {error}") from error


def check_category(category: str, *, is_new: bool = False) -> None:
    """Raises ServiceError for a category of jobs that are not played here. is_new: such a job is to be made."""
    if category != JOB_CATEGORY:
        told = f"jobs of category {category!r} are not served here; {JOB_CATEGORY!r} are"
        raise invalid(told) if is_new else not_found(told)


def with_service_output(text: str, output: dict[str, Any]) -> str:
    """A document as it was given, with what the service says of its job."""
    return json.dumps({**json.loads(text), "ServiceOutput": output})
