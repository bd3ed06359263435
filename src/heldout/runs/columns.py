"""The columns of a run's Parquet files. Each field's metadata has its meaning, which travels in the file."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from heldout.datasets.arrow import described

_PROMPT = described("prompt_index", pa.int64(), "row number of the prompt in the dataset, from 0")
_ROLLOUT = described("rollout_index", pa.int32(), "number of the rollout in its group, from 0")
_TRAJECTORY = described(
    "trajectory_id", pa.string(), "id of the attempt's trajectory; `heldout show --trajectory` takes it"
)
_STARTED = pa.timestamp("us", tz="UTC")
_BOUNDARY = described(
    "error_boundary",
    pa.string(),
    "where the failure happened: `agent`, `policy`, `reward` or `harness`; null without one",
)
_KIND = described("error_kind", pa.string(), "short stable word for the failure, such as `timeout`; null without one")

ROLLOUT_COLUMNS: "list[pa.Field[Any]]" = [
    _PROMPT,
    _ROLLOUT,
    described("trajectory_id", pa.string(), "id of the trajectory of the attempt that decided the rollout"),
    described("status", pa.string(), "`scored`, or `failed` for good"),
    described("reward", pa.float64(), "sum of the rewards; null when the rollout failed"),
    described("rewards", pa.list_(pa.float64()), "rewards as reported: one value, or one a turn"),
    described("success", pa.bool_(), "whether the reward is at least `success_threshold`"),
    described("turns", pa.int32(), "model calls that the model answered"),
    described("prompt_tokens", pa.int64(), "prompt tokens of all turns together; null when the policy gives no counts"),
    described(
        "response_tokens", pa.int64(), "response tokens of all turns together; null when the policy gives no counts"
    ),
    described("attempts", pa.int32(), "attempts that were made"),
    described("started_at", _STARTED, "start of the attempt that decided the rollout"),
    described("seconds", pa.float64(), "wall-clock seconds of that attempt"),
    described("error", pa.string(), "why the rollout failed, in one line; null when it did not"),
    _BOUNDARY,
    _KIND,
    described("flags", pa.list_(pa.string()), "what was odd but not fatal"),
    described(
        "labels",
        pa.string(),
        "JSON object of the agent's metrics that are not numbers, such as a category; null without any",
    ),
    described(
        "returned",
        pa.string(),
        "JSON object of what the agent returned besides reward and metrics, at most 64 KiB; null without other fields",
    ),
]
"""Columns of `rollouts.parquet`. If agents report metrics, a struct column `metrics` follows, with a float64 field for each."""
TRAJECTORY_COLUMNS: "list[pa.Field[Any]]" = [
    _PROMPT,
    _ROLLOUT,
    described("attempt", pa.int32(), "number of the attempt, from 1"),
    described("is_final", pa.bool_(), "whether this attempt decided the rollout"),
    _TRAJECTORY,
    described("turn", pa.int32(), "number of the model call in the attempt, from 0"),
    described("parent", pa.int32(), "earlier turn whose conversation this one continues; null for a new conversation"),
    described(
        "shared_messages", pa.int32(), "messages shared with the parent's conversation (its request and its reply)"
    ),
    described("messages", pa.string(), "JSON array of the messages that are new since the parent"),
    described("request", pa.string(), "JSON object of the request's other fields; null when equal to the parent's"),
    described("reply", pa.string(), "JSON array of the reply's messages, usually one; null when the call failed"),
    described("finish_reason", pa.string(), "why the model stopped: `stop`, `length`, `tool_calls`, ..."),
    described("prompt_tokens", pa.int64(), "tokens of the prompt; null when the policy gives no counts"),
    described("response_tokens", pa.int64(), "tokens of the reply; null when the policy gives no counts"),
    described(
        "logprobs", pa.list_(pa.float32()), "log-probability of each token of the first reply; null without them"
    ),
    described("started_at", _STARTED, "when the call came in"),
    described("seconds", pa.float64(), "wall-clock seconds until the reply was complete"),
    described("status", pa.int32(), "HTTP status that the agent got"),
    described("error", pa.string(), "why the call failed; null when it did not"),
]
"""Columns of `trajectories.parquet`: a row a model call, of every attempt."""
ATTEMPT_COLUMNS: "list[pa.Field[Any]]" = [
    _PROMPT,
    _ROLLOUT,
    described(
        "attempt", pa.int32(), "number of the attempt, from 1; an attempt that was lost is tried again under its number"
    ),
    described("is_final", pa.bool_(), "whether this attempt decided the rollout"),
    _TRAJECTORY,
    _BOUNDARY,
    _KIND,
    described("error", pa.string(), "why the attempt failed, in one line; null when it did not"),
    described("started_at", _STARTED, "start of the attempt"),
    described("seconds", pa.float64(), "wall-clock seconds of the attempt"),
    described(
        "output",
        pa.string(),
        "what the agent printed, its last 64 KiB; empty for an agent outside this machine's workers",
    ),
]
"""Columns of `attempts.parquet`."""
COLUMNS: "Mapping[str, list[pa.Field[Any]]]" = {
    "rollouts": ROLLOUT_COLUMNS,
    "trajectories": TRAJECTORY_COLUMNS,
    "attempts": ATTEMPT_COLUMNS,
}
"""By the file's name, without its ending."""
