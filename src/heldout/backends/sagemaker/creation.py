"""From what is asked for to a pipeline execution in AWS: everything looked up and checked, then one version made and started."""

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heldout.backends.local.creation import NO_TRACKING
from heldout.backends.sagemaker import checks, mlflow_apps, pipelines
from heldout.backends.sagemaker.account import Account, told
from heldout.backends.sagemaker.handle import CloudEvaluation
from heldout.backends.sagemaker.hyperparameter_schema import spelled
from heldout.backends.sagemaker.models import not_in_aws, resolve_models
from heldout.errors import CloudError, InputError, shown
from heldout.job.document import JobConfigDocument
from heldout.job.registry import Registry
from heldout.pipeline.definition import (
    JOB_CATEGORY,
    JOB_SCHEMA_VERSION,
    EvaluationJobs,
    Surroundings,
    render,
)
from heldout.pipeline.request import EvaluationRequest, Tracking

_EXECUTION_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,81}")
_MAX_DOCUMENT_CHARACTERS = 262_144
"""Of a JobConfigDocument: the service's bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """What an evaluation in AWS is given beside the request."""

    name: str
    """The execution is called this and the time it was started."""
    role: str | None = None
    """ARN or name; None is the role that the session is signed in as."""
    mlflow: str | None = None
    """ARN of an MLflow app or tracking server, "off", or None for the account's default app."""
    experiment: str | None = None
    model_package_group: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    security_group_ids: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """An evaluation that could be started now."""

    name: str
    request: EvaluationRequest
    """With the models by their ARNs."""
    schema: Mapping[str, Any]
    """Of the job's document, as the endpoint enforces it."""
    surroundings: Surroundings
    experiment: str
    mlflow: str | None
    """ARN of the app or tracking server; None: MLflow hears nothing of it, or its app is made at the start."""
    makes_app: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person must know of it."""
        if self.makes_app:
            return (
                "the account has no MLflow app: one is made when the evaluation is started, and named in the definition",
            )
        return ()

    @property
    def tracking(self) -> Tracking | None:
        """Where the runs go in MLflow, as far as that is known."""
        return None if self.mlflow is None else Tracking(self.mlflow, self.experiment)

    def definition(self) -> dict[str, Any]:
        """The pipeline definition. Raises InputError for values that the endpoint has no place for."""
        jobs = dataclasses.replace(self.request, tracking=self.tracking).jobs()
        return render(
            EvaluationJobs(self._spelled(jobs.base), self._spelled(jobs.fine_tuned)),
            self.surroundings,
        )

    def _spelled(self, document: JobConfigDocument | None) -> JobConfigDocument | None:
        """The document with its hyperparameters as the endpoint wants them."""
        if document is None:
            return None
        values = spelled(self.request.hyperparameters.set_values(), self.schema)
        config = document.evaluation_config.model_copy(update={"hyper_parameters": values})
        changed = document.model_copy(update={"evaluation_config": config})
        if len(changed.to_json()) > _MAX_DOCUMENT_CHARACTERS:
            raise InputError(
                f"the job's document is longer than {_MAX_DOCUMENT_CHARACTERS} characters, the service's bound"
            )
        return changed


def prepare(account: Account, request: EvaluationRequest, settings: CloudSettings) -> Prepared:
    """Looks up and checks all that can be, and changes nothing in AWS.

    Raises InputError for what cannot be right, ReferenceProblem for what is not there, CloudError when AWS refuses to say.
    """
    _check_places(request)
    checks.check_tags(settings.tags)
    if settings.mlflow not in (None, NO_TRACKING) and not settings.mlflow.startswith("arn:"):
        raise not_in_aws("mlflow_resource_arn", settings.mlflow)
    models = resolve_models(account, request.policies)
    checks.check_dataset(account, request.dataset)
    checks.check_agent(account, request.agent)
    if settings.model_package_group is not None:
        checks.check_group(account, settings.model_package_group)
    if settings.mlflow not in (None, NO_TRACKING):
        checks.check_mlflow(account, settings.mlflow)
    surroundings = Surroundings(
        region=account.region,
        account=account.account_id,
        role_arn=account.role_arn(settings.role),
        pipeline_name=pipelines.pipeline_name(account),
        tags=settings.tags,
        security_group_ids=settings.security_group_ids,
        subnets=settings.subnets,
    )
    mlflow = None if settings.mlflow == NO_TRACKING else settings.mlflow or mlflow_apps.default_app(account)
    prepared = Prepared(
        name=_execution_name(settings.name),
        request=dataclasses.replace(request, policies=models.policies),
        schema=_document_schema(account),
        surroundings=surroundings,
        experiment=settings.experiment or f"mtrl-eval-{models.base_name}",
        mlflow=mlflow,
        makes_app=mlflow is None and settings.mlflow != NO_TRACKING,
    )
    prepared.definition()  # what has no place is told now
    return prepared


def start(account: Account, prepared: Prepared, registry: Registry) -> CloudEvaluation:
    """Starts a prepared evaluation. Raises CloudError."""
    if prepared.makes_app:
        app = mlflow_apps.create_app(account, role_arn=prepared.surroundings.role_arn, output=prepared.request.output)
        prepared = dataclasses.replace(prepared, mlflow=app, makes_app=False)
    if prepared.mlflow is not None and ":mlflow-app/" in prepared.mlflow:
        mlflow_apps.wait_for_app(account, prepared.mlflow)
    around = prepared.surroundings
    version = pipelines.put_definition(account, around.pipeline_name, prepared.definition(), role_arn=around.role_arn)
    if version is None:
        around = dataclasses.replace(around, pipeline_name=pipelines.own_name())
        own = dataclasses.replace(prepared, surroundings=around)
        pipelines.create_own(account, around.pipeline_name, own.definition(), role_arn=around.role_arn)
    arn = pipelines.start(
        account, around.pipeline_name, version=version, display_name=prepared.name, role_arn=around.role_arn
    )
    try:
        return CloudEvaluation(account, arn, registry)
    except CloudError as error:
        raise CloudError(f"{error}; it was started, and goes on") from error


def _execution_name(base: str) -> str:
    name = f"{base}-{int(time.time())}"
    if not _EXECUTION_NAME.fullmatch(name):
        raise InputError(
            f"'base_eval_name' is {shown(base)}; it must be up to 71 letters, digits and hyphens, first and last no hyphen"
        )
    return name


def _check_places(request: EvaluationRequest) -> None:
    """Whether everything that is named is in AWS, and nothing is asked for that only this machine does."""
    if request.agent.aws_name is None:
        raise not_in_aws("agent", request.agent.text)
    if not request.output.startswith("s3://"):
        raise not_in_aws("s3_output_path", request.output)
    if not request.dataset.startswith(("s3://", "arn:")):
        raise not_in_aws("dataset", request.dataset)
    for what, value in (
        ("limit", request.limit),
        ("shuffle_seed", request.shuffle_seed),
        ("runtime_url", request.runtime_url),
    ):
        if value is not None:
            raise InputError(
                f"'{what}' is {value!r}, which managed jobs have no place for; leave it out, or use backend='local'"
            )


def _document_schema(account: Account) -> Mapping[str, Any]:
    what = f"the schema of {JOB_CATEGORY} jobs"
    with told(what, absent=f"{what}: the endpoint has no version {JOB_SCHEMA_VERSION} of it in {account.region}"):
        described = account.sagemaker.describe_job_schema_version(
            JobCategory=JOB_CATEGORY, JobConfigSchemaVersion=JOB_SCHEMA_VERSION
        )
    schema: Mapping[str, Any] = json.loads(described["JobConfigSchema"])
    return schema
