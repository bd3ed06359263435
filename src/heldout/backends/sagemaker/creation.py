"""Preparation and start of an evaluation in AWS: every reference is looked up, then one version of the pipeline is
made and started."""

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heldout.backends.sagemaker import checks, mlflow_apps, pipelines
from heldout.backends.sagemaker.account import Account, translated_errors
from heldout.backends.sagemaker.handle import CloudEvaluation
from heldout.backends.sagemaker.hyperparameter_schema import spelled
from heldout.backends.sagemaker.models import not_in_aws, resolve_models
from heldout.errors import CloudError, InputError, shown
from heldout.job.document import JobConfigDocument
from heldout.pipeline.definition import (
    JOB_CATEGORY,
    JOB_SCHEMA_VERSION,
    EvaluationJobs,
    Surroundings,
    render,
)
from heldout.pipeline.places import LocalPlace, S3Place
from heldout.pipeline.request import EvaluationRequest, Tracking
from heldout.pipeline.summary import Summary

_EXECUTION_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,81}")
_MAX_DOCUMENT_CHARACTERS = 262_144
"""The longest JobConfigDocument: the service's limit."""


@dataclass(frozen=True, slots=True)
class PreparedExecution:
    """A pipeline execution that can be started."""

    account: Account
    name: str
    request: EvaluationRequest
    """The request, with the ARNs of its models."""
    schema: Mapping[str, Any]
    """The JSON schema of job documents that the endpoint enforces."""
    surroundings: Surroundings
    experiment: str
    mlflow: str | None
    """The ARN of the app or tracking server. None: nothing is logged, or the app is made at the start."""
    makes_app: bool

    @property
    def summary(self) -> Summary:
        """The summary to print."""
        output = str(self.request.output)
        return Summary.of(self.request, output=output, region=self.account.region, tracking=self.tracking)

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning if an MLflow app has to be made."""
        if self.makes_app:
            return (
                "the account has no MLflow app: one is made when the evaluation is started, and named in the definition",
            )
        return ()

    @property
    def tracking(self) -> Tracking | None:
        """The MLflow destination, if it is known before the start."""
        return None if self.mlflow is None else Tracking(self.mlflow, self.experiment)

    @property
    def definition(self) -> dict[str, Any]:
        """The pipeline definition. Raises InputError for values that the endpoint does not accept."""
        if (named := next(filter(None, self.request.given_names), None)) is not None:
            raise InputError(
                f"candidate name {named!r} has no effect on managed jobs, whose runs the service names; give the model without it"
            )
        jobs = self.request.jobs(self.tracking)
        return render(
            EvaluationJobs(self._spelled(jobs.base), self._spelled(jobs.fine_tuned)),
            self.surroundings,
        )

    def start(self) -> CloudEvaluation:
        """Starts the execution, after making its MLflow app if there is none. Raises CloudError."""
        return _start(self)

    def _spelled(self, document: JobConfigDocument | None) -> JobConfigDocument | None:
        """The document with its hyperparameters in the form that the endpoint accepts."""
        if document is None:
            return None
        values = spelled(self.request.hyperparameters.set_values(), self.schema)
        config = document.evaluation_config.model_copy(update={"hyper_parameters": values})
        changed = document.model_copy(update={"evaluation_config": config})
        if len(changed.to_json()) > _MAX_DOCUMENT_CHARACTERS:
            raise InputError(
                f"the job's document is longer than {_MAX_DOCUMENT_CHARACTERS} characters, the service's limit"
            )
        return changed


def prepare(request: EvaluationRequest) -> PreparedExecution:
    """Looks up and checks everything that can be checked. Changes nothing in AWS.

    Raises InputError for invalid values, ReferenceProblem for references that do not exist, CloudError
    when AWS refuses an answer.
    """
    settings, tracking = request.account, request.tracking
    account = Account(settings.session, settings.region)
    _check_places(request)
    checks.check_tags(settings.tags)
    if tracking.uri is not None and not tracking.is_off and not tracking.uri.startswith("arn:"):
        raise not_in_aws("mlflow_resource_arn", tracking.uri)
    models = resolve_models(account, request.policies)
    checks.check_dataset(account, request.dataset)
    checks.check_agent(account, request.agent)
    if settings.model_package_group is not None:
        checks.check_group(account, settings.model_package_group)
    if tracking.uri is not None and not tracking.is_off:
        checks.check_mlflow(account, tracking.uri)
    surroundings = Surroundings(
        region=account.region,
        account=account.account_id,
        role_arn=account.role_arn(settings.role),
        pipeline_name=pipelines.pipeline_name(account),
        tags=settings.tags,
        security_group_ids=settings.security_group_ids,
        subnets=settings.subnets,
    )
    mlflow = None if tracking.is_off else tracking.uri or mlflow_apps.default_app(account)
    prepared = PreparedExecution(
        account=account,
        name=_execution_name(request.base_name),
        request=dataclasses.replace(request, policies=models.policies),
        schema=_document_schema(account),
        surroundings=surroundings,
        experiment=tracking.experiment or f"mtrl-eval-{models.base_name}",
        mlflow=mlflow,
        makes_app=mlflow is None and not tracking.is_off,
    )
    _ = prepared.definition  # a value that the endpoint does not accept is an error now
    return prepared


def _start(prepared: PreparedExecution) -> CloudEvaluation:
    account = prepared.account
    if prepared.makes_app:
        output = str(prepared.request.output)
        app = mlflow_apps.create_app(account, role_arn=prepared.surroundings.role_arn, output=output)
        prepared = dataclasses.replace(prepared, mlflow=app, makes_app=False)
    if prepared.mlflow is not None and ":mlflow-app/" in prepared.mlflow:
        mlflow_apps.wait_for_app(account, prepared.mlflow)
    around = prepared.surroundings
    version = pipelines.put_definition(account, around.pipeline_name, prepared.definition, role_arn=around.role_arn)
    if version is None:
        around = dataclasses.replace(around, pipeline_name=pipelines.own_name())
        own = dataclasses.replace(prepared, surroundings=around)
        pipelines.create_own(account, around.pipeline_name, own.definition, role_arn=around.role_arn)
    arn = pipelines.start(
        account, around.pipeline_name, version=version, display_name=prepared.name, role_arn=around.role_arn
    )
    try:
        return CloudEvaluation(account, arn, prepared.request.registry)
    except CloudError as error:
        raise CloudError(f"{error}; it was started, and continues") from error


def _execution_name(base: str) -> str:
    name = f"{base}-{int(time.time())}"
    if not _EXECUTION_NAME.fullmatch(name):
        raise InputError(
            f"'base_eval_name' is {shown(base)}; it must be up to 71 letters, digits and hyphens, first and last no hyphen"
        )
    return name


def _check_places(request: EvaluationRequest) -> None:
    """Raises ReferenceProblem for a place that is not in AWS, InputError for a setting that only this machine supports."""
    if request.agent.aws_name is None:
        raise not_in_aws("agent", request.agent.text)
    if not isinstance(request.output, S3Place):
        raise not_in_aws("s3_output_path", str(request.output))
    if isinstance(request.dataset, LocalPlace):
        raise not_in_aws("dataset", str(request.dataset))
    for what, value in (
        ("limit", request.limit),
        ("shuffle_seed", request.shuffle_seed),
        ("runtime_url", request.runtime_url),
    ):
        if value is not None:
            raise InputError(
                f"'{what}' is {value!r}, which managed jobs do not support; leave it out, or run on this machine: "
                "--backend local, backend='local' in Python"
            )


def _document_schema(account: Account) -> Mapping[str, Any]:
    what = f"the schema of {JOB_CATEGORY} jobs"
    with translated_errors(
        what, absent=f"{what}: the endpoint has no version {JOB_SCHEMA_VERSION} of it in {account.region}"
    ):
        described = account.sagemaker.describe_job_schema_version(
            JobCategory=JOB_CATEGORY, JobConfigSchemaVersion=JOB_SCHEMA_VERSION
        )
    schema: Mapping[str, Any] = json.loads(described["JobConfigSchema"])
    return schema
