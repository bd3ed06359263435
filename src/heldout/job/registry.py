"""The registry: maps AWS names to local models, agents, datasets and folders. Data only.

    [models."openai-reasoning-gpt-oss-20b"]        # a hub model's name or its hub-content ARN
    endpoint = "http://127.0.0.1:8000/v1#gpt-oss-20b"
    [model-packages."arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"]
    model = "smollm2-135m+adapter.gguf"             # `model` is an embedded one, `endpoint` an address
    base-model = "openai-reasoning-gpt-oss-20b"
    [agents."arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent"]   # or a Lambda ARN
    agent = "agent.py:handle"
    [datasets."arn:aws:sagemaker:us-west-2:123456789012:hub-content/hub/DataSet/prompts/1.0.0"]
    path = "prompts.jsonl"
    [buckets."my-bucket"]                           # s3://my-bucket as a local folder
    folder = "buckets/my-bucket"
    [mlflow."arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-1"]   # or a tracking server's ARN
    tracking-uri = "http://127.0.0.1:5000"

Relative paths are relative to the folder of the file.
"""

import tomllib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from heldout.errors import ReferenceProblem, did_you_mean, shown
from heldout.job.document import AgentConfig, DataSource, EvaluationConfig, JobConfigDocument, OutputDataConfig
from heldout.job.kinds.base import AgentReference, ModelReference
from heldout.job.kinds.embedded import EmbeddedModel
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.hub_model import HubModel, hub_content_name
from heldout.job.references import checked_tracking_uri, model_kinds, parse_agent, parse_model


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Entry(BaseModel):
    model_config = ConfigDict(
        alias_generator=_kebab, populate_by_name=True, extra="forbid", frozen=True, protected_namespaces=()
    )


class ModelEntry(_Entry):
    """Where a model is: exactly one of `endpoint` and `model`."""

    endpoint: str | None = None
    """`http://host:port/v1#served-name`."""
    model: str | None = None
    """An embedded model's name or a `.gguf` path, either with `+adapter.gguf`."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if (self.endpoint is None) == (self.model is None):
            raise ValueError("needs exactly one of endpoint, model")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.endpoint!r} must be http://host:port/v1#served-name")
        is_local = self.reference.aws_name is None and not isinstance(self.reference, EndpointModel)
        if self.model is not None and not is_local:
            raise ValueError(f"model {self.model!r} must be an embedded model or a .gguf path")
        return self

    @property
    def reference(self) -> ModelReference:
        """The model of this entry, with paths as written."""
        if self.endpoint is not None:
            return parse_model(self.endpoint)
        text = self.model or ""
        found = next((found for kind in model_kinds() if (found := kind.parse(text)) is not None), None)
        # `parse_model` would read an unknown plain name as a hub model. The policy's start checks that the model exists.
        is_plain_name = isinstance(found, HubModel) and not text.startswith("arn:")
        return EmbeddedModel.of(text) if found is None or is_plain_name else found


class PackageEntry(ModelEntry):
    """Where a model package's model is, and its base model."""

    base_model: str | None = None
    """A hub model's name or ARN, or a local model."""


