"""The JobConfigDocument: the one format that every front writes, every backend takes and every run keeps.

Wire names and sections are those of `CreateJob` with JobCategory AgentRFTEvaluation, schema version 1.0.0 (AWS developer
guide). What is local only is one more kind inside the same sections: EntryPointConfig and HttpAgentConfig beside the AWS
agents, FileDataSource beside S3, LocalOutputPath beside S3OutputPath, ModelEndpointConfig and EmbeddedModelConfig beside
BaseModelArn.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_pascal

from heldout.errors import InputError, ReferenceProblem, did_you_mean, shown
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import (
    AgentContainer,
    AgentCoreRuntime,
    AgentReference,
    EmbeddedModel,
    EndpointModel,
    EntryPoint,
    HubModel,
    LambdaAgent,
    ModelPackage,
    ModelReference,
    checked_tracking_uri,
)

MAX_RUNTIME_SECONDS = 72 * 60 * 60
"""The longest a job may run: the service's bound."""
DEFAULT_RUNTIME_SECONDS = 24 * 60 * 60


class _Section(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_pascal,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )


def _exactly_one(section: BaseModel, *fields: str) -> None:
    given = [to_pascal(f) for f in fields if getattr(section, f) is not None]
    if len(given) != 1:
        has = " and ".join(given) if given else "none"
        raise ValueError(f"needs exactly one of {', '.join(map(to_pascal, fields))}; it has {has}")


class BedrockAgentCoreConfig(_Section):
    agent_runtime_arn: str
    qualifier: str | None = None


class CustomAgentLambdaConfig(_Section):
    lambda_arn: str


class EntryPointConfig(_Section):
    entry_point: str
    """`file.py:function` or `package.module:function`; a file's path is absolute once a job is written down."""


class HttpAgentConfig(_Section):
    url: str


class AgentConfig(_Section):
    """Exactly one way to invoke the agent."""

    bedrock_agent_core_config: BedrockAgentCoreConfig | None = None
    custom_agent_lambda_config: CustomAgentLambdaConfig | None = None
    entry_point_config: EntryPointConfig | None = None
    http_agent_config: HttpAgentConfig | None = None
    runtime_url: str | None = None
    """Where an agent that is not on this machine reaches the Job Runtime (local only)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, *(name for name in type(self).model_fields if name != "runtime_url"))
        return self

    @classmethod
    def of(cls, agent: AgentReference, *, runtime_url: str | None = None) -> Self:
        """The section that holds `agent`."""
        match agent:
            case AgentCoreRuntime(arn, qualifier):
                runtime = BedrockAgentCoreConfig(agent_runtime_arn=arn, qualifier=qualifier)
                return cls(bedrock_agent_core_config=runtime, runtime_url=runtime_url)
            case LambdaAgent(arn):
                return cls(custom_agent_lambda_config=CustomAgentLambdaConfig(lambda_arn=arn), runtime_url=runtime_url)
            case EntryPoint(entry_point):
                return cls(entry_point_config=EntryPointConfig(entry_point=entry_point), runtime_url=runtime_url)
            case AgentContainer(url):
                return cls(http_agent_config=HttpAgentConfig(url=url), runtime_url=runtime_url)

    @property
    def agent(self) -> AgentReference:
        """The agent this section holds."""
        if self.bedrock_agent_core_config:
            config = self.bedrock_agent_core_config
            return AgentCoreRuntime(config.agent_runtime_arn, config.qualifier)
        if self.custom_agent_lambda_config:
            return LambdaAgent(self.custom_agent_lambda_config.lambda_arn)
        if self.entry_point_config:
            return EntryPoint(self.entry_point_config.entry_point)
        assert self.http_agent_config is not None  # the validator saw to it
        return AgentContainer(self.http_agent_config.url)


class S3DataSource(_Section):
    s3_data_type: str = "S3Prefix"
    s3_uri: str


class DatasetSource(_Section):
    dataset_arn: str


class FileDataSource(_Section):
    path: str
    """A file, or a folder of several."""
    is_prefix: bool | None = None
    """Whether it stands for an `s3://` URI, so that it may also be how the paths of several files begin."""


class DataSource(_Section):
    """Exactly one place that prompts come from."""

    s3_data_source: S3DataSource | None = None
    dataset_source: DatasetSource | None = None
    file_data_source: FileDataSource | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, *type(self).model_fields)
        return self

    @classmethod
    def of(cls, dataset: str, *, is_prefix: bool = False) -> Self:
        """The section for a dataset's string: an S3 URI, a DataSet ARN, or a local path (which stands for a URI)."""
        if dataset.startswith("arn:"):
            return cls(dataset_source=DatasetSource(dataset_arn=dataset))
        if dataset.startswith("s3://"):
            return cls(s3_data_source=S3DataSource(s3_uri=dataset))
        return cls(file_data_source=FileDataSource(path=dataset, is_prefix=is_prefix or None))

    @property
    def dataset(self) -> str:
        """The string this section was written from."""
        if self.s3_data_source:
            return self.s3_data_source.s3_uri
        if self.dataset_source:
            return self.dataset_source.dataset_arn
        assert self.file_data_source is not None  # the validator saw to it
        return self.file_data_source.path

    @property
    def is_prefix(self) -> bool:
        """Whether `dataset` is a local path that may be the beginning of several."""
        return self.file_data_source is not None and bool(self.file_data_source.is_prefix)


