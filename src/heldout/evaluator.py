"""MultiTurnRLEvaluator: what to evaluate. The surface of the SageMaker Python SDK's evaluator, run on this machine.

Names, defaults and the meaning of every field are those of `sagemaker.train.evaluate.MultiTurnRLEvaluator`; where an AWS
form is taken, a local one is too. What this one does not do: guess. A name or a value that cannot be right is an error
when it is given, and no value that was set is left out.
"""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heldout.backends.detached import start_detached
from heldout.backends.registries import read_registry
from heldout.backends.starting import create_evaluation, free_name, tracking_for
from heldout.errors import ReferenceProblem, shown
from heldout.evaluator_fields import EMBEDDED_NAMES, EvaluatorFields, attribute
from heldout.execution import Execution
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.locations import located
from heldout.job.references import AgentContainer, AgentReference, EntryPoint, parse_agent
from heldout.job.registry import Registry
from heldout.pipeline.definition import Shape, model_uri
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.request import EvaluationRequest
from heldout.pipeline.resolution import (
    TrainerOutput,
    agent_text,
    is_trainer,
    model_text,
    read_trainer,
    resolve_policies,
    short_name,
)

_RULE = "─" * 60


class MultiTurnRLEvaluator(EvaluatorFields):
    """Evaluates a multi-turn RL agent's policy on held-out prompts.

    Three shapes, chosen by what is given: a base model alone; a fine-tuned model alone (a model package, an adapter, or the
    trainer that made it); or, with `evaluate_base_model`, both and their comparison.

        evaluator = MultiTurnRLEvaluator(model=..., agent_config=..., dataset=..., s3_output_path=...)
        evaluator.hyperparameters.eval_group_size = 4
        execution = evaluator.evaluate()
        execution.wait()
        execution.show_results()

    Raises InputError (a ValueError), one line, for a field that is missing, unknown, or has a value that cannot be right;
    the same when a field is assigned.
    """

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The job's hyperparameters: read and set as attributes, checked when they are set. All have defaults."""
        return self._hyperparameters

    def evaluate(self) -> Execution:
        """Starts the evaluation in a process of its own, prints a summary, and returns at once.

        Raises InputError when something that was given cannot be used (a trainer that has not finished, an agent, dataset or
        model that is not there); nothing is started or written then.
        """
        registry = read_registry(self.registry)
        trained = read_trainer(self.model) if is_trainer(self.model) else None
        request = self._request(registry, trained)
        evaluation = create_evaluation(
            request,
            registry,
            name=free_name(self.base_eval_name or self._default_name(), request.output, registry),
            region=self.region or getattr(self.sagemaker_session, "boto_region_name", None),
            role=self.role,
            tags=[(tag["Key"], tag["Value"]) for tag in self.tags or []],
            security_group_ids=attribute(self.networking, "security_group_ids") or (),
            subnets=attribute(self.networking, "subnets") or (),
        )
        start_detached(evaluation)
        _print_summary(request, evaluation)
        return Execution(evaluation)

    @classmethod
    def get_all(cls, session: Any = None, region: str | None = None) -> Iterator[Execution]:
        """Every evaluation started on this machine, the last one first.

        session: taken as the SDK takes it, and not needed here. region: only those of this region.
        """
        return Execution.get_all(session=session, region=region)

    @staticmethod
    def list_supported_models(session: Any = None) -> list[str]:  # noqa: ARG004
        """Names of the models that can be evaluated here: the embedded ones and those of the registry in force."""
        registry = read_registry()
        return sorted({*EMBEDDED_NAMES, *registry.models, *registry.model_packages})

    @staticmethod
    def list_bedrock_agentcore_runtimes(session: Any = None) -> list[dict[str, str]]:  # noqa: ARG004
        """The AgentCore runtimes that the registry in force maps: `name`, `runtime_id`, `arn` and `status` of each."""
        return [
            {
                "name": arn.rpartition("/")[2],
                "runtime_id": arn.rpartition("/")[2],
                "arn": arn,
                "status": "READY",
            }
            for arn in read_registry().agents
            if ":bedrock-agentcore:" in arn
        ]

    def _request(self, registry: Registry, trained: TrainerOutput | None) -> EvaluationRequest:
        model = trained.model if trained else model_text(self.model)
        assert model is not None  # the validator saw to it
        policies = resolve_policies(
            model, base=self.base_model, trained=trained, registry=registry, embedded_names=EMBEDDED_NAMES
        )
        # The handle must find the evaluation from wherever the notebook has moved to since.
        output = located(self.s3_output_path, Path.cwd())
        return EvaluationRequest(
            policies=policies,
            evaluate_base_model=self.evaluate_base_model,
            agent=self._agent(trained),
            dataset=self.dataset,
            output=output,
            folder=Path.cwd(),
            hyperparameters=self._hyperparameters,
            max_runtime_seconds=self.stopping_condition,
            accept_eula=self.accept_eula,
            kms_key=self.kms_key_id,
            tracking=tracking_for(self.mlflow_resource_arn, self.mlflow_experiment_name, policies, output, registry),
            runtime_url=self.runtime_url,
        )

    def _agent(self, trained: TrainerOutput | None) -> AgentReference:
        """The agent; what was given here wins over the trainer's."""
        given = self.agent_config
        if given is None and trained is not None:
            given = trained.agent
        if given is None:
            raise ReferenceProblem(
                "'agent_config' resolved to None. A valid agent is required for evaluation. Provide either: a Bedrock "
                "AgentCore ARN (arn:aws:bedrock-agentcore:<region>:<account>:runtime/<id>), a Lambda ARN "
                "(arn:aws:lambda:<region>:<account>:function:<name>), file.py:function, package.module:function or "
                "http://host:port."
            )
        text = agent_text(given)
        qualifier = self.agent_qualifier or (trained.qualifier if trained else None)
        try:
            return parse_agent(text, qualifier)
        except ReferenceProblem as error:
            raise ReferenceProblem(
                f"Resolved agent ARN {shown(text, 160)} is neither a Bedrock AgentCore ARN nor a Lambda ARN: {error}"
            ) from error

    def _default_name(self) -> str:
        last = re.split(r"[#/]", (model_text(self.model) or "model").rstrip("/"))[-1]
        word = re.sub(r"[^a-zA-Z0-9]", "", re.split(r"[-_.+]", last)[0])[:20]
        return f"eval-{word or 'model'}-{uuid.uuid4().hex[:8]}"


def _print_summary(request: EvaluationRequest, evaluation: Evaluation) -> None:
    played = request.policies.evaluated
    base = request.policies.base
    lines = {
        "Model": short_name(base or played, model_uri(base or played)),
        "Fine-tuned": model_uri(played) if request.shape is not Shape.BASE_ONLY else None,
        "Eval mode": request.shape,
        "Dataset": request.dataset,
        "Agent": _agent_uri(request.agent),
        "Output": evaluation.location,
        "Region": evaluation.state.region,
        "MLflow": "off" if request.tracking is None else request.tracking.uri,
    }
    print(f"\n{_RULE}\n  MTRL Evaluation Job\n{_RULE}")
    for name, value in lines.items():
        if value is not None:
            print(f"  {name:<15}: {value}")
    print(f"{_RULE}\n  Pipeline execution started: {evaluation.state.arn}\n")


def _agent_uri(agent: AgentReference) -> str:
    match agent:
        case EntryPoint(uri) | AgentContainer(uri):
            return uri
        case _:
            return agent.arn
