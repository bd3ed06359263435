"""MultiTurnRLEvaluator: the surface of the SageMaker Python SDK's evaluator, for evaluations on this machine or in AWS.

Names, defaults and meanings of the fields are those of `sagemaker.train.evaluate.MultiTurnRLEvaluator`. Where a field
takes an AWS reference, it takes a local one too. Values are never guessed: a wrong name or value is an error when it
is set, and every value that is set has an effect.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

from heldout.backends.registry_file import read_registry
from heldout.backends.selection import backend_to_ask, select_backend
from heldout.evaluator_fields import EvaluatorFields, attribute
from heldout.execution import Execution
from heldout.job.hyperparameters import Hyperparameters
from heldout.pipeline.places import located
from heldout.pipeline.request import AccountSettings, EvaluationRequest, TrackingSettings, evaluation_request
from heldout.storage.storage import expanded


class MultiTurnRLEvaluator(EvaluatorFields):
    """Evaluates a multi-turn RL agent's policy on held-out prompts.

    An evaluation has one of three shapes: a base model alone; a fine-tuned model alone (a model package, an adapter,
    or the trainer that made it); or, with `evaluate_base_model`, both and their comparison.

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
        """The job's hyperparameters, as attributes. A value is checked when it is set; every hyperparameter has a default."""
        return self._hyperparameters

    @overload
    def evaluate(self, *, dry_run: Literal[False] = False) -> Execution: ...

    @overload
    def evaluate(self, *, dry_run: Literal[True]) -> str: ...

    def evaluate(self, *, dry_run: bool = False) -> Execution | str:
        """Starts the evaluation, prints a summary, and returns without waiting for the end.

        On this machine it runs in a process of its own, in AWS as a pipeline execution. dry_run: runs every check,
        starts and writes nothing, and prints and returns the pipeline definition as JSON.

        Raises InputError for a value that cannot be used (an unfinished trainer; an agent, dataset or model that does not exist),
        CloudError when AWS refuses a request. In both cases nothing was started or written.
        """
        request = self._request()
        prepared = select_backend(self.backend, request).prepare(request)
        if dry_run:
            return prepared.summary.print_dry_run(prepared.definition, prepared.notes)
        started = prepared.start()
        prepared.summary.print_started(started.arn)
        return Execution(started)

    @classmethod
    def get_all(
        cls, session: Any = None, region: str | None = None, *, backend: str | None = None
    ) -> Iterator[Execution]:
        """Returns every evaluation that still exists, the latest first.

        session: the SDK's, or a boto3 session. backend: the name of the place to look in; by default AWS if a session
        is given, else this machine. region: only evaluations of this region.
        """
        return Execution.get_all(session=session, region=region, backend=backend)

    @staticmethod
    def list_supported_models(session: Any = None, *, backend: str | None = None) -> list[str]:
        """Returns the names of the models that can be evaluated: with a session (the SDK's, or a boto3 session) the public hub's.

        On this machine: the embedded models and those of the registry in force. backend: as for `get_all`. Raises CloudError.
        """
        return list(backend_to_ask(backend, session).models(session))

    @staticmethod
    def list_bedrock_agentcore_runtimes(session: Any = None, *, backend: str | None = None) -> list[dict[str, str]]:
        """Returns `name`, `runtime_id`, `arn` and `status` of the AgentCore runtimes: with a session those of its account.

        On this machine: those that the registry in force maps. backend: as for `get_all`. Raises CloudError.
        """
        return [dict(runtime) for runtime in backend_to_ask(backend, session).agent_runtimes(session)]

    def _request(self) -> EvaluationRequest:
        return evaluation_request(
            model=self.model,
            agent=self.agent_config,
            agent_qualifier=self.agent_qualifier,
            dataset=self.dataset,
            # An absolute output: the handle finds the evaluation after the notebook has changed its folder.
            output=located(expanded(self.s3_output_path), Path.cwd()),
            registry=read_registry(self.registry),
            base_model=self.base_model,
            evaluate_base_model=self.evaluate_base_model,
            base_name=self.base_eval_name,
            hyperparameters=self._hyperparameters,
            max_runtime_seconds=self.stopping_condition,
            accept_eula=self.accept_eula,
            kms_key=self.kms_key_id,
            tracking=TrackingSettings(self.mlflow_resource_arn, self.mlflow_experiment_name),
            account=AccountSettings(
                session=self.sagemaker_session,
                region=self.region,
                role=self.role,
                model_package_group=self.model_package_group,
                tags=tuple((tag["Key"], tag["Value"]) for tag in self.tags or ()),
                security_group_ids=tuple(attribute(self.networking, "security_group_ids") or ()),
                subnets=tuple(attribute(self.networking, "subnets") or ()),
            ),
            runtime_url=self.runtime_url,
        )
