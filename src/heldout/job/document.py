"""The JobConfigDocument: the one format that every front writes, every backend takes and every run keeps.

Wire names and sections are those of `CreateJob` with JobCategory AgentRFTEvaluation, schema version 1.0.0 (AWS developer
guide). What is local only is one more kind inside the same sections: EntryPointConfig and HttpAgentConfig beside the AWS
agents, FileDataSource beside S3, LocalOutputPath beside S3OutputPath, ModelEndpointConfig and EmbeddedModelConfig beside
BaseModelArn.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_pascal
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import InitErrorDetails

from heldout.errors import InputError, ReferenceProblem, did_you_mean, shown
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.kinds.base import AgentReference, ModelReference, Reference, Section
from heldout.job.kinds.model_package import ModelPackage, ModelPackageConfig
from heldout.job.references import (
    AGENT_KINDS,
    MODEL_KINDS,
    agent_kinds,
    checked_tracking_uri,
    model_kinds,
    problems_of_packages,
)

MAX_RUNTIME_SECONDS = 72 * 60 * 60
"""The longest a job may run: the service's bound."""
DEFAULT_RUNTIME_SECONDS = 24 * 60 * 60


def _exactly_one(section: BaseModel, *fields: str) -> None:
    given = [to_pascal(f) for f in fields if getattr(section, f) is not None]
    if len(given) != 1:
        has = " and ".join(given) if given else "none"
        raise ValueError(f"needs exactly one of {', '.join(map(to_pascal, fields))}; it has {has}")


def _read_kind(
    given: object, section: type[Section], field: str, kinds: Callable[[], Iterable[type[Reference]]]
) -> object:
    """The members of `section` as pydantic takes them: the one that stores a reference is read into `field`.

    kinds: those that may be stored there, installed ones last; asked for only as far as needed. What is no JSON object comes
    back unchanged. Raises ValidationError for an unknown member or a bad one, ValueError when not exactly one member stores a
    reference.
    """
    if not isinstance(given, dict) or isinstance(given.get(field), Reference):
        return given
    own = {to_pascal(name) for name in section.model_fields if name != field}
    found = {name: _kind_of_member(name, kinds()) for name, value in given.items() if name not in own}
    if unknown := [name for name, kind in found.items() if kind is None]:
        raise ValidationError.from_exception_data(
            section.__name__,
            [InitErrorDetails(type="extra_forbidden", loc=(name,), input=given[name]) for name in unknown],
        )
    references = [name for name in found if given[name] is not None]
    if len(references) != 1:
        has = " and ".join(references) or "none"
        raise ValueError(f"needs exactly one of {', '.join(kind.section for kind in kinds())}; it has {has}")
    (name,) = references
    kind = found[name]
    assert kind is not None  # unknown members are refused above
    return {other: given[other] for other in given if other in own} | {field: _read_member(kind, name, given[name])}


def _kind_of_member(name: str, kinds: Iterable[type[Reference]]) -> type[Reference] | None:
    return next((kind for kind in kinds if kind.section == name), None)


def _read_member(kind: type[Reference], name: str, value: object) -> Reference:
    try:
        return kind.from_section(TypeAdapter(kind.stored).validate_python(value))
    except ValidationError as error:
        raise ValidationError.from_exception_data(
            name,
            [
                InitErrorDetails(type=one["type"], loc=(name, *one["loc"]), input=one["input"], ctx=one.get("ctx", {}))
                for one in error.errors()
            ],
        ) from error


def _stored(reference: Reference) -> dict[str, Any]:
    """The member that stores `reference`, as JSON values."""
    section = reference.to_section()
    value = (
        section.model_dump(mode="json", by_alias=True, exclude_none=True) if isinstance(section, Section) else section
    )
    return {reference.section: value}


class AgentConfig(Section):
    """The agent, on the wire in the one member that its kind names (such as `EntryPointConfig`)."""

    agent: SkipJsonSchema[InstanceOf[AgentReference]]
    runtime_url: str | None = None
    """Where an agent that is not on this machine reaches the Job Runtime (local only)."""

    @model_validator(mode="before")
    @classmethod
    def _read_agent(cls, given: Any) -> Any:
        return _read_kind(given, cls, "agent", agent_kinds)

    @model_serializer
    def _written(self) -> dict[str, Any]:
        url = {} if self.runtime_url is None else {"RuntimeUrl": self.runtime_url}
        return _stored(self.agent) | url


