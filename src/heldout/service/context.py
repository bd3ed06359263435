"""The context that every operation gets: account, region, state, and the services of this server that wings share."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from heldout.agents.base import InvocationResult
from heldout.job.registry import Registry
from heldout.service.store import Store
from heldout.service.supervisor import Supervisor

REGISTRY_CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC)
"""Creation time of everything that a registry lists. A registry has no times, and lists sorted by time need a constant one."""


class InvokableAgents(Protocol):
    """The registry's agents by the ARN of an AgentCore runtime or a Lambda function (`heldout.service.agents.hosting`)."""

    async def invoke(self, arn: str, payload: bytes, session_id: str | None = None) -> InvocationResult: ...

    def invoke_later(self, arn: str, payload: bytes) -> None: ...


class AppPages(Protocol):
    """Folders and links of MLflow apps (`heldout.service.mlflow.pages`)."""

    def folder_of(self, app_id: str) -> Path: ...

    def make_folder(self, app_id: str) -> None: ...

    def authorized_url(self, endpoint: str, app_id: str, seconds: int) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """State of one server; `endpoint` and `access_key` are those of the current request."""

    account: str
    """12 digits. Every ARN made by this server has it; ARNs in a request may have another account."""
    region: str
    endpoint: str
    """The URL by which the caller reaches this server, `http://host:port`."""
    state: Path
    """The folder for all files of the server except users' output."""
    registry: Registry
    store: Store
    supervisor: Supervisor
    agents: InvokableAgents
    pages: AppPages
    access_key: str | None = None
    """The key pair that signed the request; None if signatures are not verified."""

    def arn(self, resource: str) -> str:
        """The ARN of a SageMaker resource, such as `pipeline/name`."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{resource}"
