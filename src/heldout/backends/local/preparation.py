"""Preparation of an evaluation on this machine: name, place, tracking and pipeline definition, checked before
anything is written."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from heldout.agents.base import check_agent
from heldout.backends.local.services import check_document
from heldout.errors import InputError, shown
from heldout.job.document import DataSource, JobConfigDocument
from heldout.job.references import checked_tracking_uri
from heldout.pipeline.definition import PIPELINE_PREFIX, Surroundings, render
from heldout.pipeline.evaluation import LOCAL_ACCOUNT, Evaluation
from heldout.pipeline.request import EvaluationRequest, Tracking
from heldout.pipeline.steps import JobStep
from heldout.runs.remote_mirror import state_folder
from heldout.storage import is_remote
from heldout.tracking.connection import check_store, require_packages

_REGION_VARIABLES = ("SAGEMAKER_REGION", "AWS_REGION", "AWS_DEFAULT_REGION")
_DEFAULT_REGION = "us-west-2"
_LOCAL_ROLE = f"arn:aws:iam::{LOCAL_ACCOUNT}:role/heldout"


def surroundings_of(request: EvaluationRequest, name: str) -> Surroundings:
    """The surroundings of an evaluation of this name in its definition. On this machine they have no effect."""
    account = request.account
    return Surroundings(
        region=account.region or getattr(account.session, "boto_region_name", None) or default_region(),
        account=LOCAL_ACCOUNT,
        role_arn=account.role or _LOCAL_ROLE,
        pipeline_name=f"{PIPELINE_PREFIX}-{name}",
        tags=account.tags,
        security_group_ids=account.security_group_ids,
        subnets=account.subnets,
    )


def define_evaluation(
    request: EvaluationRequest, tracking: Tracking | None, surroundings: Surroundings
) -> dict[str, Any]:
    """The pipeline definition of an evaluation that could be started on this machine now.

    Raises InputError for a model, agent or dataset that cannot be used. Starts and writes nothing.
    """
    check_agent(request.agent, Path(request.folder))  # as it was given: in the documents its path is absolute
    jobs = request.jobs(tracking, has_names=True)
    for job in jobs.all:
        check_document(request.registry.localized(job))
    return render(jobs, surroundings)


def location_of(request: EvaluationRequest, name: str) -> str:
    """The place of the evaluation of this name: a folder or an `s3://` URI below the output."""
    return f"{request.registry.location(str(request.output)).rstrip('/')}/{name}"


def free_name(request: EvaluationRequest) -> str:
    """The request's base name and the time in seconds, followed by a number if that name is taken."""
    stamped = f"{request.base_name}-{int(time.time())}"
    name, number = stamped, 1
    while Evaluation.is_at(location_of(request, name)):
        number += 1
        name = f"{stamped}-{number}"
    return name


def tracking_for(request: EvaluationRequest) -> Tracking | None:
    """The MLflow destination of a request: the URI that the user named, or the default; None for "off".

    Raises MissingExtra when a named store needs a package that is not installed. Without MLflow, the default only
    causes a warning at the end. Raises ReferenceProblem for a URI with a password, one that MLflow does not know, or
    a server that does not answer.
    """
    settings = request.tracking
    if settings.is_off:
        return None
    if settings.uri is not None:
        require_packages(settings.uri)
    output = request.registry.location(str(request.output))
    store = checked_tracking_uri(settings.uri or default_tracking_uri(output))
    check_store(store)
    return Tracking(store, settings.experiment or default_experiment(request))


def default_experiment(request: EvaluationRequest) -> str:
    """The MLflow experiment of evaluations of this agent on this dataset: `math.py:solve on prompts.jsonl`."""
    dataset = DataSource.of(request.dataset.below(Path(request.folder))).dataset
    return f"{_last_part(request.agent.text)} on {_last_part(dataset)}"


def default_tracking_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in the output, or in this machine's state folder for a remote output."""
    folder = state_folder() if is_remote(output) else Path(output).absolute()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"


def default_region() -> str:
    """The AWS region that the environment names, else us-west-2."""
    return named_region() or _DEFAULT_REGION


def named_region() -> str | None:
    """The AWS region that the environment names; None if it names none."""
    return next((region for name in _REGION_VARIABLES if (region := os.environ.get(name))), None)


def check_same(evaluation: Evaluation, request: EvaluationRequest) -> None:
    """Raises InputError when a request to resume an evaluation differs from the evaluation in anything that affects its results.

    The MLflow destination and the maximum runtime may differ.
    """
    started = [step.document for step in evaluation.definition.steps if isinstance(step, JobStep)]
    # An older version began it without names.
    has_names = any(document.evaluation_config.candidate_name is not None for document in started)
    requested = request.jobs(has_names=has_names).all
    differs = next(_differences(started, requested), None)
    if differs is not None:
        raise InputError(
            f"evaluation {evaluation.location} cannot be resumed with these settings: it {differs}; give what it was started "
            "with, or leave --resume out and give another --name"
        )


def _last_part(location: str) -> str:
    """The last part of a path, URL or ARN, without an ARN's version."""
    if location.startswith("arn:"):
        location = re.sub(r"(:hub-content/.+|:function:[^:]+)[/:][^/:]+$", r"\1", location).replace(":", "/")
    return location.rstrip("/").rpartition("/")[2]


def _counted_models(number: int) -> str:
    return "one model" if number == 1 else f"{number} models"


def _differences(started: Sequence[JobConfigDocument], requested: Sequence[JobConfigDocument]) -> Iterator[str]:
    if len(started) != len(requested):
        yield f"plays {_counted_models(len(started))}, not {_counted_models(len(requested))}"
        return
    for job, other in zip(started, requested, strict=True):
        before, now = _settings_of(job), _settings_of(other)
        for place in sorted(before.keys() | now.keys()):
            if before.get(place) != now.get(place):
                yield f"has {place} {shown(before.get(place), 160)}, not {shown(now.get(place), 160)}"


def _settings_of(job: JobConfigDocument) -> dict[str, object]:
    """The settings that affect the results of a job: document values by path, hyperparameters by name, defaults included."""
    sections = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    chosen = {
        name: sections.get(name)
        for name in ("AgentConfig", "InputDataConfig", "EvaluationConfig", "ModelPackageConfig")
    }
    values = {place: value for place, value in _leaves("", chosen) if "HyperParameters" not in place}
    return values | job.hyperparameters.to_dict()


def _leaves(place: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{place}.{name}" if place else name, inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{place}[{number}]", inner)
    else:
        yield place, value
