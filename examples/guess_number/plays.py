"""Reads the rollouts of a Heldout run as what a policy can learn from: tokens, and how much to learn from each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

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
    advantages: list[float]
    """For each token the policy chose: how much better its turn was rewarded than the same turn of the prompt's other rollouts,
    in standard deviations over the run. 0 for every other token."""


def read_plays(run: Path, tokenizer: Tokenizer) -> list[Play]:
    """What there is to learn from the run in a folder: its scored rollouts but for those that went just like the others.

    Raises OSError when the run's tables are not there, ValueError when a rollout has not one reward for each turn.
    """
    rollouts = [row for row in pq.read_table(run / "rollouts.parquet").to_pylist() if row["status"] == "scored"]
    turns = _turns_of_rollouts(run)
    advantages = _advantages(rollouts)
    spread = pstdev(chain.from_iterable(advantages)) or 1.0
    return [
        _tokenized(turns[rollout["trajectory_id"]], [gain / spread for gain in gains], tokenizer)
        for rollout, gains in zip(rollouts, advantages, strict=True)
        if any(gains)
    ]


def _advantages(rollouts: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Each turn's reward less the mean of that turn over the prompt's rollouts that came so far."""
    rewards: dict[tuple[int, int], list[float]] = defaultdict(list)
    for rollout in rollouts:
        for turn, reward in enumerate(rollout["rewards"]):
            rewards[rollout["prompt_index"], turn].append(reward)
    means = {key: fmean(values) for key, values in rewards.items()}
    return [
        [reward - means[rollout["prompt_index"], turn] for turn, reward in enumerate(rollout["rewards"])]
        for rollout in rollouts
    ]


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


def _tokenized(turns: Sequence[Turn], advantages: Sequence[float], tokenizer: Tokenizer) -> Play:
    """The conversation up to the last reply. Each turn continues the one before, as this agent's do."""
    given = len(conversation(turns, 0))
    messages = [*conversation(turns, len(turns) - 1), _reply(turns[-1])]
    gains = {given + 2 * turn.index: gain for turn, gain in zip(turns, advantages, strict=True)}
    is_cut = {given + 2 * turn.index for turn in turns if turn.finish_reason == "length"}
    play = Play([], [])
    for index, message in enumerate(messages):
        for text, gain in _parts(message, gains.get(index, 0.0), is_cut=index in is_cut):
            new = tokenizer.encode(text, add_special_tokens=False).ids
            play.tokens.extend(new)
            play.advantages.extend([gain] * len(new))
    return play


def _parts(message: Message, gain: float, *, is_cut: bool) -> Iterator[tuple[str, float]]:
    """A message in ChatML, as SmolLM2's template writes it, in parts with the advantage of each: 0 for what was not chosen.

    A reply that was cut at the token limit has no end to learn.
    """
    yield f"<|im_start|>{message['role']}\n", 0.0
    yield str(message["content"]), gain
    yield "<|im_end|>", 0.0 if is_cut else gain
    yield "\n", 0.0


def _reply(turn: Turn) -> Message:
    reply: Message = orjson.loads(turn.reply)[0]
    return reply
