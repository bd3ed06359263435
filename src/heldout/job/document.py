"""The JobConfigDocument: the format of a job that the evaluator writes, backends take and runs keep.

Wire names and sections are those of `CreateJob` with JobCategory AgentRFTEvaluation, schema version 1.0.0 (AWS developer
guide). Local kinds are further members of the same sections: EntryPointConfig and HttpAgentConfig next to the AWS agents,
FileDataSource next to S3, LocalOutputPath next to S3OutputPath, ModelEndpointConfig and EmbeddedModelConfig next to
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
"""The longest that a job may run: the service's limit."""
DEFAULT_RUNTIME_SECONDS = 24 * 60 * 60


def _exactly_one(section: BaseModel, *fields: str) -> None:
    given = [to_pascal(f) for f in fields if getattr(section, f) is not None]
    if len(given) != 1:
        has = " and ".join(given) if given else "none"
        raise ValueError(f"needs exactly one of {', '.join(map(to_pascal, fields))}; it has {has}")


def _read_kind(
    given: object, section: type[Section], field: str, kinds: Callable[[], Iterable[type[Reference]]]
) -> object:
    """Reads the member of `section` that stores a reference into `field`, and returns all members for pydantic.

    kinds: the kinds that may be stored there, installed ones last; read only as far as needed. Returns a value that is not a JSON
    object unchanged. Raises ValidationError for an unknown or invalid member, ValueError unless exactly one member stores a
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
    """Returns the member that stores `reference`, as JSON values."""
    section = reference.to_section()
    value = (
        section.model_dump(mode="json", by_alias=True, exclude_none=True) if isinstance(section, Section) else section
    )
    return {reference.section: value}


class AgentConfig(Section):
    """The agent, stored in the member that its kind names, such as `EntryPointConfig`."""

    agent: SkipJsonSchema[InstanceOf[AgentReference]]
    runtime_url: str | None = None
    """The Job Runtime's URL for an agent on another machine (local only)."""

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
    """A file, or a folder of files."""
    is_prefix: bool | None = None
    """Whether the path replaces an `s3://` URI, and so may be a common prefix of several files' paths."""


class DataSource(Section):
    """The source of the prompts: exactly one member is set."""

    s3_data_source: S3DataSource | None = None
    dataset_source: DatasetSource | None = None
    file_data_source: FileDataSource | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, *type(self).model_fields)
        return self

    @classmethod
    def of(cls, dataset: str, *, is_prefix: bool = False) -> Self:
        """Returns the section for an S3 URI, a DataSet ARN or a local path. is_prefix: the path replaces an S3 URI."""
        if dataset.startswith("arn:"):
            return cls(dataset_source=DatasetSource(dataset_arn=dataset))
        if dataset.startswith("s3://"):
            return cls(s3_data_source=S3DataSource(s3_uri=dataset))
        return cls(file_data_source=FileDataSource(path=dataset, is_prefix=is_prefix or None))

    @property
    def dataset(self) -> str:
        """The S3 URI, DataSet ARN or local path."""
        if self.s3_data_source:
            return self.s3_data_source.s3_uri
        if self.dataset_source:
            return self.dataset_source.dataset_arn
        assert self.file_data_source is not None  # the validator has checked it
        return self.file_data_source.path

    @property
    def is_prefix(self) -> bool:
        """Whether `dataset` is a local path that may be a common prefix of several files' paths."""
        return self.file_data_source is not None and bool(self.file_data_source.is_prefix)


class InputChannel(Section):
    channel_name: str = "evaluation"
    data_source: DataSource
    limit: Annotated[int, Field(ge=1)] | None = None
    """The most prompts to play: the first rows or, with `shuffle_seed`, random ones (local only)."""
    shuffle_seed: int | None = None
    """Seed of the random order of play (local only)."""


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
        """Returns the section for an `s3://` URI or a local path."""
        return cls(s3_output_path=location) if location.startswith("s3://") else cls(local_output_path=location)

    @property
    def location(self) -> str:
        """The place of the run: an S3 URI or a local path."""
        return self.s3_output_path or self.local_output_path or ""


