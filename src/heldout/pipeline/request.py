"""The request of an evaluation: models, agent, dataset and settings, parsed once into records and written down as jobs.

`evaluation_request` is the one way in. The evaluator and the command line call it; a backend takes what it returns.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from heldout.errors import ReferenceProblem, shown
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
from heldout.job.registry import Registry
from heldout.pipeline.candidates import CandidateNames, candidate_names, split_name
from heldout.pipeline.definition import EvaluationJobs, Shape, choose_shape
from heldout.pipeline.places import Dataset, Output, parse_dataset, parse_output
from heldout.pipeline.resolution import (
    Policies,
    agent_reference,
    default_name,
    is_trainer,
    model_text,
    read_trainer,
    resolve_policies,
)
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN
from heldout.storage.storage import expanded

NO_TRACKING = "off"
"""In place of a tracking URI: nothing is logged to MLflow."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """The MLflow destination of the runs."""

    uri: str
    """Any tracking URI, or a SageMaker MLflow ARN."""
    experiment: str


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """The MLflow destination as the user names it. The backend chooses the parts that are None."""

    uri: str | None = None
    """A tracking URI, a SageMaker MLflow ARN, or "off"."""
    experiment: str | None = None

    @property
    def is_off(self) -> bool:
        """Whether the user wants nothing logged."""
        return self.uri == NO_TRACKING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSettings:
    """The AWS account that managed jobs use. On this machine, only the region, the role and the tags appear in the definition."""

    session: object | None = None
    """The SDK's session or a boto3 session. None: the standard chain of credentials."""
    region: str | None = None
    role: str | None = None
    """An ARN or a name. None: the role that the session is signed in as."""
    model_package_group: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """The key and the value of each."""
    security_group_ids: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """A requested evaluation. Relative paths are below `folder`."""

    policies: Policies
    evaluate_base_model: bool
    agent: AgentReference
    dataset: Dataset
    output: Output
    folder: PurePath
    registry: Registry
    """Maps AWS names to things of this machine."""
    base_name: str
    """The beginning of the evaluation's name; the backend adds the time."""
    given_names: tuple[str | None, str | None] = (None, None)
    """The user's names for the evaluated model and for what it is compared with."""
    name: str | None = None
    """The evaluation's whole name. Managed jobs use `base_name` instead, because their names have to be unique."""
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    max_runtime_seconds: int = DEFAULT_RUNTIME_SECONDS
    accept_eula: bool = True
    kms_key: str | None = None
    tracking: TrackingSettings = TrackingSettings()
    account: AccountSettings = AccountSettings()
    limit: int | None = None
    """Plays only so many prompts."""
    shuffle_seed: int | None = None
    """Plays the prompts in an order drawn from this seed."""
    runtime_url: str | None = None
    """The URL at which an agent on another machine reaches the Job Runtime."""

    @property
    def shape(self) -> Shape:
        """Which policies are played."""
        has_fine_tuned = self.policies.fine_tuned is not None
        return choose_shape(has_fine_tuned=has_fine_tuned, evaluate_base_model=self.evaluate_base_model)

    @property
    def names(self) -> CandidateNames:
        """The names of the candidates. Raises ReferenceProblem when the user gives one name to both."""
        baseline = self.policies.base if self.policies.fine_tuned is not None else None
        return candidate_names(self.policies.evaluated, baseline, given=self.given_names)

    def jobs(self, tracking: Tracking | None = None, *, has_names: bool = False) -> EvaluationJobs:
        """The job documents. tracking: None logs nothing. has_names: runs get the candidates' names, else those of the service.

        Raises ReferenceProblem when the base model has to be played and is unknown.
        """
        shape, policies, names = self.shape, self.policies, self.names if has_names else None
        base = fine_tuned = None
        if shape is not Shape.FINE_TUNED_ONLY:
            if policies.base is None:
                raise ReferenceProblem(
                    f"the base model of {policies.evaluated.text!r} is not known; name it: base_model=..., "
                    "--compare-with BASE, or base-model in its registry entry"
                )
            own = names and (names.evaluated if policies.fine_tuned is None else names.baseline)
            base = self._document(policies.base, None, own, own or BASE_RUN, tracking)
        if policies.fine_tuned is not None:
            own = names and names.evaluated
            fine_tuned = self._document(policies.fine_tuned, policies.base, own, own or FINE_TUNED_RUN, tracking)
        return EvaluationJobs(base, fine_tuned)

    def _document(
        self,
        model: ModelReference,
        base: ModelReference | None,
        name: str | None,
        run_name: str,
        tracking: Tracking | None,
    ) -> JobConfigDocument:
        # The service wants the name of a package's base model too. If that is unknown, the package's ARN takes its place.
        package = ModelPackageConfig(input_model_package_arn=model.text) if model.needs_base else None
        if package is not None:
            model = base or HubModel(model.text)
        output = OutputDataConfig.at(self.output.below(self.folder))
        mlflow = None if tracking is None else _mlflow_config(tracking, run_name)
        return JobConfigDocument(
            agent_config=AgentConfig(agent=self.agent.located(self.folder), runtime_url=self.runtime_url),
            input_data_config=(
                InputChannel(
                    data_source=DataSource.of(self.dataset.below(self.folder)),
                    limit=self.limit,
                    shuffle_seed=self.shuffle_seed,
                ),
            ),
            output_data_config=output.model_copy(update={"kms_key_arn": self.kms_key, "mlflow_config": mlflow}),
            evaluation_config=EvaluationConfig.of(
                model.located(self.folder),
                self.hyperparameters,
                accept_eula=self.accept_eula,
                candidate_name=name,
            ),
            model_package_config=package,
            stopping_condition=StoppingCondition(max_runtime_in_seconds=self.max_runtime_seconds),
        )


