"""The records of a rollout: prompt, turns, attempts and failures. Frozen, picklable data only.

A rollout plays one prompt once. It may take several attempts, and each attempt records its turns (model calls). Exactly one
attempt of a finished rollout is final.
"""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass

from heldout.job.json_values import stored_json


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt dataset."""

    index: int
    """Row number in the dataset, from 0, files in name order; it stays the same under `limit` and shuffling."""
    text: str
    """The prompt that the agent receives, byte for byte."""
    columns: str = "{}"
    """The row's other columns, as a JSON object."""


class Boundary(enum.StrEnum):
    """Where a failure happened."""

    AGENT = "agent"
    """The agent's own code: it raised, crashed, hung, returned no reward or reported a failure."""
    POLICY = "policy"
    """The model could not be reached or refused, after every retry."""
    REWARD = "reward"
    """The reward is not a finite number."""
    HARNESS = "harness"
    """Heldout itself or its machine: the attempt was lost with its worker, or the machine ran out of something. Such an attempt
    is never scored."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    boundary: Boundary
    kind: str
    """A short stable word to count by. Of the agent: `timeout`, `crashed`, `raised`, `no_reward`, `reported_failed`,
    `unreachable`. Of the policy: `unreachable`, `bad_reply` (a reply that is not a completion), `given_up` (it will not answer in
    this start of the job). Of the reward: `bad_reward`. Of the harness: `lost`, `exhausted` (descriptors, ports, memory, threads
    or disk), `disconnected` (from the Job Runtime)."""
    message: str
    """One line for the reader."""

    @property
    def is_infrastructure(self) -> bool:
        """Whether something other than the agent and the model's replies failed. A retry then is no second chance for them."""
        return self.boundary in (Boundary.POLICY, Boundary.HARNESS) or self.kind == "unreachable"

    @property
    def is_scorable(self) -> bool:
        """Whether a rollout may fail for good with it. A failure of the harness, or a model that is gone, says nothing about
        the policy."""
        return self.boundary is not Boundary.HARNESS and self.kind != "given_up"


ANSWERED = 200
"""HTTP status of a model call that the model answered."""
BAD_REPLY = 502
"""HTTP status of a model call whose reply is not a completion, also where its stream began with status 200."""


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
    """JSON array of the messages that are new since the parent. The prompt of a plain completion is split into messages too:
    earlier replies of the model, and the user's text between them. Their contents joined are the prompt."""
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
    """HTTP status the agent was answered with; 200 for a call that worked, 502 also for a stream that held no completion."""
    error: str | None
    """Why the call failed; None when it worked."""

    @property
    def is_answered(self) -> bool:
        """Whether the model answered, in full or in part. A failed call is recorded too, but is not part of the conversation:
        clients retry it."""
        return self.status == ANSWERED


def turn_json(value: object) -> bytes:
    """Returns the JSON text of a value for a Turn. The copy has its exact size; orjson's results take at least 4 KB each.

    Raises TypeError for a value that JSON cannot hold, or that is nested too deeply.
    """
    return bytes(memoryview(stored_json(value)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One ended try at a rollout. `is_final` is set for the attempt that decided the rollout."""

    prompt_index: int
    rollout_index: int
    number: int
    """From 1. An attempt that the harness failed is not counted, and the next one has its number."""
    trajectory_id: str
    is_final: bool
    failure: Failure | None
    """None exactly when `rewards` is not None."""
    rewards: tuple[float, ...] | None
    """As reported: one value, or one for each turn; the rollout's reward is their sum."""
    metrics: tuple[tuple[str, float], ...]
    """Named finite numbers that the agent returned or reported with its reward."""
    flags: tuple[str, ...]
    """Irregularities that did not fail the attempt: `no_model_call`, `reward_mismatch`, `reward_count`, `failed_after_reward`,
    `ran_on_after_end`, `metric_dropped`, `answer_cut`, `sampling_differs`,
    `bad_reply`."""
    turns: tuple[Turn, ...]
    """Every model call, in order."""
    output: str
    """What the agent printed (stdout and stderr), its last 64 KiB."""
    started_at: float
    seconds: float
    labels: bytes = b""
    """JSON object: the values among the agent's metrics that are not numbers, such as a category; empty without any."""
    returned: bytes = b""
    """JSON object: the agent's answer without `reward` and `metrics`; empty without other fields."""

    @property
    def is_counted(self) -> bool:
        """Whether it uses up a retry. An attempt that the harness failed does not."""
        return self.failure is None or self.failure.is_scorable

    @property
    def may_be_reopened(self) -> bool:
        """Whether its rollout failed for good by something other than the agent and the model."""
        return self.is_final and self.failure is not None and self.failure.is_infrastructure

    @property
    def num_turns(self) -> int:
        """Number of answered model calls."""
        return sum(turn.is_answered for turn in self.turns)

    @property
    def reward(self) -> float | None:
        """Sum of the rewards; None for a failed attempt."""
        return None if self.rewards is None else total_reward(self.rewards)


def total_reward(rewards: Iterable[float]) -> float:
    """Returns the sum of the rewards of a rollout, rounded once; infinite where a float cannot hold it.

    Use it for every sum of rewards. The built-in `sum` rounds after each addition up to Python 3.11 and compensates from 3.12
    on, so the same rewards could succeed on one version and fail on another.
    """
    values = list(rewards)
    try:
        return math.fsum(values)
    except OverflowError:  # math.fsum raises where the built-in sum is infinite
        return sum(values)
