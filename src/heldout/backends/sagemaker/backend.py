"""The SageMaker backend: evaluations as pipelines of managed jobs in AWS.

boto3 is imported by the methods that use it: it takes most of a second to load, and selecting a backend does without.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from heldout.backends.base import Backend, Prepared, StartedEvaluation
from heldout.backends.registry_file import read_registry
from heldout.errors import ReferenceProblem, shown
from heldout.pipeline.evaluation import LOCAL_ACCOUNT
from heldout.pipeline.request import EvaluationRequest

_EXECUTION_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:(?P<region>[a-z0-9\-]+):\d{12}:pipeline/[^/]+/execution/[^/]+")
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL")


class SageMakerBackend(Backend):
    """Managed evaluations in AWS."""

    name = "sagemaker"
    uses_session = True

    def serves(self, request: EvaluationRequest) -> bool:
        """Whether model and agent are both in AWS and the registry maps neither to this machine."""
        model, agent, registry = request.policies.evaluated.aws_name, request.agent.aws_name, request.registry
        if model is None or agent is None:
            return False
        return registry.model(model) is None and registry.agent(agent) is None

    def prepare(self, request: EvaluationRequest) -> Prepared:
        """Looks up every reference in AWS and checks it."""
        from heldout.backends.sagemaker.creation import prepare

        return prepare(request)

    def open(self, reference: str, *, session: object | None, region: str | None) -> StartedEvaluation | None:
        """The execution with this ARN. None for a place, and for an ARN of this machine's account without a session
        or endpoint."""
        if not reference.startswith("arn:") or (session is None and not _may_be_in_aws(reference)):
            return None
        found = _EXECUTION_ARN.fullmatch(reference)
        if found is None:
            raise ReferenceProblem(
                f"{shown(reference, 160)} is not an evaluation's ARN; expected "
                "arn:aws:sagemaker:<region>:<account>:pipeline/<name>/execution/<id>, as printed at the start"
            )
        from heldout.backends.sagemaker.account import Account
        from heldout.backends.sagemaker.handle import CloudEvaluation

        return CloudEvaluation(Account(session, region or found["region"]), reference, read_registry())

    def list(self, *, session: object | None, region: str | None) -> Iterator[StartedEvaluation]:
        """The executions of evaluation pipelines in the account, the latest first."""
        from heldout.backends.sagemaker.account import Account
        from heldout.backends.sagemaker.handle import CloudEvaluation
        from heldout.backends.sagemaker.pipelines import evaluation_executions

        account, registry = Account(session, region), read_registry()
        for arn in evaluation_executions(account):
            yield CloudEvaluation(account, arn, registry)

    def models(self, session: object | None) -> Sequence[str]:
        """Names of the public hub's models that can be evaluated."""
        from heldout.backends.sagemaker.account import Account
        from heldout.backends.sagemaker.models import supported_models

        return supported_models(Account(session))

    def agent_runtimes(self, session: object | None) -> Sequence[Mapping[str, str]]:
        """The AgentCore runtimes of the account."""
        from heldout.backends.sagemaker.account import Account
        from heldout.backends.sagemaker.checks import agentcore_runtimes

        return agentcore_runtimes(Account(session))


def _may_be_in_aws(arn: str) -> bool:
    """Whether an execution that was not started here can be elsewhere: in a real account, or at a configured endpoint."""
    is_real = arn.split(":")[4:5] != [LOCAL_ACCOUNT]
    return is_real or any(os.environ.get(name) for name in _ENDPOINT_VARIABLES)
