"""Reads the rollouts of a Heldout run as what a policy can learn from: tokens, and how much to learn from each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from heldout.job.conversations import conversation
from heldout.job.records import Turn

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Play:
    """One rollout, tokenized, up to the last turn that did better than others."""

    tokens: list[int]
    weights: list[float]
    """For each token: how much better its turn did than the prompt's other rollouts in that turn; 0 where it did not, and for
    what the policy did not say."""


def read_plays(run: Path, tokenizer: Tokenizer) -> list[Play]:
    """What there is to learn from the run in a folder: its scored rollouts in which a turn did better than the others'.

    Raises OSError when the run's tables are not there, ValueError when a rollout has not one reward for each turn.
    """
    rollouts = pq.read_table(run / "rollouts.parquet").to_pylist()
    turns = _turns_of_rollouts(run)
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for rollout in rollouts:
        if rollout["status"] == "scored":
            groups[rollout["prompt_index"]].append(rollout)
    plays = []
    for group in groups.values():
        for rollout, advantages in zip(group, _advantages([rollout["rewards"] for rollout in group]), strict=True):
            end = max((turn + 1 for turn, advantage in enumerate(advantages) if advantage > 0), default=0)
            if end > 0:
                plays.append(_tokenized(turns[rollout["trajectory_id"]][:end], advantages[:end], tokenizer))
    return plays


def _advantages(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each turn's reward less the mean of that turn over the rollouts of the prompt that came so far."""
    columns = zip_longest(*rewards)
    means = [fmean(reward for reward in column if reward is not None) for column in columns]
    return [[reward - mean for reward, mean in zip(row, means, strict=False)] for row in rewards]


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
    """The conversation up to the last of the turns' replies. Each turn continues the one before, as this agent's do."""
    given = len(conversation(turns, 0))
    messages = [*conversation(turns, len(turns) - 1), _reply(turns[-1])]
    weights = {given + 2 * turn.index: max(0.0, gain) for turn, gain in zip(turns, advantages, strict=True)}
    is_cut = {given + 2 * turn.index for turn in turns if turn.finish_reason == "length"}
    play = Play([], [])
    for index, message in enumerate(messages):
        for text, weight in _parts(message, weights.get(index, 0.0), is_cut=index in is_cut):
            new = tokenizer.encode(text, add_special_tokens=False).ids
            play.tokens.extend(new)
            play.weights.extend([weight] * len(new))
    return play


def _parts(message: Message, weight: float, *, is_cut: bool) -> Iterator[tuple[str, float]]:
    """A message in ChatML, as SmolLM2's template writes it, in parts of one weight: only what the policy said has its own.

    A reply that was cut at the token limit has no end to learn.
    """
    yield f"<|im_start|>{message['role']}\n", 0.0
    yield str(message["content"]), weight
    yield "<|im_end|>", 0.0 if is_cut else weight
    yield "\n", 0.0


def _reply(turn: Turn) -> Message:
    reply: Message = orjson.loads(turn.reply)[0]
    return reply
