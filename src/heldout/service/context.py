"""What every operation is given: whose account this is, where state is kept, what AWS names stand for here."""

from dataclasses import dataclass
from pathlib import Path

from heldout.job.registry import Registry
from heldout.service.agents.hosting import HostedAgents
from heldout.service.mlflow.pages import MlflowPages
from heldout.service.store import Store
from heldout.service.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One server's; `endpoint` and `access_key` are the request's."""

    account: str
    """12 digits. Every ARN made here has it; names in a request may be of any account."""
    region: str
    endpoint: str
    """Where the caller reaches this server, `http://host:port`."""
    state: Path
    """The folder that everything which is not the user's output lies in."""
    registry: Registry
    store: Store
    supervisor: Supervisor
    agents: HostedAgents
    """The registry's, for those who invoke them by their AWS names."""
    pages: MlflowPages
    """Of the MLflow apps."""
    access_key: str | None = None
    """Of the key pair that signed the request; None when nothing is verified."""

    def arn(self, resource: str) -> str:
        """Of a SageMaker resource, such as `pipeline/name`."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{resource}"
