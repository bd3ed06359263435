"""Where an evaluation runs when nobody says: in AWS when model and agent are both there and neither is mapped to this machine."""

from heldout.backends.base import Backend
from heldout.job.references import AgentCoreRuntime, AgentReference, HubModel, LambdaAgent, ModelPackage, ModelReference
from heldout.job.registry import Registry


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
