"""The local backend: evaluations in folders, played on this machine by a process of their own.

It is also the base of every backend whose evaluations are folders. Such a backend sets `name` and replaces one step:

    launch      which process plays an evaluation that was started with `start`
    play_job    where one job of an evaluation is played

Everything else (the evaluator, the command line, the execution handle, the list of evaluations, resume) works with it as it is.
"""

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heldout.backends.base import Backend, StartedEvaluation
from heldout.backends.local.detached import start_detached
from heldout.backends.local.evaluation import play_evaluation
from heldout.backends.local.evaluation_index import find_evaluation, is_known, known_evaluations, remember
from heldout.backends.local.handle import LocalEvaluation
from heldout.backends.local.job import play_job
from heldout.backends.local.preparation import (
    check_same,
    define_evaluation,
    free_name,
    location_of,
    surroundings_of,
    tracking_for,
)
from heldout.backends.registry_file import read_registry
from heldout.backends.table import backend_named
from heldout.errors import InputError
from heldout.job.references import named_models
from heldout.pipeline.definition import Surroundings
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.request import EvaluationRequest
from heldout.pipeline.summary import Summary
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending
from heldout.runs.run import Run


class LocalBackend(Backend):
    """Evaluations on this machine."""

    name = "local"
    uses_session = False

    def serves(self, request: EvaluationRequest) -> bool:  # noqa: ARG002
        """True: a request for models or agents that are not on this machine gets an error that says how to map them."""
        return True

    def prepare(self, request: EvaluationRequest) -> "PreparedFolder":
        """Checks models, agent, dataset, output and tracking. Raises InputError."""
        tracking = tracking_for(request)
        name = request.name or free_name(request)
        location = location_of(request, name)
        surroundings = surroundings_of(request, name)
        definition = define_evaluation(request, tracking, surroundings)
        Evaluation.check_new(location, name)
        summary = Summary.of(request, output=location, region=surroundings.region, tracking=tracking)
        return PreparedFolder(self, request, name, location, surroundings, definition, summary)

    def open(self, reference: str, *, session: object | None, region: str | None) -> StartedEvaluation | None:  # noqa: ARG002
        """The evaluation in a folder or at an `s3://` URI, or one with an ARN that was started on this machine."""
        if reference.startswith("arn:") and not is_known(reference):
            return None
        return handle_on(find_evaluation(reference))

    def list(self, *, session: object | None, region: str | None) -> Iterator[StartedEvaluation]:  # noqa: ARG002
        """The evaluations that this backend started on this machine, the latest first."""
        for evaluation in known_evaluations():
            if evaluation.state.backend == self.name and region in (None, evaluation.state.region):
                yield handle_on(evaluation)

    def models(self, session: object | None) -> Sequence[str]:  # noqa: ARG002
        """Names of the models that need no address, and of those in the registry in force."""
        registry = read_registry()
        return sorted({*named_models(), *registry.models, *registry.model_packages})

    def agent_runtimes(self, session: object | None) -> Sequence[Mapping[str, str]]:  # noqa: ARG002
        """The AgentCore runtimes that the registry in force maps to this machine."""
        arns = [arn for arn in read_registry().agents if ":bedrock-agentcore:" in arn]
        names = [arn.rpartition("/")[2] for arn in arns]
        return [
            {"name": name, "runtime_id": name, "arn": arn, "status": "READY"}
            for name, arn in zip(names, arns, strict=True)
        ]

    def find(self, request: EvaluationRequest) -> Evaluation | None:
        """The existing evaluation of the request's name, to resume; None if there is none.

        Raises InputError when it differs from the request in anything that affects its results.
        """
        location = location_of(request, request.name or request.base_name)
        if not Evaluation.is_known(location):
            return None
        tracking_for(request)  # raises for a destination that cannot be used
        evaluation = Evaluation.open(location)
        check_same(evaluation, request)
        return evaluation

    def launch(self, evaluation: Evaluation) -> None:
        """Starts a process that plays the remaining steps, and returns. Raises RunError when a process works on the
        evaluation."""
        start_detached(evaluation)

    def play(self, evaluation: Evaluation, context: PlayContext) -> Coroutine[Any, Any, Ending]:
        """Plays the remaining steps of an evaluation in this process: see `play_evaluation`."""
        return play_evaluation(evaluation, context, self.play_job)

    def play_job(self, run: Run, context: PlayContext) -> Coroutine[Any, Any, Ending]:
        """Plays one job of an evaluation: see `heldout.backends.local.job.play_job`."""
        return play_job(run, context)


@dataclass(frozen=True, slots=True)
class PreparedFolder:
    """An evaluation that can be created in its folder, and played."""

    backend: LocalBackend
    request: EvaluationRequest
    name: str
    location: str
    surroundings: Surroundings
    definition: Mapping[str, Any]
    summary: Summary
    notes: Sequence[str] = ()

    def create(self) -> Evaluation:
        """Creates the evaluation, which is not begun yet. Raises RunError when its name was taken meanwhile."""
        evaluation = Evaluation.create(
            self.location,
            name=self.name,
            region=self.surroundings.region,
            definition=self.definition,
            registry=self.request.registry,
            tags=dict(self.surroundings.tags),
            pipeline_name=self.surroundings.pipeline_name,
            kms_key=self.request.kms_key,
            backend=self.backend.name,
        )
        remember(evaluation)
        return evaluation

    def start(self) -> StartedEvaluation:
        """Creates the evaluation and launches it."""
        evaluation = self.create()
        self.backend.launch(evaluation)
        return handle_on(evaluation)


def folder_backend(name: str) -> LocalBackend:
    """The backend of this name, which plays evaluation folders. Raises InputError for one that does not, or an unknown name."""
    backend = backend_named(name)
    if not isinstance(backend, LocalBackend):
        raise InputError(f"backend {name!r} does not play evaluations from a folder of this machine")
    return backend


def handle_on(evaluation: Evaluation) -> StartedEvaluation:
    """A handle on an evaluation. Its own backend resumes it."""
    return LocalEvaluation(evaluation, lambda one: folder_backend(one.state.backend).launch(one))


def evaluations_of_this_machine(region: str | None) -> Iterator[StartedEvaluation]:
    """Every evaluation that was started on this machine, by any backend, the latest first."""
    return (handle_on(one) for one in known_evaluations() if region in (None, one.state.region))
