"""Reads the rollouts of a Heldout run as what a policy can learn from: tokens, and how much to learn from each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import orjson
import pyarrow.parquet as pq

from heldout.job.conversations import conversation
from heldout.job.records import Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, object]

MOST_WEIGHT = 2.0
"""A lucky turn counts no more than this: one in ten guesses is right by chance, and tells little of how to guess."""


@dataclass(frozen=True, slots=True)
class Play:
    """One rollout up to the last reply that there is something to learn from, as tokens."""

    tokens: list[int]
    weights: list[float]
    """For each token the policy chose: how much better its turn was rewarded than the run's turns of that number that brought
    anything are on average, at most MOST_WEIGHT; 0 for a turn that brought nothing. 0 for every other token."""


def read_plays(run: Path, tokenizer: "Tokenizer") -> list[Play]:
    """What there is to learn from the run in a folder: its scored rollouts with a turn that brought something.

    Raises OSError when the run's tables are not there, ValueError when a rollout has not one reward for each turn.
    """
    rows = pq.read_table(run / "rollouts.parquet").to_pylist()  # in the order in which rollouts ended
    rows.sort(key=lambda row: (row["prompt_index"], row["rollout_index"]))
    rollouts = [row for row in rows if row["status"] == "scored"]
    turns = _turns_of_rollouts(run)
    weights = turn_weights([rollout["rewards"] for rollout in rollouts])
    return [
        _tokenized(turns[rollout["trajectory_id"]], gains, tokenizer)
        for rollout, gains in zip(rollouts, weights, strict=True)
        if any(gains)
    ]


def turn_weights(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """What to learn from each turn of each rollout: its reward over the mean of the positive rewards of turns with its number."""
    positive: dict[int, list[float]] = defaultdict(list)
    for rollout in rewards:
        for turn, reward in enumerate(rollout):
            if reward > 0:
                positive[turn].append(reward)
    means = {turn: fmean(values) for turn, values in positive.items()}
    return [
        [min(MOST_WEIGHT, reward / means[turn]) if reward > 0 else 0.0 for turn, reward in enumerate(rollout)]
        for rollout in rewards
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


def _tokenized(turns: Sequence[Turn], weights: Sequence[float], tokenizer: "Tokenizer") -> Play:
    """The conversation up to the last turn with a weight. Each turn continues the one before, as this agent's do."""
    given = len(conversation(turns, 0))
    last = max(turn for turn, weight in enumerate(weights) if weight)
    messages = [*conversation(turns, last), _reply(turns[last])]
    chosen = {given + 2 * turn.index: weight for turn, weight in zip(turns, weights, strict=True)}
    is_cut = {given + 2 * turn.index for turn in turns if turn.finish_reason == "length"}
    play = Play([], [])
    for index, message in enumerate(messages):
        for text, weight in _parts(message, chosen.get(index, 0.0), is_cut=index in is_cut):
            new = tokenizer.encode(text, add_special_tokens=False).ids
            play.tokens.extend(new)
            play.weights.extend([weight] * len(new))
    return play


def _parts(message: Message, weight: float, *, is_cut: bool) -> Iterator[tuple[str, float]]:
    """A message in ChatML, as SmolLM2's template writes it, in parts with the weight of each: 0 for what was not chosen.

    A reply that was cut at the token limit has no end to learn.
    """
    yield f"<|im_start|>{message['role']}\n", 0.0
    yield str(message["content"]), weight
    yield "<|im_end|>", 0.0 if is_cut else weight
    yield "\n", 0.0


def _reply(turn: Turn) -> Message:
    reply: Message = orjson.loads(turn.reply)[0]
    return reply
