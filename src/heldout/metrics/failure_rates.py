"""Failed and retried rollouts of two runs, and the test that both runs have equal shares of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heldout.metrics.failures import FailureReason
from heldout.metrics.multiplicity import holm
from heldout.metrics.pairing import Pairs, SharedPrompts, Side
from heldout.metrics.settings import MetricSettings, greatest_meeting
from heldout.metrics.subset_means import least_prompts, subset_means
from heldout.metrics.table import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class SideFailures:
    """The failed and the retried rollouts of one run, on all of its prompts."""

    name: str
    num_rollouts: int
    failed: int
    """Rollouts that failed for good."""
    retried: int | None
    """Rollouts that took more than one attempt; None when unknown."""
    reasons: tuple[FailureReason, ...]
    """Why rollouts failed for good, the most common first."""

    @classmethod
    def of(cls, side: Side) -> "SideFailures":
        """Counts the failures of one side."""
        retried = None if side.is_retried is None else int(side.is_retried.sum())
        return cls(side.name, side.rollouts.num_rollouts, side.num_failed, retried, side.reasons)

    @property
    def share(self) -> float:
        """Failed rollouts divided by all rollouts, in [0, 1]."""
        return self.failed / max(1, self.num_rollouts)

    def is_within(self, max_failed_share: float) -> bool:
        """Whether the run's numbers are complete: a rollout was scored, and at most this share failed."""
        return self.failed < self.num_rollouts and self.share <= greatest_meeting(max_failed_share)

    def __str__(self) -> str:
        """`24 of 24 rollouts of tuned failed (agent: raised (24), all KeyError: 'answer')`."""
        reasons = f" ({'; '.join(map(str, self.reasons[:3]))})" if self.reasons else ""
        return f"{self.failed:,} of {self.num_rollouts:,} rollouts of {self.name} failed{reasons}"


@dataclass(frozen=True, slots=True)
class RateDifference:
    """A share of rollouts in both runs, on the prompts they share."""

    event: str
    """`failed` or `were played again`."""
    base: float
    """In [0, 1]."""
    fine_tuned: float
    """In [0, 1]."""
    p_value: float
    """Two-sided, against equal shares, corrected (Holm) for testing failures and retries. 1 with too few prompts to judge."""


def rate_differences(pairs: Pairs, settings: MetricSettings) -> tuple[RateDifference, ...]:
    """Tests whether failures, and retries where they are known, are equally common in both runs: sign-flip tests over prompts.

    pairs: of all prompts that both runs have, failed rollouts included.
    """
    found = list(_columns(pairs))
    is_testable = len(pairs.keys) >= least_prompts(settings.confidence)
    p_values = [_p_value(tuned - base, settings.seed) if is_testable else 1.0 for _, base, tuned in found]
    return tuple(
        RateDifference(event, float(base.mean()), float(tuned.mean()), p_value)
        for (event, base, tuned), p_value in zip(found, holm(p_values), strict=True)
    )


def _columns(pairs: Pairs) -> Iterator[tuple[str, FloatArray, FloatArray]]:
    """Each event with its share of each prompt's rollouts, shape (num_prompts,) for either run."""
    base, tuned = pairs.base, pairs.fine_tuned
    yield "failed", _shares(base, ~base.rollouts.is_scored), _shares(tuned, ~tuned.rollouts.is_scored)
    if base.is_retried is not None and tuned.is_retried is not None:
        yield "were played again", _shares(base, base.is_retried), _shares(tuned, tuned.is_retried)


def _shares(side: SharedPrompts, mask: BoolArray) -> FloatArray:
    groups = side.sample.groups
    return groups.sum(mask.astype(np.float64)) / groups.count()


def _p_value(differences: FloatArray, seed: int) -> float:
    if not differences.any():
        return 1.0
    (means,) = subset_means(differences[:, None], np.random.default_rng(seed))
    return means.p_value()
