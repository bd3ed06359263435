"""Which backend is meant when nobody says. An evaluation runs in AWS when model and agent are both there and neither is mapped to
this machine."""

from heldout.backends.base import Backend
from heldout.job.kinds.base import AgentReference, ModelReference
from heldout.job.registry import Registry


def backend_to_ask(backend: Backend | None, session: object) -> Backend:
    """Where evaluations and models are looked for: where `backend` says; else in AWS when a session is given."""
    return backend or ("local" if session is None else "sagemaker")


def choose_backend(model: ModelReference, agent: AgentReference, registry: Registry) -> Backend:
    """`sagemaker` for a hub model or model package played by an agent in AgentCore or Lambda, neither mapped; else `local`."""
    if model.aws_name is None or agent.aws_name is None:
        return "local"
    is_mapped = registry.model(model.aws_name) is not None or registry.agent(agent.aws_name) is not None
    return "local" if is_mapped else "sagemaker"
