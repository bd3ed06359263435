"""The fields of MultiTurnRLEvaluator: their meanings, their defaults and their checks.

The checks look at the values alone: no file, no network, no clock.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from heldout.backends.local.runtime_address import check_runtime_url
from heldout.backends.table import backend_named
from heldout.errors import InputError, ReferenceProblem, did_you_mean, shown
from heldout.job.document import DEFAULT_RUNTIME_SECONDS, MAX_RUNTIME_SECONDS
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import parse_agent, parse_model
from heldout.pipeline.candidates import split_name
from heldout.pipeline.request import NO_TRACKING
from heldout.pipeline.resolution import is_trainer, model_text

_MLFLOW_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]+:[0-9]{12}:mlflow-(?:tracking-server|app)/.+")
_DATASET_ARN = re.compile(r"arn:[^:]+:sagemaker:[^:]*:[^:]*:hub-content/[^/]+/DataSet/.+")


class EvaluatorFields(BaseModel):
    """The settings of an evaluation.

    Raises InputError (a ValueError), one line, for a field that is missing, unknown, or has a value that cannot be right;
    the same when a field is assigned.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_assignment=True, protected_namespaces=()
    )

    model: Any
    """An endpoint (`http://host:port/v1#served-name`), an embedded model or `.gguf` path, either with `+adapter.gguf`; a hub
    model's name or ARN, a model package or its ARN, a trainer with a finished job, or that job."""
    dataset: Any = Field(default=None, validate_default=True)
    """Held-out prompts: a local file or folder, an S3 URI, a DataSet ARN, or an object with `.arn`. Required."""
    s3_output_path: str
    """The place of the results: a local folder or an `s3://` URI."""
    agent_config: Any = None
    """`file.py:function`, `package.module:function`, `http://host:port`, an AgentCore or Lambda ARN, or an object with
    `materialize()`, `lambda_arn` or `arn`. A trainer brings its own."""
    agent_qualifier: str | None = None
    """Bedrock AgentCore qualifier; other agents ignore it."""
    accept_eula: bool = True
    evaluate_base_model: bool = False
    """Also evaluates the base model of the fine-tuned one, and compares both."""
    base_model: Any = None
    """The base model of `model`, also `NAME=MODEL`. Needed where `model` itself does not name it, for example for an endpoint."""
    stopping_condition: int = DEFAULT_RUNTIME_SECONDS
    """The longest time of a job in seconds: above 0, up to 259200."""
    tags: list[dict[str, str]] | None = None
    """Each `{"Key": ..., "Value": ...}`; on the pipeline's steps and the MLflow runs."""
    mlflow_resource_arn: str | None = None
    """Any MLflow tracking URI or SageMaker MLflow ARN, or "off". By default MLFLOW_TRACKING_URI, else SQLite in the
    output; in AWS, where it must be an ARN, the account's default app."""
    mlflow_experiment_name: str | None = None
    """The runs' experiment in MLflow. By default `AGENT on DATASET`; in AWS `mtrl-eval-MODEL`."""
    networking: Any = None
    """An object with `security_group_ids` and `subnets`, for jobs in AWS. It has no effect on this machine."""
    kms_key_id: str | None = None
    """The key that encrypts results in S3."""
    model_package_group: Any = None
    """An ARN, a name, or an object with `model_package_group_arn`."""
    base_eval_name: str | None = None
    """The beginning of the evaluation's name, which continues with the time of its start."""
    region: str | None = None
    role: str | None = None
    sagemaker_session: Any = None
    """The SDK's session, or a boto3 session, for every request to AWS. Not needed on this machine."""
    runtime_url: str | None = None
    """The URL at which an agent on another machine reaches the Job Runtime here, for example a tunnel's; by default
    HELDOUT_RUNTIME_URL."""
    backend: str | None = None
    """The place where the evaluation runs: `"local"` is this machine, `"sagemaker"` a pipeline of managed jobs; packages may add
    others. By default in AWS when model and agent are AWS resources and no registry maps them, else on this machine."""
    registry: Any = None
    """A file that maps AWS names to local things; by default the one HELDOUT_REGISTRY names."""

    _hyperparameters: Hyperparameters = PrivateAttr(default_factory=Hyperparameters)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(_one_line(error)) from error

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise InputError(_one_line(error)) from error

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: Any) -> Any:
        if isinstance(model, str):
            parse_model(split_name(model).text)
        elif not is_trainer(model) and model_text(model) is None:
            raise ValueError(
                f"'model' is {shown(model)}; it must be a model's name, path, URL or ARN, a model package, or a trainer"
            )
        return model

    @field_validator("base_model")
    @classmethod
    def _check_base_model(cls, base_model: Any) -> Any:
        if base_model is None:
            return None
        text = model_text(base_model)
        if text is None:
            raise ValueError(f"'base_model' is {shown(base_model)}; it must be a model's name, path, URL or ARN")
        parse_model(split_name(text).text)
        return text

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, dataset: Any) -> str:
        if dataset is None:
            raise ValueError(
                "'dataset' is required. Accepted: S3 URI (s3://...), hub-content DataSet ARN, or an object with an `.arn` "
                "attribute; or a local file or folder."
            )
        text = getattr(dataset, "arn", dataset)
        text = str(text) if isinstance(text, Path) else text
        if not isinstance(text, str) or not text:
            raise ValueError(
                f"'dataset' is {shown(dataset)}; it must be a local path, an S3 URI, a hub-content DataSet ARN, or an object "
                "with an `.arn` attribute"
            )
        if text.startswith("arn:") and not _DATASET_ARN.fullmatch(text):
            raise ValueError(
                f"'dataset' {shown(text, 160)} is no DataSet ARN; expected "
                "arn:aws:sagemaker:<region>:<account>:hub-content/<hub>/DataSet/<name>/<version>"
            )
        if "://" in text and not text.startswith(("s3://", "file://")):
            raise ValueError(f"'dataset' {shown(text, 160)} cannot be read; expected a local path or s3://bucket/key")
        return text

    @field_validator("s3_output_path", mode="before")
    @classmethod
    def _check_output(cls, output: Any) -> Any:
        text = str(output) if isinstance(output, Path) else output
        if isinstance(text, str) and (not text or ("://" in text and not text.startswith("s3://"))):
            raise ValueError(f"'s3_output_path' is {text!r}; it must be a local folder or s3://bucket/prefix")
        return text

    @field_validator("agent_config")
    @classmethod
    def _check_agent(cls, agent: Any) -> Any:
        if isinstance(agent, str):
            try:
                parse_agent(agent)
            except ReferenceProblem as error:
                raise ValueError(
                    f"'agent_config' value {shown(agent, 160)} is not a recognized Bedrock AgentCore ARN or Lambda ARN, nor "
                    f"file.py:function, package.module:function or http://host:port ({error})"
                ) from error
        return agent

    @field_validator("stopping_condition", mode="before")
    @classmethod
    def _default_stopping_condition(cls, seconds: Any) -> Any:
        return DEFAULT_RUNTIME_SECONDS if seconds is None else seconds

    @field_validator("stopping_condition")
    @classmethod
    def _check_stopping_condition(cls, seconds: int) -> int:
        if seconds <= 0:
            raise ValueError(f"'stopping_condition' must be > 0; got {seconds}.")
        if seconds > MAX_RUNTIME_SECONDS:
            raise ValueError(
                f"'stopping_condition' must be <= {MAX_RUNTIME_SECONDS} seconds (72 hours); got {seconds}."
            )
        return seconds

    @field_validator("tags", mode="before")
    @classmethod
    def _check_tags(cls, tags: Any) -> Any:
        return tags if not isinstance(tags, list) else [_tag(tag) for tag in tags]

    @field_validator("mlflow_resource_arn")
    @classmethod
    def _check_tracking(cls, uri: str | None) -> str | None:
        if uri is None or uri == NO_TRACKING or _MLFLOW_ARN.fullmatch(uri):
            return uri
        if uri.startswith("arn:") or not re.match(r"databricks\b|[a-z][a-z0-9+]*:", uri):
            raise ValueError(
                f"'mlflow_resource_arn' is {shown(uri, 160)}; it must be an MLflow app's or tracking server's ARN "
                "(arn:aws:sagemaker:<region>:<account>:mlflow-app/<id> or .../mlflow-tracking-server/<name>), a tracking URI "
                f"such as http://host:5000 or sqlite:///path/mlflow.db, or {NO_TRACKING!r}"
            )
        return uri

    @field_validator("runtime_url")
    @classmethod
    def _check_runtime_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_runtime_url(url)
        return url

    @field_validator("networking")
    @classmethod
    def _check_networking(cls, networking: Any) -> Any:
        if networking is not None and not all(
            isinstance(attribute(networking, name), list | tuple) for name in ("security_group_ids", "subnets")
        ):
            raise ValueError(
                f"'networking' is {shown(networking)}; it must have `security_group_ids` and `subnets`, a list each"
            )
        return networking

    @field_validator("model_package_group")
    @classmethod
    def _check_model_package_group(cls, group: Any) -> Any:
        text = group if isinstance(group, str) else getattr(group, "model_package_group_arn", None)
        if group is not None and not isinstance(text, str):
            raise ValueError(
                f"'model_package_group' is {shown(group)}; it must be an ARN, a name, or an object with "
                "`model_package_group_arn`"
            )
        return text

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, backend: str | None) -> str | None:
        if backend is not None:
            backend_named(backend)
        return backend

    @field_validator("registry")
    @classmethod
    def _check_registry(cls, registry: Any) -> Any:
        if registry is not None and not isinstance(registry, str | Path):
            raise ValueError(f"'registry' is {shown(registry)}; it must be the path of a registry file")
        return registry

    @model_validator(mode="after")
    def _check_that_there_is_an_agent(self) -> Self:
        if self.agent_config is None and not is_trainer(self.model):
            raise ValueError(
                "'agent_config' is required when 'model' is not a MultiTurnRLTrainer. Provide a Bedrock AgentCore ARN or a "
                "Lambda ARN; or file.py:function, package.module:function or http://host:port."
            )
        return self


def attribute(value: Any, name: str) -> Any:
    """`value.name`, or the entry of that name in a mapping, in snake case or camel case."""
    if isinstance(value, Mapping):
        return value.get(name, value.get("".join(word.capitalize() for word in name.split("_"))))
    return getattr(value, name, None)


def _tag(tag: Any) -> dict[str, str]:
    """A tag with capitalized keys, as the API spells them."""
    found = {name.capitalize(): value for name, value in tag.items()} if isinstance(tag, Mapping) else {}
    if found.keys() != {"Key", "Value"} or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"'tags' holds {shown(tag)}; each must be {{'Key': ..., 'Value': ...}}, both strings")
    return found


def _one_line(error: ValidationError) -> str:
    return "; ".join(_problem(dict(problem)) for problem in error.errors(include_url=False))


def _problem(problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "value_error":
            return str(problem["ctx"]["error"])
        case "missing":
            return f"'{name}' is required"
        case "extra_forbidden" | "no_such_attribute":
            return f"MultiTurnRLEvaluator has no field {name!r}.{did_you_mean(name, EvaluatorFields.model_fields)}"
        case _:
            return f"'{name}' is {shown(problem['input'])}: {problem['msg']}"
