"""The record of a finding, shown by the terminal, the report and scripts."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heldout.metrics.association import within_prompts
from heldout.report.rollout_rows import BoolArray, RolloutRows

_SURE = 0.99
"""Confidence with which a pattern must go with failure, so that habits of sound runs are reported in one of a hundred at most."""
_LEAST_PROMPTS = 7
"""With fewer prompts that played with and without the pattern, and succeeded and failed, none is reported."""
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


def predicts_failure(rows: RolloutRows, mask: BoolArray, known: BoolArray | None = None) -> bool:
    """Whether rollouts where `mask` is true succeed less often than others of the same prompt, with little doubt.

    A habit that successful rollouts share is not a failure pattern. mask, known: shape (num_rollouts,). Only rollouts where
    `known` is true are compared, by default all.
    """
    compared = np.ones_like(mask) if known is None else known
    found = within_prompts(
        mask[compared].astype(np.float64),
        rows.is_success[compared].astype(np.float64),
        rows.prompt_index[compared],
        confidence=_SURE,
        least_prompts=_LEAST_PROMPTS,
    )
    return found is not None and found.interval[1] < 0
