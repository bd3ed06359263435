"""The card of a run: the versions and hashes of everything that took part, and the differences between two cards.

A run keeps its card in `job.json`. `heldout.rollouts.card` records it; `heldout.runs.cards` reads it.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_VOLATILE = frozenset({"created", "permission"})
"""Fields of a model's entry in `GET /v1/models` that servers such as vLLM create anew for each answer."""
_HASH_DIGITS = 12
"""Digits of a hash that a message shows."""


class _CardSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class AgentCard(_CardSection):
    """The agent's code, as its processes loaded it. Only the reference is known of an agent that Heldout does not start."""

    reference: str
    """The agent as the job document names it."""
    folder: str | None = None
    """The folder of the agent's code."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each source file that was loaded, by its path below `folder`, or its whole path elsewhere. Installed packages
    are in `packages`."""
    commit: str | None = None
    """The git commit of `folder`; None outside a repository."""
    is_dirty: bool | None = None
    """Whether the repository held changes that are not in the commit."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Version of each installed package that was imported, by its distribution name."""


class DatasetCard(_CardSection):
    """The prompts."""

    reference: str
    """The dataset as the job document names it."""
    prompts_hash: str | None = None
    """SHA-256 of prompts, indices and order, as played."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file of the dataset, by its path below the dataset's folder; empty for a remote dataset."""


class ModelCard(_CardSection):
    """The model, as its server describes it."""

    reference: str
    """The model as the job document names it."""
    served_name: str | None = None
    """The name under which the server knows it."""
    listing: dict[str, Any] | None = None
    """The model's entry in `GET /v1/models`; None when the server lists none."""


class MachineCard(_CardSection):
    """The machine that played."""

    host: str
    system: str
    """Operating system and its release."""
    processor: str
    cores: int
    memory_gib: float | None
    python: str


class RunCard(_CardSection):
    """Everything that took part in a run."""

    heldout: str
    """Heldout's version."""
    agent: AgentCard
    dataset: DatasetCard
    model: ModelCard
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    """Every hyperparameter, defaults included; sampling is among them."""
    machine: MachineCard | None = None
    changes: tuple[str, ...] = ()
    """Differences between parts of this run: it was resumed although something had changed, one sentence each."""


class CardPart(enum.StrEnum):
    """The part of a card that a difference belongs to."""

    AGENT = "agent"
    DATASET = "dataset"
    MODEL = "model"
    HYPERPARAMETERS = "hyperparameters"
    HELDOUT = "heldout"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class CardDifference:
    """One difference between two cards."""

    part: CardPart
    name: str
    """The thing that differs: `file solve.py`, `package openai`, `success_threshold`."""
    before: str | None
    """Its value in the first card; None when the first lacks it."""
    after: str | None
    """Its value in the second card; None when the second lacks it."""

    @property
    def text(self) -> str:
        """The difference in a few words: `package openai: 1.0 -> 1.1`."""
        return f"{self.name}: {self.before or 'none'} -> {self.after or 'none'}"

    @property
    def sentence(self) -> str:
        """The difference with its part: `agent package openai: 1.0 -> 1.1`."""
        return self.text if self.part is CardPart.HELDOUT else f"{self.part} {self.text}"


def card_differences(before: RunCard, after: RunCard) -> tuple[CardDifference, ...]:
    """Compares two cards, part by part in the order of `CardPart`.

    A value that either card does not know is no difference. Files and packages count only where both cards list some. Values
    that change with each answer of a server are left out.
    """
    return tuple(
        difference
        for difference in (
            *_agent(before.agent, after.agent),
            *_dataset(before.dataset, after.dataset),
            *_model(before.model, after.model),
            *_values(CardPart.HYPERPARAMETERS, before.hyperparameters, after.hyperparameters),
            *_value(CardPart.HELDOUT, "Heldout", before.heldout, after.heldout),
            *_machine(before.machine, after.machine),
        )
    )


def _agent(before: AgentCard, after: AgentCard) -> Iterator[CardDifference]:
    part = CardPart.AGENT
    if before.files and after.files:
        # Two copies of one agent have the same files in different folders.
        yield from _value(part, "agent", PurePath(before.reference).name, PurePath(after.reference).name)
        yield from _files(part, before.files, after.files)
    else:
        yield from _value(part, "agent", before.reference, after.reference)
    if before.packages and after.packages:
        yield from _values(part, _named("package", before.packages), _named("package", after.packages))
    yield from _value(part, "git commit", _commit(before), _commit(after))


def _dataset(before: DatasetCard, after: DatasetCard) -> Iterator[CardDifference]:
    part = CardPart.DATASET
    if before.prompts_hash is not None and after.prompts_hash is not None:
        yield from _value(part, "prompts", _short(before.prompts_hash), _short(after.prompts_hash))
    elif before.files and after.files:
        yield from _files(part, before.files, after.files)
    else:
        yield from _value(part, "dataset", before.reference, after.reference)


def _model(before: ModelCard, after: ModelCard) -> Iterator[CardDifference]:
    part = CardPart.MODEL
    yield from _value(part, "model", before.reference, after.reference)
    yield from _value(part, "served name", before.served_name, after.served_name)
    if before.listing is not None and after.listing is not None:
        yield from _values(part, _stable(before.listing), _stable(after.listing))


def _machine(before: MachineCard | None, after: MachineCard | None) -> Iterator[CardDifference]:
    if before is not None and after is not None:
        yield from _values(CardPart.MACHINE, before.model_dump(), after.model_dump())


def _files(part: CardPart, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[CardDifference]:
    shown = ({name: _short(digest) for name, digest in files.items()} for files in (before, after))
    yield from _values(part, *(_named("file", files) for files in shown))


def _values(part: CardPart, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[CardDifference]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield CardDifference(part, name, _text(before.get(name)), _text(after.get(name)))


def _value(part: CardPart, name: str, before: str | None, after: str | None) -> Iterator[CardDifference]:
    if before is not None and after is not None and before != after:
        yield CardDifference(part, name, before, after)


def _named(kind: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{kind} {name}": value for name, value in values.items()}


def _stable(listing: Mapping[str, Any]) -> dict[str, Any]:
    return {f"/v1/models {name}": value for name, value in listing.items() if name not in _VOLATILE}


def _commit(agent: AgentCard) -> str | None:
    if agent.commit is None:
        return None
    return f"{_short(agent.commit)}{' (dirty)' if agent.is_dirty else ''}"


def _short(digest: str) -> str:
    return digest[:_HASH_DIGITS]


def _text(value: object) -> str | None:
    return None if value is None else ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
