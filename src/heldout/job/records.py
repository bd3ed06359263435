"""What one rollout leaves behind, as frozen records that pickle. Data only.

A rollout is one play of one prompt. It may take several attempts; each attempt records the turns (model calls) it
made. Exactly one attempt of a finished rollout is final.
"""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt dataset."""

    index: int
    """Row number in the dataset, from 0, files in name order; it stays the same under `limit` and shuffling."""
    text: str
    """What the agent is given, byte for byte."""
    columns: str = "{}"
    """The row's other columns, as a JSON object."""


class Boundary(enum.StrEnum):
    """Where a failure happened."""

    AGENT = "agent"
    """The agent's own code: it raised, crashed, hung, returned no reward or reported a failure."""
    POLICY = "policy"
    """The model could not be reached or refused, after every retry."""
    REWARD = "reward"
    """A reward came that is not a finite number."""
    HARNESS = "harness"
    """Heldout itself: the attempt was lost with its worker, perhaps through no fault of its own."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    boundary: Boundary
    kind: str
    """A short stable word to count by: `timeout`, `crashed`, `raised`, `no_reward`, `reported_failed`, `bad_reward`,
    `unreachable`, `lost`."""
    message: str
    """One line for a person."""


ANSWERED = 200
"""Status of a model call that the model answered."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One model call, with each message stored once.

    The conversation of turn t is: the first `shared_messages` messages of its parent's conversation (the parent's request
    messages followed by the parent's reply), then `messages`. A turn without a parent stores its whole conversation.
    """

    index: int
    """From 0, in the order the calls were made."""
    parent: int | None
    """Index of the earlier turn whose conversation this one continues; None for a conversation of its own."""
    shared_messages: int
    messages: bytes
    """JSON array of the messages that are new since the parent. A plain completion's prompt is told as messages, too:
    what the model had said, and between that what the user did; their contents together are the prompt."""
    request: bytes
    """JSON object: the rest of the request as the agent sent it (no messages, no prompt); empty when equal to the parent's."""
    reply: bytes
    """JSON array of the reply's choices' messages, usually one; empty when the call failed. The first is the message
    that a child turn's conversation continues from."""
    finish_reason: str | None
    prompt_tokens: int | None
    response_tokens: int | None
    logprobs: tuple[float, ...] | None
    """Log-probability of each response token (first choice); None when the policy gave none."""
    started_at: float
    """Unix time, seconds."""
    seconds: float
    status: int
    """HTTP status the agent was answered with; 200 for a call that worked."""
    error: str | None
    """Why the call failed; None when it worked."""

    @property
    def is_answered(self) -> bool:
        """Whether the model answered, if only in part. A call that failed is kept, and is no turn of the conversation: clients
        make it again."""
        return self.status == ANSWERED


def turn_json(value: object) -> bytes:
    """A JSON value as a Turn keeps it: in a block of its own size, where orjson's take 4 KB each, however little they hold.

    Raises orjson.JSONEncodeError for what is no JSON, or is nested too deeply.
    """
    return bytes(memoryview(orjson.dumps(value)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a rollout, ended. The attempt that decided the rollout has `is_final` set."""

    prompt_index: int
    rollout_index: int
    number: int
    """From 1; a try that was lost is not counted, and the next one has its number."""
    trajectory_id: str
    is_final: bool
    failure: Failure | None
    """None exactly when `rewards` is not None."""
    rewards: tuple[float, ...] | None
    """As reported: one value, or one for each turn; the rollout's reward is their sum."""
    metrics: tuple[tuple[str, float], ...]
    """Named numbers the agent returned or reported beside its reward."""
    flags: tuple[str, ...]
    """What was odd but not fatal: `no_model_call`, `reward_mismatch`, `reward_count`, `failed_after_reward`,
    `ran_on_after_end`, `metric_dropped`, `sampling_differs`."""
    turns: tuple[Turn, ...]
    """Every model call, in the order in which they were made."""
    output: str
    """What the agent printed (stdout and stderr), its last 64 KiB."""
    started_at: float
    seconds: float

    @property
    def is_counted(self) -> bool:
        """Whether it uses up a retry: not one that was lost, which may be no fault of its own."""
        return self.failure is None or self.failure.kind != "lost"

    @property
    def num_turns(self) -> int:
        """Model calls that were answered."""
        return sum(turn.is_answered for turn in self.turns)

    @property
    def reward(self) -> float | None:
        """Sum of the rewards; None for a failed attempt."""
        return None if self.rewards is None else total_reward(self.rewards)


def total_reward(rewards: Iterable[float]) -> float:
    """Sum of the rewards of a rollout, rounded once; infinite where a float cannot hold it.

    Every sum of rewards is this one. The built-in `sum` rounds after each addition up to Python 3.11 and compensates from 3.12
    on, so the same rewards could succeed on one version and fail on another.
    """
    values = list(rewards)
    try:
        return math.fsum(values)
    except OverflowError:  # math.fsum raises where the built-in sum is infinite
        return sum(values)