def evaluation_request(
    *,
    model: object,
    agent: object | None,
    dataset: str,
    output: str,
    registry: Registry,
    base_model: str | None = None,
    evaluate_base_model: bool = False,
    agent_qualifier: str | None = None,
    name: str | None = None,
    base_name: str | None = None,
    hyperparameters: Hyperparameters | None = None,
    max_runtime_seconds: int = DEFAULT_RUNTIME_SECONDS,
    accept_eula: bool = True,
    kms_key: str | None = None,
    tracking: TrackingSettings = TrackingSettings(),  # frozen
    account: AccountSettings = AccountSettings(),  # frozen
    limit: int | None = None,
    shuffle_seed: int | None = None,
    runtime_url: str | None = None,
) -> EvaluationRequest:
    """Parses everything that a user gives for an evaluation. A leading `~` of a path stands for the home folder.

    model: a string, also `NAME=MODEL`, an object with `model_package_arn`, or a trainer with a finished job. agent: a string, an
    object with `materialize()`, `lambda_arn` or `arn`, or None for the trainer's. base_name: by default drawn from the model.
    Raises ReferenceProblem for a reference that names nothing usable; no file and no network is read.
    """
    trained = read_trainer(model) if is_trainer(model) else None
    text = trained.model if trained else model_text(model)
    if text is None:
        raise ReferenceProblem(
            f"model {shown(model)} is not a model's name, path, URL or ARN, a model package or a trainer"
        )
    evaluated, baseline = split_name(text), None if base_model is None else split_name(base_model)
    return EvaluationRequest(
        policies=resolve_policies(
            expanded(evaluated.text),
            base=None if baseline is None else expanded(baseline.text),
            trained=trained,
            registry=registry,
        ),
        evaluate_base_model=evaluate_base_model,
        agent=agent_reference(agent, agent_qualifier, trained),
        dataset=parse_dataset(expanded(dataset)),
        output=parse_output(expanded(output)),
        folder=Path.cwd(),
        registry=registry,
        base_name=base_name or f"eval-{default_name(evaluated.name or model_text(model) or '')}-{secrets.token_hex(4)}",
        given_names=(evaluated.name, None if baseline is None else baseline.name),
        name=name,
        hyperparameters=hyperparameters or Hyperparameters(),
        max_runtime_seconds=max_runtime_seconds,
        accept_eula=accept_eula,
        kms_key=kms_key,
        tracking=tracking,
        account=account,
        limit=limit,
        shuffle_seed=shuffle_seed,
        runtime_url=runtime_url,
    )


def _mlflow_config(tracking: Tracking, run_name: str) -> MlflowConfig:
    return MlflowConfig(
        mlflow_resource_arn=tracking.uri, mlflow_experiment_name=tracking.experiment, mlflow_run_name=run_name
    )