def _kinds_without_base() -> Iterator[type[ModelReference]]:
    return (kind for kind in model_kinds() if not kind.needs_base)


def _checked_hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    Hyperparameters(values)
    return values


class EvaluationConfig(Section):
    model: SkipJsonSchema[InstanceOf[ModelReference]]
    candidate_name: str | None = None
    """The user's name for the model, which its run and its run's folder get (local only)."""
    accept_eula: bool = False
    hyper_parameters: Annotated[dict[str, Any], AfterValidator(_checked_hyperparameters)] = Field(default_factory=dict)
    """As they were given, in any of the three spellings."""

    @model_validator(mode="before")
    @classmethod
    def _read_model(cls, given: Any) -> Any:
        return _read_kind(given, cls, "model", _kinds_without_base)

    @model_serializer
    def _written(self) -> dict[str, Any]:
        name = {} if self.candidate_name is None else {"CandidateName": self.candidate_name}
        return _stored(self.model) | name | {"AcceptEula": self.accept_eula, "HyperParameters": self.hyper_parameters}

    @classmethod
    def of(
        cls,
        model: ModelReference,
        hyperparameters: Hyperparameters,
        *,
        accept_eula: bool,
        candidate_name: str | None = None,
    ) -> Self:
        """Returns the section for a model and the hyperparameters that were set.

        Raises InputError for a model package, which needs its base model.
        """
        if model.needs_base:
            raise InputError(f"model package {model.text!r} needs its base model resolved before a job can be written")
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in hyperparameters.set_values().items()}
        return cls(model=model, candidate_name=candidate_name, accept_eula=accept_eula, hyper_parameters=values)

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
    """The part of the document that the service adds."""

    mlflow_details: MlflowDetails | None = None
    billable_token_usage: dict[str, Any] | None = None
    progress_info: dict[str, Any] | None = None


class JobConfigDocument(Section):
    """One evaluation job: a policy, a dataset, an agent and settings."""

    agent_config: AgentConfig
    input_data_config: Annotated[tuple[InputChannel, ...], Field(min_length=1, max_length=1)]
    output_data_config: OutputDataConfig
    evaluation_config: EvaluationConfig
    model_package_config: ModelPackageConfig | None = None
    stopping_condition: StoppingCondition = Field(default_factory=StoppingCondition)
    service_output: ServiceOutput | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Reads a document from JSON. Raises InputError, naming the field, its value and the expected value."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError("job document: " + "; ".join(_problems(error))) from error

    def to_json(self) -> str:
        """Returns the document as JSON for CreateJob. Leaves out members without a value."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Returns the job's hyperparameters, checked."""
        return self.evaluation_config.hyperparameters

    @property
    def prompts(self) -> InputChannel:
        """The input channel of the held-out prompts."""
        return self.input_data_config[0]

    @property
    def model(self) -> ModelReference:
        """The policy under evaluation: the fine-tuned model if the job has one, else the base model."""
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
            yield f"{where}: {own}"  # the message has the value, without its secrets
        else:
            yield f"{where} is {shown(problem['input'])}; {problem['msg'].removeprefix('Value error, ')}"


def _packages_hint(place: tuple[int | str, ...]) -> str:
    """Returns the end of an error message for a member that a third-party kind may have written."""
    if place[0] not in ("AgentConfig", "EvaluationConfig") or len(place) != 2:
        return ""
    return f" If a package adds this kind, install it.{problems_of_packages()}"


def _wire_names(section: type[BaseModel]) -> Iterator[str]:
    for other in section.__subclasses__():
        yield from (to_pascal(name) for name in other.model_fields)


_WIRE_NAMES = frozenset({*_wire_names(Section), *(kind.section for kind in (*MODEL_KINDS, *AGENT_KINDS))})
