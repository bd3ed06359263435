"""Which backend is meant when nobody says. An evaluation runs in AWS when model and agent are both there and neither is mapped to
this machine."""

from heldout.backends.base import Backend
from heldout.job.references import AgentCoreRuntime, AgentReference, HubModel, LambdaAgent, ModelPackage, ModelReference
from heldout.job.registry import Registry


def backend_to_ask(backend: Backend | None, session: object) -> Backend:
    """Where evaluations and models are looked for: where `backend` says; else in AWS when a session is given."""
    return backend or ("local" if session is None else "sagemaker")


def choose_backend(model: ModelReference, agent: AgentReference, registry: Registry) -> Backend:
    """`sagemaker` for a hub model or model package played by an agent in AgentCore or Lambda, neither mapped; else `local`."""
    match model:
        case HubModel(name):
            is_here = registry.model(name) is not None
        case ModelPackage(arn):
            is_here = registry.package(arn) is not None
        case _:
            return "local"
    if not isinstance(agent, AgentCoreRuntime | LambdaAgent):
        return "local"
    return "local" if is_here or registry.agent(agent.arn) is not None else "sagemaker"