class InputChannel(_Section):
    channel_name: str = "evaluation"
    data_source: DataSource
    limit: Annotated[int, Field(ge=1)] | None = None
    """Play only so many prompts (local only)."""
    shuffle_seed: int | None = None
    """Play the prompts in an order drawn from this seed (local only)."""


class MlflowConfig(_Section):
    mlflow_resource_arn: Annotated[str, AfterValidator(checked_tracking_uri)]
    """A SageMaker MLflow ARN; locally any tracking URI, without a password."""
    mlflow_experiment_name: str | None = None
    mlflow_run_name: str | None = None


class OutputDataConfig(_Section):
    s3_output_path: str | None = None
    local_output_path: str | None = None
    kms_key_arn: str | None = None
    mlflow_config: MlflowConfig | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        _exactly_one(self, "s3_output_path", "local_output_path")
        return self

    @classmethod
    def at(cls, location: str) -> Self:
        """The section for an output's string: an `s3://` URI or a local path."""
        return cls(s3_output_path=location) if location.startswith("s3://") else cls(local_output_path=location)

    @property
    def location(self) -> str:
        """Where the run goes: an S3 URI or a local path."""
        return self.s3_output_path or self.local_output_path or ""


class ModelEndpointConfig(_Section):
    urls: Annotated[tuple[str, ...], Field(min_length=1)]
    model_name: str = ""
    api_key_variable: str | None = None
    """The environment variable that holds the key; never the key."""


class EmbeddedModelConfig(_Section):
    model_name: str
    adapter_path: str | None = None


def _checked_hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    Hyperparameters(values)
    return values


class EvaluationConfig(_Section):
    base_model_arn: str | None = None
    model_endpoint_config: ModelEndpointConfig | None = None
    embedded_model_config: EmbeddedModelConfig | None = None
    accept_eula: bool = False
    hyper_parameters: Annotated[dict[str, Any], AfterValidator(_checked_hyperparameters)] = Field(default_factory=dict)
    """As given, in any of the three spellings."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        _exactly_one(self, "base_model_arn", "model_endpoint_config", "embedded_model_config")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters, checked, in their canonical spelling."""
        return Hyperparameters(self.hyper_parameters)


class ModelPackageConfig(_Section):
    input_model_package_arn: str