class S3DataSource(Section):
    s3_data_type: str = "S3Prefix"
    s3_uri: str


class DatasetSource(Section):
    dataset_arn: str


class FileDataSource(Section):
    path: str
    """A file, or a folder of several."""
    is_prefix: bool | None = None
    """Whether it stands for an `s3://` URI, so that it may also be how the paths of several files begin."""


class DataSource(Section):
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


class InputChannel(Section):
    channel_name: str = "evaluation"
    data_source: DataSource
    limit: Annotated[int, Field(ge=1)] | None = None
    """Play only so many prompts (local only)."""
    shuffle_seed: int | None = None
    """Play the prompts in an order drawn from this seed (local only)."""


class MlflowConfig(Section):
    mlflow_resource_arn: Annotated[str, AfterValidator(checked_tracking_uri)]
    """A SageMaker MLflow ARN; locally any tracking URI, without a password."""
    mlflow_experiment_name: str | None = None
    mlflow_run_name: str | None = None


class OutputDataConfig(Section):
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


def _kinds_without_base() -> Iterator[type[ModelReference]]:
    return (kind for kind in model_kinds() if not kind.needs_base)


def _checked_hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    Hyperparameters(values)
    return values


class EvaluationConfig(Section):
    model: SkipJsonSchema[InstanceOf[ModelReference]]
    accept_eula: bool = False
    hyper_parameters: Annotated[dict[str, Any], AfterValidator(_checked_hyperparameters)] = Field(default_factory=dict)
    """As given, in any of the three spellings."""

    @model_validator(mode="before")
    @classmethod
    def _read_model(cls, given: Any) -> Any:
        return _read_kind(given, cls, "model", _kinds_without_base)

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return _stored(self.model) | {"AcceptEula": self.accept_eula, "HyperParameters": self.hyper_parameters}

    @classmethod
    def of(cls, model: ModelReference, hyperparameters: Hyperparameters, *, accept_eula: bool) -> Self:
        """The section for a model and the hyperparameters that were set. Raises InputError for a model that needs its base."""
        if model.needs_base:
            raise InputError(f"model package {model.text!r} needs its base model resolved before a job can be written")
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in hyperparameters.set_values().items()}
        return cls(model=model, accept_eula=accept_eula, hyper_parameters=values)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters, checked, in their canonical spelling."""
        return Hyperparameters(self.hyper_parameters)


class StoppingCondition(Section):
    max_runtime_in_seconds: Annotated[int, Field(gt=0, le=MAX_RUNTIME_SECONDS)] = DEFAULT_RUNTIME_SECONDS


class MlflowDetails(Section):
    experiment_name: str | None = None
    experiment_id: str | None = None
    run_name: str | None = None
    run_id: str | None = None


class ServiceOutput(Section):
    """What the service writes back into the document."""

    mlflow_details: MlflowDetails | None = None
    billable_token_usage: dict[str, Any] | None = None
    progress_info: dict[str, Any] | None = None


class JobConfigDocument(Section):
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
            return ModelPackage.from_section(self.model_package_config)
        return self.evaluation_config.model


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the document"
        if problem["type"] == "extra_forbidden":
            nearest = did_you_mean(str(problem["loc"][-1]), _WIRE_NAMES)
            yield f"{where} is not a field there.{nearest}{_packages_hint(problem['loc'])}"
        elif problem["type"] == "missing":
            yield f"{where} is missing"
        elif isinstance(own := problem.get("ctx", {}).get("error"), ReferenceProblem):
            yield f"{where}: {own}"  # it says of the value what may be said
        else:
            yield f"{where} is {shown(problem['input'])}; {problem['msg'].removeprefix('Value error, ')}"


def _packages_hint(place: tuple[int | str, ...]) -> str:
    """The end of the error line for a member that a kind of someone else's package may have written."""
    if place[0] not in ("AgentConfig", "EvaluationConfig") or len(place) != 2:
        return ""
    return f" If a package adds this kind, install it.{problems_of_packages()}"


def _wire_names(section: type[BaseModel]) -> Iterator[str]:
    for other in section.__subclasses__():
        yield from (to_pascal(name) for name in other.model_fields)


_WIRE_NAMES = frozenset({*_wire_names(Section), *(kind.section for kind in (*MODEL_KINDS, *AGENT_KINDS))})
