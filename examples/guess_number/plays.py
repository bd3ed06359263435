"""Reads the rollouts of a Heldout run as what a policy can learn from: tokens, which of them it chose, and an advantage."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from heldout.job.conversations import conversation
from heldout.job.records import Turn

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Play:
    """One rollout, tokenized."""

    tokens: list[int]
    is_chosen: list[bool]
    """For each token, whether the policy chose it."""
    advantage: float
    """Reward less the mean of the prompt's rollouts, in their standard deviations."""


def read_plays(run: Path, tokenizer: Tokenizer) -> list[Play]:
    """The scored rollouts of the run in a folder whose reward tells them from their prompt's others.

    Raises OSError when the run's tables are not there.
    """
    rollouts = pq.read_table(run / "rollouts.parquet").to_pylist()
    turns = _turns_of_rollouts(run)
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for rollout in rollouts:
        if rollout["status"] == "scored":
            groups[rollout["prompt_index"]].append(rollout)
    plays = []
    for group in groups.values():
        rewards = np.array([rollout["reward"] for rollout in group])
        if rewards.std() == 0:
            continue
        for rollout, advantage in zip(group, (rewards - rewards.mean()) / rewards.std(), strict=True):
            tokens, is_chosen = _tokenized(turns[rollout["trajectory_id"]], tokenizer)
            plays.append(Play(tokens, is_chosen, float(advantage)))
    return plays


def _turns_of_rollouts(run: Path) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = defaultdict(list)
    for row in pq.read_table(run / "trajectories.parquet").to_pylist():
        turns[row["trajectory_id"]].append(
            Turn(
                index=row["turn"],
                parent=row["parent"],
                shared_messages=row["shared_messages"],
                messages=row["messages"].encode(),
                request=(row["request"] or "").encode(),
                reply=(row["reply"] or "").encode(),
                finish_reason=row["finish_reason"],
                prompt_tokens=row["prompt_tokens"],
                response_tokens=row["response_tokens"],
                logprobs=None,
                started_at=0.0,
                seconds=row["seconds"],
                status=row["status"],
                error=row["error"],
            )
        )
    return turns


def _tokenized(turns: Sequence[Turn], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The whole conversation up to the last reply; what comes after the first request and is the assistant's, was chosen.

    Each turn continues the one before, as this agent's do. A reply that reached the token limit has no end to learn.
    """
    given = len(conversation(turns, 0))
    messages = [*conversation(turns, len(turns) - 1), _reply(turns[-1])]
    is_cut = {given + 2 * turn.index for turn in turns if turn.finish_reason == "length"}
    tokens: list[int] = []
    is_chosen: list[bool] = []
    for index, message in enumerate(messages):
        chosen = index >= given and message["role"] == "assistant"
        for text, learned in _parts(message, chosen=chosen, is_cut=index in is_cut):
            new = tokenizer.encode(text, add_special_tokens=False).ids
            tokens += new
            is_chosen += [learned] * len(new)
    return tokens, is_chosen


def _parts(message: Message, *, chosen: bool, is_cut: bool) -> Iterator[tuple[str, bool]]:
    """A message in ChatML, as SmolLM2's template writes it, split by whether the policy chose it."""
    yield f"<|im_start|>{message['role']}\n", False
    yield str(message["content"]), chosen
    yield "<|im_end|>", chosen and not is_cut
    yield "\n", False


def _reply(turn: Turn) -> Message:
    reply: Message = orjson.loads(turn.reply)[0]
    return reply