class AgentEntry(_Entry):
    agent: str
    """`file.py:function`, `package.module:function` or `http://host:port`."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.reference.aws_name is not None:
            raise ValueError(f"agent {self.agent!r} must be on this machine")
        return self

    @property
    def reference(self) -> AgentReference:
        """The agent of this entry."""
        return parse_agent(self.agent)


class DatasetEntry(_Entry):
    path: str
    """A file, or a folder of files."""


class BucketEntry(_Entry):
    folder: str
    """The folder that stands for the bucket."""


class MlflowEntry(_Entry):
    tracking_uri: Annotated[str, AfterValidator(checked_tracking_uri)]
    """Any MLflow tracking URI without a password."""


class Registry(_Entry):
    """Maps AWS names to local things. An empty registry maps none."""

    folder: str = ""
    """The absolute folder that relative paths start from."""
    models: dict[str, ModelEntry] = Field(default_factory=dict)
    """Hub models, by name or hub-content ARN."""
    model_packages: dict[str, PackageEntry] = Field(default_factory=dict)
    """Model packages, by ARN."""
    agents: dict[str, AgentEntry] = Field(default_factory=dict)
    """Agents in AWS, by the ARN of an AgentCore runtime or of a Lambda function."""
    datasets: dict[str, DatasetEntry] = Field(default_factory=dict)
    """Datasets in AWS, by DataSet ARN."""
    buckets: dict[str, BucketEntry] = Field(default_factory=dict)
    """S3 buckets, by name, as local folders."""
    mlflow: dict[str, MlflowEntry] = Field(default_factory=dict)
    """MLflow apps and tracking servers, by ARN."""

    @classmethod
    def parse(cls, text: str, *, where: str, folder: PurePath) -> Self:
        """Reads a registry from TOML. where: its name in error messages. folder: the folder that relative paths start from.

        Raises ReferenceProblem, naming the entry and the expected value.
        """
        try:
            entries = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ReferenceProblem(f"registry {where} is not TOML: {error}") from error
        if "folder" in entries:  # a field of the record, not of the file
            raise ReferenceProblem(f"registry {where}: [folder] is no section.{did_you_mean('folder', _SECTIONS)}")
        try:
            return cls.model_validate(entries | {"folder": str(folder)})
        except ValidationError as error:
            raise ReferenceProblem(f"registry {where}: " + "; ".join(_problems(error))) from error

    def model(self, aws_name: str | None) -> ModelReference | None:
        """Returns the local model for a hub model's name, a hub-content ARN or a model package's ARN; None if it is not mapped.

        aws_name: from `Reference.aws_name`.
        """
        name = aws_name or ""
        entry = self.model_packages.get(name) or self.models.get(name) or self.models.get(hub_content_name(name))
        return None if entry is None else entry.reference.located(PurePath(self.folder))

    def base_of(self, aws_name: str | None) -> ModelReference | None:
        """Returns the base model of a model package from its entry; None without `base-model`."""
        entry = self.model_packages.get(aws_name or "")
        if entry is None or entry.base_model is None:
            return None
        return parse_model(entry.base_model).located(PurePath(self.folder))

    def agent(self, aws_name: str | None) -> AgentReference | None:
        """Returns the local agent for the ARN of an AgentCore runtime or a Lambda function; None if it is not mapped.

        aws_name: from `Reference.aws_name`.
        """
        entry = self.agents.get(aws_name or "")
        return None if entry is None else entry.reference.located(PurePath(self.folder))

    def location(self, location: str) -> str:
        """Returns the local path for a mapped DataSet ARN or an `s3://` URI in a mapped bucket; any other location unchanged.

        Raises ReferenceProblem for a key that leads out of the bucket's folder.
        """
        folder = PurePath(self.folder)
        if location in self.datasets:
            return str(folder / self.datasets[location].path)
        bucket, _, key = location.removeprefix("s3://").partition("/")
        if not location.startswith("s3://") or bucket not in self.buckets:
            return location
        if ".." in key.split("/"):
            raise ReferenceProblem(
                f"{shown(location, 160)} leads out of the folder of bucket {bucket!r}; name its key without '..'"
            )
        # A key that begins with a slash must not become a path that begins at the root.
        return str(folder / self.buckets[bucket].folder / key.lstrip("/"))

    def localized(self, document: JobConfigDocument) -> JobConfigDocument:
        """Returns the document with every mapped AWS name replaced by its local reference."""
        model, agent, channel = document.model, document.agent_config.agent, document.prompts
        changes: dict[str, Any] = {}
        if (here := self.model(model.aws_name)) is not None:
            changes["model_package_config"] = None
            changes["evaluation_config"] = EvaluationConfig.of(
                here, document.hyperparameters, accept_eula=document.evaluation_config.accept_eula
            )
        if (player := self.agent(agent.aws_name)) is not None:
            changes["agent_config"] = AgentConfig(agent=player, runtime_url=document.agent_config.runtime_url)
        if (dataset := self.location(channel.data_source.dataset)) != channel.data_source.dataset:
            source = DataSource.of(dataset, is_prefix=channel.data_source.s3_data_source is not None)
            changes["input_data_config"] = (channel.model_copy(update={"data_source": source}),)
        if (output := self._output_here(document.output_data_config)) != document.output_data_config:
            changes["output_data_config"] = output
        return document.model_copy(update=changes)

    def nearest(self, name: str) -> str:
        """Returns the end of an error message about an unmapped name: the nearest mapped one."""
        return did_you_mean(name, [*self.models, *self.model_packages, *self.agents, *self.datasets])

    def _output_here(self, output: OutputDataConfig) -> OutputDataConfig:
        config = output.mlflow_config
        if config is not None and (entry := self.mlflow.get(config.mlflow_resource_arn)) is not None:
            config = config.model_copy(update={"mlflow_resource_arn": entry.tracking_uri})
        here = OutputDataConfig.at(self.location(output.location))
        return here.model_copy(update={"kms_key_arn": output.kms_key_arn, "mlflow_config": config})


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(
            _kebab(str(part)) if number == 0 else f'"{part}"' for number, part in enumerate(problem["loc"][:2])
        )
        name = str(problem["loc"][-1]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            yield f"[{where}] is no section.{did_you_mean(name, _SECTIONS)}"
        elif problem["type"] == "extra_forbidden":
            yield f"[{where}] has {name!r}, which is no key there.{did_you_mean(name, _KEYS)}"
        elif problem["type"] == "missing":
            yield f"[{where}] has no {name!r}"
        elif isinstance(own := problem.get("ctx", {}).get("error"), ReferenceProblem):
            yield f"[{where}] {own}"  # the message has the value, without its secrets
        elif len(problem["loc"]) > 2:
            yield f"[{where}] {name} is {shown(problem['input'])}; {problem['msg']}"
        else:
            yield f"[{where}] {problem['msg'].removeprefix('Value error, ')}"


_SECTIONS = frozenset(_kebab(name) for name in Registry.model_fields) - {"folder"}
_KEYS = frozenset(
    _kebab(name)
    for entry in (PackageEntry, AgentEntry, DatasetEntry, BucketEntry, MlflowEntry)
    for name in entry.model_fields
)
