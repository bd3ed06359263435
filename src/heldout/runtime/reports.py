"""How agents report the end of a rollout: what they may say, and what is news. No I/O.

Source: botocore's service model `sagemakerjobruntime` (2026-02-01), CompleteRollout and UpdateReward, and the client published
in sagemaker-train 1.27 (`sagemaker.train.rft.feedback`), which looks for the words of `_NOT_VALID`.
"""

import enum
import json
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from heldout.errors import shown
from heldout.runtime.refusals import Refusal, conflict, invalid

_NOT_VALID = "is not in valid status"
"""The published client stays quiet about a refusal that has these words."""
_TOKEN_LIMIT = 16
"""Client tokens remembered of one trajectory; a rollout needs two."""


class ReportKind(enum.StrEnum):
    """What an agent can report."""

    COMPLETED = "completed"
    """No more turns will come; the reward may."""
    FAILED = "failed"
    """The agent gave the rollout up, or reported a reward that is none."""
    REWARDED = "rewarded"
    """The rollout's reward."""


@dataclass(frozen=True, slots=True)
class Report:
    """One thing an agent reported of its rollout, for the first time."""

    kind: ReportKind
    rewards: tuple[float, ...] = ()
    """One value, or one for each turn; all finite, as is their sum. Empty unless REWARDED."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Named finite numbers that came beside the reward."""
    message: str = ""
    """One line on what went wrong, for FAILED."""
    failure_kind: str = ""
    """For FAILED: `reported_failed` or `bad_reward`, as in `heldout.job.records.Failure`."""


class ReportRefused(Exception):
    """Raised by who takes the reports: this one comes at the wrong time. The agent is answered with a Conflict."""


class ReportBody(NamedTuple):
    """The parsed body of CompleteRollout or UpdateReward."""

    fields: dict[str, object]

    def text(self, name: str) -> str | None:
        """A member that must be a string; None if it is not there. Raises Refusal (400)."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid(f"{name} is {shown(value)}; it must be a string")
        return value


def parse_body(body: bytes) -> ReportBody:
    """The body's members. NaN and Infinity are let through: clients written in Python send them. Raises Refusal (400)."""
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise invalid(f"the body is not JSON: {shown(body)}; expected an object") from None
    if not isinstance(fields, dict):
        raise invalid(f"the body is {shown(fields)}; expected a JSON object")
    return ReportBody(fields)


def completion(body: ReportBody) -> Report:
    """What a CompleteRollout reports. Raises Refusal (400) for an unknown status."""
    status = body.text("Status")
    if status in (None, "ready"):
        return Report(ReportKind.COMPLETED)
    if status == "failed":
        return Report(ReportKind.FAILED, message="the agent reported Status 'failed'", failure_kind="reported_failed")
    raise invalid(f"Status is {shown(status)}; it must be 'ready' or 'failed'")


def reward(body: ReportBody) -> Report:
    """What an UpdateReward reports: REWARDED, or FAILED if what it gives is no reward.

    Raises Refusal (400) if there are no `Rewards` at all, or `Metrics` that are not finite numbers by name.
    """
    if "Rewards" not in body.fields:
        raise invalid("Rewards is missing; it must be a list of finite numbers: one, or one for each turn")
    values = body.fields["Rewards"]
    metrics = _metrics(body.fields.get("Metrics"))
    numbers = [finite_number(value) for value in values] if isinstance(values, list) else []
    rewards = tuple(number for number in numbers if number is not None)
    if rewards and len(rewards) == len(numbers) and math.isfinite(sum(rewards)):
        return Report(ReportKind.REWARDED, rewards, metrics)
    expected = "a list of finite numbers, at least one, with a finite sum"
    message = f"the agent reported Rewards {shown(values)}; they must be {expected}"
    return Report(ReportKind.FAILED, message=message, failure_kind="bad_reward")


def finite_number(value: object) -> float | None:
    """A JSON number as a float; None for what is none (true and false too), or is too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


@dataclass(slots=True)
class Ledger:
    """What a trajectory has reported so far; it outlives the trajectory for a while, to recognise repeats."""

    trajectory_id: str
    is_completed: bool = False
    failure_kind: str = ""
    rewards: tuple[float, ...] | None = None
    client_tokens: list[str] = field(default_factory=list)

    @property
    def takes_calls(self) -> bool:
        """Whether the agent has not yet said that it is through."""
        return not (self.is_completed or self.failure_kind or self.rewards)

    def is_news(self, report: Report, client_token: str | None) -> bool:
        """Whether the report says something new; False if it repeats an earlier one or no longer matters.

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
        """The report was taken."""
        self.is_completed = self.is_completed or report.kind is ReportKind.COMPLETED
        self.failure_kind = report.failure_kind or self.failure_kind
        if report.kind is ReportKind.REWARDED:
            self.rewards = report.rewards
        if client_token is not None and len(self.client_tokens) < _TOKEN_LIMIT:
            self.client_tokens.append(client_token)

    def _is_new_reward(self, rewards: tuple[float, ...]) -> bool:
        if self.failure_kind == "bad_reward":
            raise not_in_valid_status(self.trajectory_id, "a reward: it has failed with one that was no finite number")
        if self.failure_kind:
            # The published client sends reward 0.0 after reporting a failure.
            return False
        if self.rewards is not None and self.rewards != rewards:
            raise not_in_valid_status(self.trajectory_id, f"the reward {shown(rewards)}: it has {shown(self.rewards)}")
        return self.rewards is None


def not_in_valid_status(trajectory_id: str, for_what: str) -> Refusal:
    """The Conflict by which the published client knows that a trajectory is over."""
    return conflict(f"Trajectory {trajectory_id} {_NOT_VALID} for {for_what}")


def _metrics(value: object) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise invalid(f"Metrics is {shown(value)}; it must be an object of finite numbers by name")
    metrics = []
    for name, given in value.items():
        number = finite_number(given)
        if number is None:
            raise invalid(f"Metrics[{name!r}] is {shown(given)}; it must be a finite number")
        if not name.strip():
            raise invalid(f"Metrics[{name!r}] has no name; every metric needs one")
        metrics.append((name, number))
    return tuple(metrics)
