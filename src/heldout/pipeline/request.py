"""What is asked for: policies, agent, dataset and settings, written down as the jobs of an evaluation. Pure data."""

from dataclasses import dataclass, field
from pathlib import PurePath

from heldout.errors import ReferenceProblem
from heldout.job.document import (
    DEFAULT_RUNTIME_SECONDS,
    AgentConfig,
    DataSource,
    EvaluationConfig,
    InputChannel,
    JobConfigDocument,
    MlflowConfig,
    OutputDataConfig,
    StoppingCondition,
)
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.kinds.base import AgentReference, ModelReference
from heldout.job.kinds.hub_model import HubModel
from heldout.job.kinds.model_package import ModelPackageConfig
from heldout.job.locations import located
from heldout.pipeline.definition import EvaluationJobs, Shape, choose_shape
from heldout.pipeline.resolution import Policies
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where the runs go in MLflow."""

    uri: str
    """Any tracking URI, or a SageMaker MLflow ARN."""
    experiment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """One evaluation as it was asked for; relative paths are below `folder`. Raises ReferenceProblem for a dataset or an
    output that is empty: as a path it would be `folder` itself, or the root of the disk."""

    policies: Policies
    evaluate_base_model: bool
    agent: AgentReference
    dataset: str
    output: str
    folder: PurePath
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    max_runtime_seconds: int = DEFAULT_RUNTIME_SECONDS
    accept_eula: bool = True
    kms_key: str | None = None
    tracking: Tracking | None = None
    """None: MLflow hears nothing of it."""
    limit: int | None = None
    shuffle_seed: int | None = None
    runtime_url: str | None = None
    """Where an agent that is not on this machine reaches the Job Runtime."""

    def __post_init__(self) -> None:
        for name, location in (("dataset", self.dataset), ("output", self.output)):
            if not location.strip() or location.rstrip("/") in ("s3:", "file:"):
                raise ReferenceProblem(
                    f"{name} {location!r} names no place; expected a local path or s3://bucket/prefix"
                    " (is a variable of the shell not set?)"
                )

    @property
    def shape(self) -> Shape:
        """Which policies are played."""
        has_fine_tuned = self.policies.fine_tuned is not None
        return choose_shape(has_fine_tuned=has_fine_tuned, evaluate_base_model=self.evaluate_base_model)

    def jobs(self) -> EvaluationJobs:
        """The job documents. Raises ReferenceProblem when a model that is to be played is not known."""
        shape, policies = self.shape, self.policies
        base = fine_tuned = None
        if shape is not Shape.FINE_TUNED_ONLY:
            if policies.base is None:
                raise ReferenceProblem(
                    f"the base model of {policies.evaluated.text!r} is not known; name it: base_model=..., "
                    "--compare-with BASE, or base-model in its registry entry"
                )
            base = self._document(policies.base, None, BASE_RUN)
        if policies.fine_tuned is not None:
            fine_tuned = self._document(policies.fine_tuned, policies.base, FINE_TUNED_RUN)
        return EvaluationJobs(base, fine_tuned)

    def _document(self, model: ModelReference, base: ModelReference | None, run_name: str) -> JobConfigDocument:
        # The service wants the base model's name beside a package; where it is not known, the package's ARN stands in for it.
        package = ModelPackageConfig(input_model_package_arn=model.text) if model.needs_base else None
        if package is not None:
            model = base or HubModel(model.text)
        output = OutputDataConfig.at(located(self.output, self.folder))
        tracking = None if self.tracking is None else _mlflow_config(self.tracking, run_name)
        return JobConfigDocument(
            agent_config=AgentConfig(agent=self.agent.located(self.folder), runtime_url=self.runtime_url),
            input_data_config=(
                InputChannel(
                    data_source=DataSource.of(located(self.dataset, self.folder)),
                    limit=self.limit,
                    shuffle_seed=self.shuffle_seed,
                ),
            ),
            output_data_config=output.model_copy(update={"kms_key_arn": self.kms_key, "mlflow_config": tracking}),
            evaluation_config=EvaluationConfig.of(
                model.located(self.folder), self.hyperparameters, accept_eula=self.accept_eula
            ),
            model_package_config=package,
            stopping_condition=StoppingCondition(max_runtime_in_seconds=self.max_runtime_seconds),
        )


def _mlflow_config(tracking: Tracking, run_name: str) -> MlflowConfig:
    return MlflowConfig(
        mlflow_resource_arn=tracking.uri, mlflow_experiment_name=tracking.experiment, mlflow_run_name=run_name
    )
