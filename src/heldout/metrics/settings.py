"""Settings of the metrics. Imports no numpy: a job reads them before its first model call."""

from dataclasses import dataclass
from typing import Literal

from heldout.errors import MetricError, shown

FAILED_ROLLOUTS = ("zero", "exclude")
TOLERANCE = 1e-6
"""Relative. A number this close to a bound meets it: 0.7 + 0.2 + 0.1 is 0.9999999999999999 and meets 1."""


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """How rewards become successes and numbers.

    Raises MetricError for a k below 1, a threshold that is not a finite number, a share outside [0, 1], a confidence outside
    (0, 1) or an unknown rule for failed rollouts.
    """

    pass_k_values: tuple[int, ...]
    """The k of pass@k and pass^k."""
    success_threshold: float
    """A rollout succeeds when its reward is at least this, within `TOLERANCE`."""
    failed_rollouts: Literal["zero", "exclude"] = "zero"
    """`zero`: a failed rollout has reward 0 and no success. `exclude`: it is left out, so groups may be unequal."""
    max_failed_share: float = 0.1
    """The largest share of failed rollouts with which a run's numbers are complete. Above it they are incomplete: shown with
    failed rollouts as 0 and with failed rollouts left out, and compared with no other run."""
    primary_metric: str = "pass@1"
    """The metric that a comparison's verdict is about, by any of its names. It is fixed before the runs are looked at."""
    confidence: float = 0.95
    """Confidence level of every interval and test, in (0, 1)."""
    seed: int = 0
    """Seeds every random draw of an interval or a test: the same tables and seed give the same numbers."""

    def __post_init__(self) -> None:
        for k in self.pass_k_values:
            if isinstance(k, bool) or not isinstance(k, int) or k < 1:
                raise MetricError(f"pass_k_values has {shown(k)}; every k must be an integer from 1 up")
        if not abs(self.success_threshold) < float("inf"):
            raise MetricError(f"success_threshold is {self.success_threshold!r}; it must be a finite number")
        if not 0 <= self.max_failed_share <= 1:
            raise MetricError(
                f"max_failed_share is {self.max_failed_share!r}; it must lie between 0 and 1, such as 0.1"
            )
        if not 0 < self.confidence < 1:
            raise MetricError(f"confidence is {self.confidence!r}; it must lie between 0 and 1, such as 0.95")
        if self.failed_rollouts not in FAILED_ROLLOUTS:
            raise MetricError(f"failed_rollouts is {shown(self.failed_rollouts)}; it must be 'zero' or 'exclude'")

    @property
    def least_success(self) -> float:
        """The least reward of a success."""
        return least_meeting(self.success_threshold)


def least_meeting(bound: float) -> float:
    """The least number that meets "at least `bound`": `TOLERANCE` times the size of the bound below it. 0 is exact."""
    return bound - TOLERANCE * abs(bound)


def greatest_meeting(bound: float) -> float:
    """The greatest number that meets "at most `bound`"; see `least_meeting`."""
    return bound + TOLERANCE * abs(bound)
