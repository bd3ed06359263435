"""Models and agents as users give them, resolved to records: strings, objects of the SageMaker SDK, trainers with their jobs.

SDK objects are recognized by their attributes. A trainer is any object that holds the outcome of a training job:
`output_model_package_arn`, `model_package_arn` or `_latest_job.output_model_package_arn`; its base model and its
agent are read from it the same way. Nothing is looked up in AWS.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from heldout.errors import ReferenceProblem, shown
from heldout.job.kinds.base import AgentReference, ModelReference
from heldout.job.references import parse_agent, parse_model
from heldout.job.registry import Registry
from heldout.storage.storage import expanded

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
    """The base model of the fine-tuned one; None if it is unknown."""
    fine_tuned: ModelReference | None

    @property
    def evaluated(self) -> ModelReference:
        """The model that the evaluation is about: the fine-tuned one if there is one."""
        model = self.fine_tuned or self.base
        assert model is not None  # every evaluation has at least one
        return model


@dataclass(frozen=True, slots=True)
class TrainerOutput:
    """The attributes of a trainer whose job has finished."""

    model: str
    """The model package that the job made, or another model in a string."""
    bases: tuple[str, ...]
    """The base model as the trainer names it, its ARN before its name."""
    agent: object | None
    qualifier: str | None


def is_trainer(model: object) -> bool:
    """Whether a model is a trainer, or its job."""
    if isinstance(model, str) or model is None:
        return False
    return type(model).__name__ in _TRAINER_NAMES or any(hasattr(model, name) for name in _TRAINER_ATTRIBUTES)


def read_trainer(trainer: object) -> TrainerOutput:
    """Reads the outcome of a trainer's job. Raises ReferenceProblem when the job has not finished."""
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
    """The agent of a trainer: an object, or the ARN in a configuration section; None if the trainer names no agent."""
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
    """The text of a model that is a string, or an object with `model_package_arn`; None for any other value."""
    return _text(model) or _first_text(model, ("model_package_arn",))


def agent_text(agent: object) -> str:
    """The text of an agent that is a string, or an object with `materialize()`, `lambda_arn` or `arn`. Raises
    ReferenceProblem."""
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
    """Resolves the models of an evaluation of `model`.

    base: the base model that the user named, which makes `model` the fine-tuned one. trained: the trainer that made
    `model`. A model package, an adapter and the output of a trainer are fine-tuned; any other model is a base model.
    Raises ReferenceProblem for a string that names no model.
    """
    reference = parse_model(model)
    known_bases = [*([base] if base else []), *(trained.bases if trained else ())]
    own = registry.base_of(reference.aws_name) or reference.tuned_from
    if known_bases or trained or reference.is_fine_tuned:
        return Policies(_first_here(known_bases, registry) or own, reference)
    return Policies(reference, None)


def default_name(text: str) -> str:
    """A short word for a model that names evaluations: letters and digits, at most 20; `model` if there are none.

    `text` is the model as it was given. Paths and ARNs count by their last part, without a version.
    """
    unversioned = re.sub(r"(:model-package/[^/]+|:hub-content/.+)/[\d.]+$", r"\1", text.rstrip("/"))
    last = re.split(r"[#/]", unversioned)[-1]
    return re.sub(r"[^a-zA-Z0-9]", "", re.split(r"[-_.+]", last)[0])[:20] or "model"


def agent_reference(agent: object, qualifier: str | None, trained: TrainerOutput | None) -> AgentReference:
    """The agent to evaluate with. A given agent takes precedence over the trainer's. Raises ReferenceProblem if there is none."""
    given = agent if agent is not None or trained is None else trained.agent
    if given is None:
        raise ReferenceProblem(
            "'agent_config' resolved to None. A valid agent is required for evaluation. Provide either: a Bedrock "
            "AgentCore ARN (arn:aws:bedrock-agentcore:<region>:<account>:runtime/<id>), a Lambda ARN "
            "(arn:aws:lambda:<region>:<account>:function:<name>), file.py:function, package.module:function or "
            "http://host:port."
        )
    text = expanded(agent_text(given))
    try:
        return parse_agent(text, qualifier or (trained.qualifier if trained else None))
    except ReferenceProblem as error:
        if isinstance(agent, str):
            raise
        raise ReferenceProblem(
            f"Resolved agent ARN {shown(text, 160)} is neither a Bedrock AgentCore ARN nor a Lambda ARN: {error}"
        ) from error


def _first_here(bases: list[str], registry: Registry) -> ModelReference | None:
    """The first of `bases` that is on this machine, else the first; None if there are none."""
    references = [parse_model(base) for base in bases]
    for reference in references:
        if reference.aws_name is None or registry.model(reference.aws_name) is not None:
            return reference
    return references[0] if references else None


def _first_text(value: object, names: Iterable[str]) -> str | None:
    return next((text for name in names if (text := _text(getattr(value, name, None)))), None)


def _text(value: object) -> str | None:
    """`value` if it is a string that is not empty. SDK attributes without a value are empty or of another type."""
    return value if isinstance(value, str) and value else None
