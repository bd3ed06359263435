"""The record of a finding, shown by the terminal, the report and scripts."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from heldout.report.rollout_rows import BoolArray, RolloutRows

_NAMED_TRAJECTORIES = 5
"""Trajectories named per finding: enough to recognise a pattern, few enough for one line."""


class Weight(enum.IntEnum):
    """How much a finding matters, most important first."""

    DOUBT = 1
    """The numbers may be misleading."""
    PATTERN = 2
    """A failure pattern of the policy."""
    NOTE = 3
    """Useful for training or for the next evaluation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation about a run."""

    kind: str
    """A short, stable name, to filter by."""
    seen: str
    """The observation and the number of rollouts that show it."""
    advice: str
    """Advice: what to try."""
    num_rollouts: int
    trajectory_ids: tuple[str, ...]
    """Ids of trajectories to open; a few when there are many."""
    weight: Weight = Weight.DOUBT


class Wording(NamedTuple):
    """The fields that all findings of a kind share."""

    kind: str
    advice: str
    weight: Weight


def finding(wording: Wording, seen: str, rows: RolloutRows, mask: BoolArray) -> Finding:
    """Make a finding about the rollouts where `mask`, shape (num_rollouts,), is true."""
    ids = rows.ids(mask, _NAMED_TRAJECTORIES)
    return Finding(wording.kind, seen, wording.advice, int(mask.sum()), ids, wording.weight)


def counted(number: int, total: int, what: str = "rollouts") -> str:
    """Format a count: `3 of 96 rollouts`, with thousands separators."""
    return f"{number:,} of {total:,} {what}"
