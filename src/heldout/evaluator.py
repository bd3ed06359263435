"""MultiTurnRLEvaluator: what to evaluate. The surface of the SageMaker Python SDK's evaluator, run on this machine or in AWS.

Names, defaults and the meaning of every field are those of `sagemaker.train.evaluate.MultiTurnRLEvaluator`; where an AWS
form is taken, a local one is too. What this one does not do: guess. A name or a value that cannot be right is an error
when it is given, and no value that was set is left out.
"""

import dataclasses
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

from heldout.backends.base import Backend
from heldout.backends.local.creation import (
    create_evaluation,
    define_evaluation,
    free_name,
    local_surroundings,
    location_of,
    tracking_for,
)
from heldout.backends.local.detached import start_detached
from heldout.backends.local.handle import LocalEvaluation
from heldout.backends.registry_file import read_registry
from heldout.backends.selection import backend_to_ask, choose_backend
from heldout.errors import ReferenceProblem, shown
from heldout.evaluator_fields import EvaluatorFields, attribute
from heldout.execution import Execution
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.kinds.base import AgentReference
from heldout.job.locations import located
from heldout.job.references import named_models, parse_agent
from heldout.job.registry import Registry
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.request import EvaluationRequest
from heldout.pipeline.resolution import (
    TrainerOutput,
    agent_text,
    is_trainer,
    model_text,
    read_trainer,
    resolve_policies,
)
from heldout.pipeline.summary import Said
from heldout.storage.storage import expanded


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

    @overload
    def evaluate(self, *, dry_run: Literal[False] = False) -> Execution: ...

    @overload
    def evaluate(self, *, dry_run: Literal[True]) -> str: ...

    def evaluate(self, *, dry_run: bool = False) -> Execution | str:
        """Starts the evaluation, prints a summary, and returns at once.

        On this machine it runs in a process of its own, in AWS as a pipeline execution. dry_run: checks all that can be checked,
        starts and writes nothing, and prints and returns the pipeline definition that would be executed, as JSON.

        Raises InputError when something that was given cannot be used (a trainer that has not finished, an agent, dataset or
        model that is not there), CloudError when AWS refuses a request; nothing is started or written then.
        """
        registry = read_registry(self.registry)
        trained = read_trainer(self.model) if is_trainer(self.model) else None
        request = self._request(registry, trained)
        backend = self.backend or choose_backend(request.policies.evaluated, request.agent, registry)
        if backend == "sagemaker":
            return self._evaluate_in_aws(request, registry, dry_run=dry_run)
        return self._evaluate_here(request, registry, dry_run=dry_run)

    @classmethod
    def get_all(
        cls, session: Any = None, region: str | None = None, *, backend: Backend | None = None
    ) -> Iterator[Execution]:
        """Every evaluation that is still there, the last one first.

        session: the SDK's, or a boto3 session. backend: where; by default in AWS when a session is given, else on this machine.
        region: only those of this region.
        """
        return Execution.get_all(session=session, region=region, backend=backend)

    @staticmethod
    def list_supported_models(session: Any = None, *, backend: Backend | None = None) -> list[str]:
        """Names of the models that can be evaluated: with a session (the SDK's, or a boto3 session) those of the public hub.

        On this machine: the embedded ones and those of the registry in force. backend: as for `get_all`. Raises CloudError.
        """
        if backend_to_ask(backend, session) == "sagemaker":
            from heldout.backends.sagemaker.account import Account
            from heldout.backends.sagemaker.models import supported_models

            return supported_models(Account(session))
        registry = read_registry()
        return sorted({*named_models(), *registry.models, *registry.model_packages})

    @staticmethod
    def list_bedrock_agentcore_runtimes(session: Any = None, *, backend: Backend | None = None) -> list[dict[str, str]]:
        """`name`, `runtime_id`, `arn` and `status` of AgentCore runtimes: with a session those of its account.

        On this machine: those that the registry in force maps. backend: as for `get_all`. Raises CloudError.
        """
        if backend_to_ask(backend, session) == "sagemaker":
            from heldout.backends.sagemaker.account import Account
            from heldout.backends.sagemaker.checks import agentcore_runtimes

            return agentcore_runtimes(Account(session))
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

    def _evaluate_here(self, request: EvaluationRequest, registry: Registry, *, dry_run: bool) -> Execution | str:
        tracking = tracking_for(
            self.mlflow_resource_arn, self.mlflow_experiment_name, request.policies, request.output, registry
        )
        request = dataclasses.replace(request, tracking=tracking)
        name = free_name(self.base_eval_name or self._default_name(), request.output, registry)
        surroundings = local_surroundings(
            name,
            region=self.region or getattr(self.sagemaker_session, "boto_region_name", None),
            role=self.role,
            tags=self._tags(),
            security_group_ids=attribute(self.networking, "security_group_ids") or (),
            subnets=attribute(self.networking, "subnets") or (),
        )
        location = location_of(request.output, name, registry)
        said = Said.of(request, output=location, region=surroundings.region, mlflow=tracking)
        if dry_run:
            Evaluation.check_new(location, name)
            return said.dry_run(define_evaluation(request, registry, surroundings))
        evaluation = create_evaluation(request, registry, name=name, surroundings=surroundings)
        start_detached(evaluation)
        said.started(evaluation.state.arn)
        return Execution(LocalEvaluation(evaluation))

    def _evaluate_in_aws(self, request: EvaluationRequest, registry: Registry, *, dry_run: bool) -> Execution | str:
        # boto3 takes most of a second to load; an evaluation on this machine does without.
        from heldout.backends.sagemaker.account import Account
        from heldout.backends.sagemaker.creation import CloudSettings, prepare, start

        account = Account(self.sagemaker_session, self.region)
        settings = CloudSettings(
            name=self.base_eval_name or self._default_name(),
            role=self.role,
            mlflow=self.mlflow_resource_arn,
            experiment=self.mlflow_experiment_name,
            model_package_group=self.model_package_group,
            tags=self._tags(),
            security_group_ids=tuple(attribute(self.networking, "security_group_ids") or ()),
            subnets=tuple(attribute(self.networking, "subnets") or ()),
        )
        prepared = prepare(account, request, settings)
        said = Said.of(prepared.request, output=request.output, region=account.region, mlflow=prepared.tracking)
        if dry_run:
            return said.dry_run(prepared.definition(), prepared.notes)
        started = start(account, prepared, registry)
        said.started(started.arn)
        return Execution(started)

    def _tags(self) -> tuple[tuple[str, str], ...]:
        return tuple((tag["Key"], tag["Value"]) for tag in self.tags or ())

    def _request(self, registry: Registry, trained: TrainerOutput | None) -> EvaluationRequest:
        model = trained.model if trained else model_text(self.model)
        assert model is not None  # the validator saw to it
        policies = resolve_policies(
            expanded(model),
            base=None if self.base_model is None else expanded(self.base_model),
            trained=trained,
            registry=registry,
        )
        # The handle must find the evaluation from wherever the notebook has moved to since.
        output = located(expanded(self.s3_output_path), Path.cwd())
        return EvaluationRequest(
            policies=policies,
            evaluate_base_model=self.evaluate_base_model,
            agent=self._agent(trained),
            dataset=expanded(self.dataset),
            output=output,
            folder=Path.cwd(),
            hyperparameters=self._hyperparameters,
            max_runtime_seconds=self.stopping_condition,
            accept_eula=self.accept_eula,
            kms_key=self.kms_key_id,
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
        text = expanded(agent_text(given))
        qualifier = self.agent_qualifier or (trained.qualifier if trained else None)
        try:
            return parse_agent(text, qualifier)
        except ReferenceProblem as error:
            raise ReferenceProblem(
                f"Resolved agent ARN {shown(text, 160)} is neither a Bedrock AgentCore ARN nor a Lambda ARN: {error}"
            ) from error

    def _default_name(self) -> str:
        text = (model_text(self.model) or "model").rstrip("/")
        last = re.split(r"[#/]", re.sub(r"(:model-package/[^/]+|:hub-content/.+)/[\d.]+$", r"\1", text))[-1]
        word = re.sub(r"[^a-zA-Z0-9]", "", re.split(r"[-_.+]", last)[0])[:20]
        return f"eval-{word or 'model'}-{uuid.uuid4().hex[:8]}"
