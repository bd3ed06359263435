"""Reads the card of a run. A run of an older version has no card, so its job document gives as much as it knows."""

from heldout.job.card import AgentCard, CardDifference, DatasetCard, ModelCard, RunCard, card_differences
from heldout.job.document import JobConfigDocument
from heldout.runs.run import Run

UNKNOWN_VERSION = "unknown"
"""Heldout's version in the card of a run that recorded none."""


def card_of(run: Run) -> RunCard:
    """Returns the recorded card of a run, or a card made from its job document."""
    return run.state.card or card_of_document(run.document, dataset_hash=run.state.dataset_hash)


def card_of_document(
    document: JobConfigDocument, *, dataset_hash: str | None = None, version: str = UNKNOWN_VERSION
) -> RunCard:
    """Returns a card with what the job document knows."""
    return RunCard(
        heldout=version,
        agent=AgentCard(reference=document.agent_config.agent.text),
        dataset=DatasetCard(reference=document.prompts.data_source.dataset, prompts_hash=dataset_hash),
        model=ModelCard(reference=document.model.text),
        hyperparameters={
            name: list(value) if isinstance(value, tuple) else value
            for name, value in document.hyperparameters.to_dict().items()
        },
    )


def run_differences(before: Run, after: Run) -> tuple[CardDifference, ...]:
    """Compares the cards of two runs; see `heldout.job.card.card_differences`."""
    one, other = card_of(before), card_of(after)
    found = card_differences(one, other)
    if before.state.card is None or after.state.card is None:
        return tuple(difference for difference in found if difference.name != "Heldout")
    return found
