"""What a finding is: data that the terminal, the report and scripts show alike."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from heldout.report.rollout_rows import BoolArray, RolloutRows

_NAMED_TRAJECTORIES = 5
"""Enough to see whether a pattern is one thing or several, few enough for one line."""


class Weight(enum.IntEnum):
    """How much a finding matters, the most first."""

    DOUBT = 1
    """The numbers may not mean what they seem to."""
    PATTERN = 2
    """A way in which the policy goes wrong."""
    NOTE = 3
    """Good to know for training or for the next evaluation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was seen."""

    kind: str
    """A short stable word to look for."""
    seen: str
    """What was seen, on how many rollouts."""
    advice: str
    """What to try."""
    num_rollouts: int
    trajectory_ids: tuple[str, ...]
    """Which ones to open; a few of them when there are many."""
    weight: Weight = Weight.DOUBT


class Wording(NamedTuple):
    """What is the same in every finding of a kind."""

    kind: str
    advice: str
    weight: Weight


def finding(wording: Wording, seen: str, rows: RolloutRows, mask: BoolArray) -> Finding:
    """A finding about the rollouts where `mask`, shape (num_rollouts,), holds."""
    ids = rows.ids(mask, _NAMED_TRAJECTORIES)
    return Finding(wording.kind, seen, wording.advice, int(mask.sum()), ids, wording.weight)


def counted(number: int, total: int, what: str = "rollouts") -> str:
    """`3 of 96 rollouts`, with thousands set apart."""
    return f"{number:,} of {total:,} {what}"