class StoppingCondition(_Section):
    max_runtime_in_seconds: Annotated[int, Field(gt=0, le=MAX_RUNTIME_SECONDS)] = DEFAULT_RUNTIME_SECONDS


class MlflowDetails(_Section):
    experiment_name: str | None = None
    experiment_id: str | None = None
    run_name: str | None = None
    run_id: str | None = None


class ServiceOutput(_Section):
    """What the service writes back into the document."""

    mlflow_details: MlflowDetails | None = None
    billable_token_usage: dict[str, Any] | None = None
    progress_info: dict[str, Any] | None = None


class JobConfigDocument(_Section):
    """One policy x one dataset x one agent, and how to evaluate it."""

    agent_config: AgentConfig
    input_data_config: Annotated[tuple[InputChannel, ...], Field(min_length=1, max_length=1)]
    output_data_config: OutputDataConfig
    evaluation_config: EvaluationConfig
    model_package_config: ModelPackageConfig | None = None
    stopping_condition: StoppingCondition = Field(default_factory=StoppingCondition)
    service_output: ServiceOutput | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """A document from its JSON text. Raises InputError naming the field, its value and what was expected."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError("job document: " + "; ".join(_problems(error))) from error

    def to_json(self) -> str:
        """The document as CreateJob takes it; what was not given is left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The job's hyperparameters, checked."""
        return self.evaluation_config.hyperparameters

    @property
    def prompts(self) -> InputChannel:
        """The one input channel: the held-out prompts."""
        return self.input_data_config[0]

    @property
    def model(self) -> ModelReference:
        """The policy under evaluation: the fine-tuned one where the job has one."""
        if self.model_package_config:
            return ModelPackage(self.model_package_config.input_model_package_arn)
        config = self.evaluation_config
        if config.model_endpoint_config:
            endpoint = config.model_endpoint_config
            return EndpointModel(endpoint.urls, endpoint.model_name, endpoint.api_key_variable)
        if config.embedded_model_config:
            return EmbeddedModel(config.embedded_model_config.model_name, config.embedded_model_config.adapter_path)
        return HubModel(config.base_model_arn or "")


def evaluation_config_for(
    model: ModelReference, hyperparameters: Hyperparameters, *, accept_eula: bool
) -> EvaluationConfig:
    """The section for a model that needs no model package. Raises InputError for one that does."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in hyperparameters.set_values().items()}
    match model:
        case EndpointModel(urls, name, variable):
            endpoint = ModelEndpointConfig(urls=urls, model_name=name, api_key_variable=variable)
            return EvaluationConfig(model_endpoint_config=endpoint, accept_eula=accept_eula, hyper_parameters=values)
        case EmbeddedModel(name, adapter):
            embedded = EmbeddedModelConfig(model_name=name, adapter_path=adapter)
            return EvaluationConfig(embedded_model_config=embedded, accept_eula=accept_eula, hyper_parameters=values)
        case HubModel(name):
            return EvaluationConfig(base_model_arn=name, accept_eula=accept_eula, hyper_parameters=values)
        case ModelPackage(arn):
            raise InputError(f"model package {arn!r} needs its base model resolved before a job can be written")


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the document"
        if problem["type"] == "extra_forbidden":
            nearest = did_you_mean(str(problem["loc"][-1]), _WIRE_NAMES)
            yield f"{where} is not a field there.{nearest}"
        elif problem["type"] == "missing":
            yield f"{where} is missing"
        elif isinstance(own := problem.get("ctx", {}).get("error"), ReferenceProblem):
            yield f"{where}: {own}"  # it says of the value what may be said
        else:
            yield f"{where} is {shown(problem['input'])}; {problem['msg'].removeprefix('Value error, ')}"


def _wire_names(section: type[BaseModel]) -> Iterator[str]:
    for other in section.__subclasses__():
        yield from (to_pascal(name) for name in other.model_fields)


_WIRE_NAMES = frozenset(_wire_names(_Section))
