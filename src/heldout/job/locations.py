"""Relative paths made absolute, so that a job means the same from every folder it is resumed in. Nothing is looked up."""

from pathlib import PurePath

from heldout.job.references import AgentReference, EmbeddedModel, EntryPoint, ModelReference


def located(location: str, folder: PurePath) -> str:
    """`location` below `folder` if it is a relative path; a URI or an ARN stays as it is."""
    if "://" in location or location.startswith("arn:"):
        return location
    return str(folder / location)


def located_model(model: ModelReference, folder: PurePath) -> ModelReference:
    """The model with the paths of its weights and its adapter absolute."""
    match model:
        case EmbeddedModel(name, adapter):
            weights = str(folder / name) if name.endswith(".gguf") else name
            return EmbeddedModel(weights, None if adapter is None else str(folder / adapter))
        case _:
            return model


def located_agent(agent: AgentReference, folder: PurePath) -> AgentReference:
    """The agent with its file's path absolute."""
    match agent:
        case EntryPoint(entry_point):
            source, _, function = entry_point.rpartition(":")
            return EntryPoint(f"{folder / source}:{function}") if source.endswith(".py") else agent
        case _:
            return agent
