"""Reports of a rollout's end: their parsing, and which of them are new. No I/O.

Source: botocore's service model `sagemakerjobruntime` (2026-02-01), CompleteRollout and UpdateReward, and the client published
in sagemaker-train 1.27 (`sagemaker.train.rft.feedback`), which searches messages for `_NOT_VALID`.
"""

import enum
import json
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from heldout.errors import shown
from heldout.job.received import finite_number, given_metrics
from heldout.job.records import total_reward
from heldout.runtime.refusals import Refusal, conflict, invalid

_NOT_VALID = "is not in valid status"
"""The published client logs no error for a refusal with these words."""
_TOKEN_LIMIT = 16
"""Client tokens remembered for each trajectory; a rollout needs two."""


class ReportKind(enum.StrEnum):
    """The kinds of reports."""

    COMPLETED = "completed"
    """No more turns follow; the reward may."""
    FAILED = "failed"
    """The agent abandoned the rollout, or reported an invalid reward."""
    REWARDED = "rewarded"
    """The rollout's reward."""


@dataclass(frozen=True, slots=True)
class Report:
    """One new report of an agent about its rollout."""

    kind: ReportKind
    rewards: tuple[float, ...] = ()
    """One value, or one for each turn. The values and their sum are finite. Empty unless REWARDED."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Named finite numbers sent with the reward."""
    message: str = ""
    """For FAILED: the cause, on one line."""
    failure_kind: str = ""
    """For FAILED: `reported_failed` or `bad_reward`, as in `heldout.job.records.Failure`."""
    labels: tuple[tuple[str, object], ...] = ()
    """Named texts, lists and objects sent among the metrics."""


class ReportRefused(Exception):
    """Raised by the receiver of reports when one comes at the wrong time. The agent gets a Conflict (409)."""


class ReportBody(NamedTuple):
    """The parsed body of CompleteRollout or UpdateReward."""

    fields: dict[str, object]

    def text(self, name: str) -> str | None:
        """Returns a member that must be a string; None if absent. Raises Refusal (400)."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid(f"{name} is {shown(value)}; it must be a string")
        return value


def parse_body(body: bytes) -> ReportBody:
    """Parses a body. NaN and Infinity are accepted: Python clients send them. Raises Refusal (400)."""
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise invalid(f"the body is not JSON: {shown(body)}; expected an object") from None
    if not isinstance(fields, dict):
        raise invalid(f"the body is {shown(fields)}; expected a JSON object")
    return ReportBody(fields)


def completion(body: ReportBody) -> Report:
    """Returns the report of a CompleteRollout. Raises Refusal (400) for an unknown status."""
    status = body.text("Status")
    if status in (None, "ready"):
        return Report(ReportKind.COMPLETED)
    if status == "failed":
        return Report(ReportKind.FAILED, message="the agent reported Status 'failed'", failure_kind="reported_failed")
    raise invalid(f"Status is {shown(status)}; it must be 'ready' or 'failed'")


def reward(body: ReportBody) -> Report:
    """Returns the report of an UpdateReward: REWARDED, or FAILED if the reward is invalid.

    Raises Refusal (400) if `Rewards` is missing, or if `Metrics` has a number that is not finite or a name that cannot be kept.
    """
    if "Rewards" not in body.fields:
        raise invalid("Rewards is missing; it must be a list of finite numbers: one, or one for each turn")
    values = body.fields["Rewards"]
    metrics = given_metrics(body.fields.get("Metrics"))
    if metrics.problems:
        raise invalid(metrics.problems[0])
    numbers = [finite_number(value) for value in values] if isinstance(values, list) else []
    rewards = tuple(number for number in numbers if number is not None)
    if rewards and len(rewards) == len(numbers) and math.isfinite(total_reward(rewards)):
        return Report(
            ReportKind.REWARDED, rewards, tuple(metrics.numbers.items()), labels=tuple(metrics.labels.items())
        )
    expected = "a list of finite numbers, at least one, with a finite sum"
    message = f"the agent reported Rewards {shown(values)}; they must be {expected}"
    return Report(ReportKind.FAILED, message=message, failure_kind="bad_reward")


@dataclass(slots=True)
class Ledger:
    """The reports of one trajectory so far. Kept for a while after the trajectory's end, to recognise repeats."""

    trajectory_id: str
    is_completed: bool = False
    failure_kind: str = ""
    rewards: tuple[float, ...] | None = None
    client_tokens: list[str] = field(default_factory=list)

    @property
    def takes_calls(self) -> bool:
        """Whether model calls are still accepted: no end and no reward was reported."""
        return not (self.is_completed or self.failure_kind or self.rewards)

    def is_news(self, report: Report, client_token: str | None) -> bool:
        """Whether the report is new; False if it repeats an earlier one or no longer matters.

        Raises Refusal (409) if it contradicts an earlier one.
        """
        if client_token is not None and client_token in self.client_tokens:
            return False
        match report.kind:
            case ReportKind.COMPLETED:
                if self.failure_kind:
                    raise conflict(f"Cannot transition trajectory {self.trajectory_id} from failed to ready")
                return not self.is_completed and self.rewards is None
            case ReportKind.FAILED:
                if self.rewards is not None and report.failure_kind == "bad_reward":
                    raise not_in_valid_status(self.trajectory_id, f"another reward: it has {shown(self.rewards)}")
                return not self.failure_kind
            case ReportKind.REWARDED:
                return self._is_new_reward(report.rewards)

    def enter(self, report: Report, client_token: str | None) -> None:
        """Records a report that was stored."""
        self.is_completed = self.is_completed or report.kind is ReportKind.COMPLETED
        self.failure_kind = report.failure_kind or self.failure_kind
        if report.kind is ReportKind.REWARDED:
            self.rewards = report.rewards
        if client_token is not None and len(self.client_tokens) < _TOKEN_LIMIT:
            self.client_tokens.append(client_token)

    def _is_new_reward(self, rewards: tuple[float, ...]) -> bool:
        if self.failure_kind == "bad_reward":
            raise not_in_valid_status(
                self.trajectory_id, "a reward: it has failed with one that was not a finite number"
            )
        if self.failure_kind:
            # The published client sends reward 0.0 after reporting a failure.
            return False
        if self.rewards is not None and self.rewards != rewards:
            raise not_in_valid_status(self.trajectory_id, f"the reward {shown(rewards)}: it has {shown(self.rewards)}")
        return self.rewards is None


def not_in_valid_status(trajectory_id: str, for_what: str) -> Refusal:
    """Returns the Conflict from which the published client learns that a trajectory has ended."""
    return conflict(f"Trajectory {trajectory_id} {_NOT_VALID} for {for_what}")
