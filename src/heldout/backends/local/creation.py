"""From what is asked for to an evaluation that can be executed: checked, named, written down and remembered."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from heldout.agents.base import check_agent
from heldout.backends.local.evaluation_index import remember
from heldout.backends.local.services import check_document
from heldout.errors import InputError, shown
from heldout.job.document import JobConfigDocument
from heldout.job.references import checked_tracking_uri
from heldout.job.registry import Registry
from heldout.pipeline.definition import PIPELINE_PREFIX, Surroundings, render
from heldout.pipeline.evaluation import LOCAL_ACCOUNT, Evaluation
from heldout.pipeline.request import EvaluationRequest, Tracking
from heldout.pipeline.resolution import Policies
from heldout.pipeline.steps import JobStep
from heldout.runs.remote_mirror import state_folder
from heldout.storage import is_remote
from heldout.tracking.connection import check_store, require_packages

NO_TRACKING = "off"
"""In the place of a tracking URI: MLflow hears nothing."""
_REGION_VARIABLES = ("SAGEMAKER_REGION", "AWS_REGION", "AWS_DEFAULT_REGION")
_DEFAULT_REGION = "us-west-2"
_LOCAL_ROLE = f"arn:aws:iam::{LOCAL_ACCOUNT}:role/heldout"


def create_evaluation(
    request: EvaluationRequest, registry: Registry, *, name: str, surroundings: Surroundings | None = None
) -> Evaluation:
    """A new evaluation in the request's output, not yet begun.

    Raises InputError, and writes nothing, when something it needs is not there or there is an evaluation of this name.
    """
    around = surroundings or local_surroundings(name)
    evaluation = Evaluation.create(
        location_of(request.output, name, registry),
        name=name,
        region=around.region,
        definition=define_evaluation(request, registry, around),
        registry=registry,
        tags=dict(around.tags),
        pipeline_name=around.pipeline_name,
        kms_key=request.kms_key,
    )
    remember(evaluation)
    return evaluation


def define_evaluation(request: EvaluationRequest, registry: Registry, surroundings: Surroundings) -> dict[str, Any]:
    """The pipeline definition of an evaluation that could be started on this machine now.

    Raises InputError when something it needs is not there. Nothing is started or written.
    """
    check_agent(request.agent, Path(request.folder))  # as it was given: the documents have it with its whole path
    jobs = request.jobs()
    for job in jobs.all:
        check_document(registry.localized(job))
    return render(jobs, surroundings)


def check_same(evaluation: Evaluation, request: EvaluationRequest) -> None:
    """Raises InputError when an evaluation plays something else than a request that would go on with it asks for.

    Where its runs are logged, and how long they may take, may differ: neither changes what comes out.
    """
    started = [step.document for step in evaluation.definition.steps if isinstance(step, JobStep)]
    asked = request.jobs().all
    differs = next(_differences(started, asked), None)
    if differs is not None:
        raise InputError(
            f"evaluation {evaluation.location} is not the one to go on with: it {differs}; give what it was started with, or"
            " leave --resume out and give another --name"
        )


def _counted_models(number: int) -> str:
    return "one model" if number == 1 else f"{number} models"


def _differences(started: Sequence[JobConfigDocument], asked: Sequence[JobConfigDocument]) -> Iterator[str]:
    if len(started) != len(asked):
        yield f"plays {_counted_models(len(started))}, not {_counted_models(len(asked))}"
        return
    for job, other in zip(started, asked, strict=True):
        before, now = _said_in(job), _said_in(other)
        for place in sorted(before.keys() | now.keys()):
            if before.get(place) != now.get(place):
                yield f"has {place} {shown(before.get(place), 160)}, not {shown(now.get(place), 160)}"


def _said_in(job: JobConfigDocument) -> dict[str, object]:
    """What decides a job's outcome, by its place in the document; hyperparameters by their names, defaults included."""
    sections = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    chosen = {
        name: sections.get(name)
        for name in ("AgentConfig", "InputDataConfig", "EvaluationConfig", "ModelPackageConfig")
    }
    said = {place: value for place, value in _leaves("", chosen) if "HyperParameters" not in place}
    return said | job.hyperparameters.to_dict()


def _leaves(place: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{place}.{name}" if place else name, inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{place}[{number}]", inner)
    else:
        yield place, value


def local_surroundings(
    name: str,
    *,
    region: str | None = None,
    role: str | None = None,
    tags: Sequence[tuple[str, str]] = (),
    security_group_ids: Sequence[str] = (),
    subnets: Sequence[str] = (),
) -> Surroundings:
    """What the definition of an evaluation on this machine says beside its jobs; none of it means anything here."""
    return Surroundings(
        region=region or default_region(),
        account=LOCAL_ACCOUNT,
        role_arn=role or _LOCAL_ROLE,
        pipeline_name=f"{PIPELINE_PREFIX}-{name}",
        tags=tuple(tags),
        security_group_ids=tuple(security_group_ids),
        subnets=tuple(subnets),
    )


def location_of(output: str, name: str, registry: Registry) -> str:
    """Where the evaluation of this name lies, below an output as it was given."""
    return f"{registry.location(output).rstrip('/')}/{name}"


def free_name(base: str, output: str, registry: Registry) -> str:
    """`base` and the time, in seconds; and a number where that is taken."""
    stamped = f"{base}-{int(time.time())}"
    name, number = stamped, 1
    while Evaluation.is_at(location_of(output, name, registry)):
        number += 1
        name = f"{stamped}-{number}"
    return name


def tracking_for(
    uri: str | None, experiment: str | None, policies: Policies, output: str, registry: Registry
) -> Tracking | None:
    """Where the runs go in MLflow: `uri`, or the default when it is None; None for "off".

    Raises MissingExtra when a store that was asked for needs a package that is not installed. The default needs MLflow too,
    but nobody asked for it: without it the evaluation says at its end that it was not logged. ReferenceProblem for a URI with a
    password, one that MLflow does not know, or a server that does not answer.
    """
    if uri == NO_TRACKING:
        return None
    if uri is not None:
        require_packages(uri)
    store = checked_tracking_uri(uri or default_tracking_uri(registry.location(output)))
    check_store(store)
    model = policies.base or policies.evaluated
    return Tracking(store, experiment or f"mtrl-eval-{model.label}")


def default_tracking_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file: in the output or, for a remote one, in this machine's state folder."""
    folder = state_folder() if is_remote(output) else Path(output).absolute()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"


def default_region() -> str:
    """The AWS region that the environment names, or one that stands in for it."""
    return named_region() or _DEFAULT_REGION


def named_region() -> str | None:
    """The AWS region that the environment names, if it names one."""
    return next((region for name in _REGION_VARIABLES if (region := os.environ.get(name))), None)
