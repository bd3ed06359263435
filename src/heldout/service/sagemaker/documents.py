"""Job documents of requests, checked against this machine before a job starts."""

import json
from typing import Any, NamedTuple

from heldout.backends.local.services import check_document
from heldout.errors import HeldoutError
from heldout.job.document import JobConfigDocument
from heldout.pipeline.definition import JOB_CATEGORY, JOB_SCHEMA_VERSION
from heldout.service.context import Context
from heldout.service.mlflow.apps import registry_with_apps
from heldout.service.wire.faults import invalid, not_found


class Playable(NamedTuple):
    """A job that this machine can run."""

    document: JobConfigDocument
    """The document with each mapped AWS name replaced by the local name."""
    output: str
    """The output location: a local path or an `s3://` URI, without a trailing slash."""


def playable(context: Context, document: JobConfigDocument, *, where: str = "JobConfigDocument") -> Playable:
    """Resolves a document's AWS names. Raises ServiceError (ValidationException) for a name neither local nor mapped."""
    registry = registry_with_apps(context)
    try:
        localized = registry.localized(document)
    except HeldoutError as error:
        raise invalid(f"{where}: {error}") from error
    _check_mlflow(context, localized)
    try:
        check_document(localized)
    except (HeldoutError, OSError) as error:
        names = [name for name in (localized.model.text, localized.agent_config.agent.aws_name) if name is not None]
        nearest = "".join(registry.nearest(name) for name in names if name in str(error))
        raise invalid(f"{where}: {error}{nearest}") from error
    return Playable(localized, localized.output_data_config.location.rstrip("/"))


def _check_mlflow(context: Context, document: JobConfigDocument) -> None:
    """Refuses an unknown app of this server's account. An ARN of another account belongs to AWS and is not checked."""
    config = document.output_data_config.mlflow_config
    if config is not None and f":{context.account}:mlflow-app/" in config.mlflow_resource_arn:
        raise invalid(f"MlflowResourceArn: MLflow app {config.mlflow_resource_arn!r} does not exist")


def parse_document(text: str) -> JobConfigDocument:
    """Parses a document. Raises ServiceError (ValidationException) if it does not match its schema."""
    try:
        return JobConfigDocument.parse(text)
    except HeldoutError as error:
        raise invalid(f"JobConfigDocument does not match schema version {JOB_SCHEMA_VERSION}: {error}") from error


def check_category(category: str, *, is_new: bool = False) -> None:
    """Raises ServiceError for an unsupported job category: ValidationException for a new job, otherwise ResourceNotFound."""
    if category != JOB_CATEGORY:
        message = f"jobs of category {category!r} are not served here; {JOB_CATEGORY!r} are"
        raise invalid(message) if is_new else not_found(message)


def with_service_output(text: str, output: dict[str, Any]) -> str:
    """A job's original document with the `ServiceOutput` member that the service adds."""
    return json.dumps({**json.loads(text), "ServiceOutput": output})
