"""The card of a run as names and texts, for the terminal, the report and MLflow."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heldout.job.card import AgentCard, MachineCard, RunCard
from heldout.job.hyperparameters import SAMPLING
from heldout.report.finding import Finding, Weight
from heldout.report.sanitizing import visible

_HASH_DIGITS = 12


class CardRow(NamedTuple):
    """One line of a card."""

    name: str
    """Lower case, with spaces: `git commit`."""
    text: str


def card_rows(card: RunCard) -> tuple[CardRow, ...]:
    """Lists what is known of a run, safe to show."""
    return tuple(CardRow(name, visible(text)) for name, text in _rows(card) if text)


def card_table(card: RunCard, title: str) -> RenderableType:
    """Renders a card for a terminal."""
    table = Table(title=visible(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for row in card_rows(card):
        table.add_row(row.name, Text(row.text))
    return table


def card_tables(cards: Mapping[str, RunCard]) -> RenderableType:
    """Renders several cards, each under its title."""
    return Group(*(card_table(card, title) for title, card in cards.items()))


def changes_finding(card: RunCard, num_rollouts: int) -> Finding | None:
    """Makes the finding about a run that was resumed after a change of agent, dataset or model; None for any other run."""
    if not card.changes:
        return None
    return Finding(
        kind="changed_while_played",
        seen=f"the run is a mixture: {'; '.join(card.changes)}",
        advice="evaluate anew for numbers of one agent, one model and one dataset",
        num_rollouts=num_rollouts,
        trajectory_ids=(),
        weight=Weight.DOUBT,
    )


def _rows(card: RunCard) -> Iterator[tuple[str, str]]:
    yield "changes", "; ".join(card.changes)
    yield "heldout", card.heldout
    yield "agent", card.agent.reference
    yield from _agent(card.agent)
    yield "dataset", card.dataset.reference
    yield "dataset hash", card.dataset.prompts_hash or ""
    yield "dataset files", _hashes(card.dataset.files)
    yield "model", card.model.reference
    yield "served name", card.model.served_name or ""
    yield "model listing", "" if card.model.listing is None else orjson.dumps(card.model.listing).decode()
    yield "sampling", _pairs((name, card.hyperparameters[name]) for name in SAMPLING if name in card.hyperparameters)
    if card.machine is not None:
        yield from _machine(card.machine)


def _agent(agent: AgentCard) -> Iterator[tuple[str, str]]:
    if agent.commit is not None:
        yield "git commit", f"{agent.commit}{', with changes that are not in it' if agent.is_dirty else ''}"
    yield "agent files", _hashes(agent.files)
    yield "agent packages", _pairs(agent.packages.items())


def _machine(machine: MachineCard) -> Iterator[tuple[str, str]]:
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:g} GiB"
    yield "machine", f"{machine.host}: {machine.cores} cores ({machine.processor}){memory}, {machine.system}"
    yield "python", machine.python


def _hashes(files: Mapping[str, str]) -> str:
    return _pairs((name, digest[:_HASH_DIGITS]) for name, digest in files.items())


def _pairs(values: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values if value is not None)
