"""The content of a report, as plain records for its template."""

from dataclasses import dataclass

from markupsafe import Markup

from heldout.report.card_rows import CardRow
from heldout.report.worth_reading import WorthReading


@dataclass(frozen=True, slots=True)
class Tile:
    """A number at the top of the page."""

    label: str
    value: str
    interval: str
    before: str = ""
    """The base policy's value, where there are two policies."""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    about: str
    """One sentence: how to read it."""
    svg: Markup
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A table row with a picture."""

    cells: tuple[str, ...]
    picture: Markup
    note: str = ""


@dataclass(frozen=True, slots=True)
class FindingCard:
    weight: str
    seen: str
    advice: str
    trajectory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicySection:
    """The part of the page that is about one policy."""

    name: str
    style: str
    facts: list[tuple[str, str]]
    card: tuple[CardRow, ...]
    """Versions and hashes of everything that took part."""
    findings: list[FindingCard]
    failures: list[Row]
    slices: list[tuple[str, list[Row]]]
    rescorings: list["RescoringCard"]
    metrics: list[tuple[str, str, str, str, str]]
    """Label, wire name, value, interval and note of each."""
    reading: list[WorthReading]


@dataclass(frozen=True, slots=True)
class RescoringCard:
    scorer: str
    headline: str
    confusion: tuple[tuple[str, int], ...]
    disagreements: list[tuple[str, str, str]]
    """Trajectory id, reward, score."""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything but the trajectories."""

    title: str
    kicker: str
    headline: str
    tone: str
    """`up`, `down` or `even`."""
    summary: list[str]
    notes: list[str]
    tiles: list[Tile]
    changes: list[Row]
    """Each metric's difference, where there are two policies."""
    charts: list[Chart]
    gained: list[Row]
    lost: list[Row]
    policies: list[PolicySection]
