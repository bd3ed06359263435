"""What a user's model and agent come to: strings, objects of the SageMaker SDK by duck type, trainers with their jobs.

A trainer is any object that holds the outcome of a training job: `output_model_package_arn`, `model_package_arn` or
`_latest_job.output_model_package_arn`; its base model and its agent are read from it the same way. Nothing is looked up
in AWS.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from heldout.errors import ReferenceProblem, shown
from heldout.job.kinds.base import ModelReference
from heldout.job.references import parse_model
from heldout.job.registry import Registry

_TRAINER_NAMES = frozenset({"MultiTurnRLTrainer", "AgentRFTJob"})
_AGENT_ATTRIBUTES = ("agent_config", "_agent_config", "agent_env")
_QUALIFIER_ATTRIBUTES = ("agent_qualifier", "_agent_qualifier", "bedrock_agentcore_qualifier")
_TRAINER_ATTRIBUTES = ("_latest_job", "output_model_package_arn", *_AGENT_ATTRIBUTES)
_BASE_ATTRIBUTES = (
    *("base_model_arn", "_base_model_arn", "_model_arn"),
    *("base_model_name", "_base_model_name", "_model_name"),
)
_AGENT_KEYS = ("AgentRuntimeArn", "AgentLambdaArn", "LambdaArn")


@dataclass(frozen=True, slots=True)
class Policies:
    """The models of an evaluation."""

    base: ModelReference | None
    """What the fine-tuned one was tuned from; None where that is not known."""
    fine_tuned: ModelReference | None

    @property
    def evaluated(self) -> ModelReference:
        """The one the evaluation is about."""
        model = self.fine_tuned or self.base
        assert model is not None  # there is one or the other
        return model


@dataclass(frozen=True, slots=True)
class TrainerOutput:
    """What a trainer says of its finished job."""

    model: str
    """The model package it made, or another model in a string."""
    bases: tuple[str, ...]
    """What it says of the base model, its ARN before its name."""
    agent: object | None
    qualifier: str | None


def is_trainer(model: object) -> bool:
    """Whether a model is a trainer, or its job."""
    if isinstance(model, str) or model is None:
        return False
    return type(model).__name__ in _TRAINER_NAMES or any(hasattr(model, name) for name in _TRAINER_ATTRIBUTES)


def read_trainer(trainer: object) -> TrainerOutput:
    """What `trainer` made and says of it. Raises ReferenceProblem when it has no finished job."""
    latest_job = getattr(trainer, "_latest_job", None)
    made = _first_text(trainer, ("output_model_package_arn", "model_package_arn")) or _first_text(
        latest_job, ("output_model_package_arn",)
    )
    if made is None:
        raise ReferenceProblem(
            f"The provided {type(trainer).__name__} has no completed training job (output model package ARN is "
            "unavailable). Run trainer.wait() and retry."
        )
    return TrainerOutput(
        model=made,
        bases=tuple(text for name in _BASE_ATTRIBUTES if (text := _text(getattr(trainer, name, None)))),
        agent=agent_of_trainer(trainer),
        qualifier=_first_text(trainer, _QUALIFIER_ATTRIBUTES),
    )


def agent_of_trainer(trainer: object) -> object | None:
    """The agent a trainer was given: what it holds, or the ARN in the configuration section it holds; None: none."""
    found = next((value for name in _AGENT_ATTRIBUTES if (value := getattr(trainer, name, None))), None)
    if not isinstance(found, Mapping):
        return found
    sections = (found.get("BedrockAgentCoreConfig"), found.get("CustomAgentLambdaConfig"), found)
    return next(
        (
            section[key]
            for section in sections
            if isinstance(section, Mapping)
            for key in _AGENT_KEYS
            if section.get(key)
        ),
        None,
    )


def model_text(model: object) -> str | None:
    """A model that is a string, or an object with `model_package_arn`; None for anything else."""
    return _text(model) or _first_text(model, ("model_package_arn",))


def agent_text(agent: object) -> str:
    """An agent that is a string, or an object with `materialize()`, `lambda_arn` or `arn`. Raises ReferenceProblem."""
    materialize = getattr(agent, "materialize", None)
    found = materialize() if callable(materialize) else agent
    text = _text(found) or _first_text(found, ("lambda_arn", "arn"))
    if text is None:
        raise ReferenceProblem(
            f"Could not resolve agent_config {shown(agent)} to an ARN. Pass a Bedrock AgentCore ARN string, a Lambda ARN "
            "string, or an object exposing `.lambda_arn` or `.materialize()`; or file.py:function, package.module:function "
            "or http://host:port."
        )
    return text


def resolve_policies(
    model: str,
    *,
    base: str | None,
    trained: TrainerOutput | None,
    registry: Registry,
) -> Policies:
    """What is evaluated when a user names `model`.

    base: the base model that the user named; with one, `model` is the fine-tuned one whatever it is. trained: the
    trainer it comes from. A model package, an adapter, and what a trainer made are fine-tuned; anything else is a base model.
    Raises ReferenceProblem for a string that names no model.
    """
    reference = parse_model(model)
    known_bases = [*([base] if base else []), *(trained.bases if trained else ())]
    own = registry.base_of(reference.aws_name) or reference.tuned_from
    if known_bases or trained or reference.is_fine_tuned:
        return Policies(_first_here(known_bases, registry) or own, reference)
    return Policies(reference, None)


def _first_here(bases: list[str], registry: Registry) -> ModelReference | None:
    """The first of these that is on this machine; if none is, the first; None when there are none."""
    references = [parse_model(base) for base in bases]
    for reference in references:
        if reference.aws_name is None or registry.model(reference.aws_name) is not None:
            return reference
    return references[0] if references else None


def _first_text(value: object, names: Iterable[str]) -> str | None:
    return next((text for name in names if (text := _text(getattr(value, name, None)))), None)


def _text(value: object) -> str | None:
    """A string that says something: an attribute the SDK has not filled in is another kind of object, or empty."""
    return value if isinstance(value, str) and value else None
