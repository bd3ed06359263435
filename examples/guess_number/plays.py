"""Reads the rollouts of a Heldout run as training data: tokens, each with a weight."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from heldout.runs.recordings import Message, RecordedTrajectory, open_recordings
from heldout.runs.run import Run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_WEIGHT = 2.0
"""The largest weight, which limits lucky turns: one in ten guesses is right by chance."""


@dataclass(frozen=True, slots=True)
class Play:
    """One rollout as tokens, up to the last reply with a weight."""

    tokens: list[int]
    weights: list[float]
    """The weight of each token. For tokens of the policy it is the turn's reward over the mean of the run's positive rewards in
    turns of that number, at most MOST_WEIGHT; 0 for an unrewarded turn and for every other token."""


def read_plays(run: Path, tokenizer: "Tokenizer") -> list[Play]:
    """Reads the training data of the run in a folder: its scored rollouts with a rewarded turn.

    Raises RunError when the run or its tables are missing, ValueError unless each rollout has one reward for each turn.
    """
    with open_recordings(Run.open(run)) as recordings:
        scored = [
            played for played in recordings.stream() if played.rewards is not None
        ]  # in the order in which they ended
    scored.sort(key=lambda played: (played.prompt_index, played.rollout_index))
    weights = turn_weights([played.rewards or () for played in scored])
    return [_tokenized(played, gains, tokenizer) for played, gains in zip(scored, weights, strict=True) if any(gains)]


def turn_weights(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Computes the weight of each turn of each rollout: its reward over the mean positive reward of turns with its number."""
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


def _tokenized(played: RecordedTrajectory, weights: Sequence[float], tokenizer: "Tokenizer") -> Play:
    """Tokenizes the conversation up to the last turn with a weight. Each turn continues the previous one."""
    given = len(played.turns[0].messages)
    last = max(turn for turn, weight in enumerate(weights) if weight)
    chosen = {given + 2 * turn.index: weight for turn, weight in zip(played.turns, weights, strict=True)}
    is_cut = {given + 2 * turn.index for turn in played.turns if turn.finish_reason == "length"}
    play = Play([], [])
    for index, message in enumerate(played.conversation(last)):
        for text, weight in _parts(message, chosen.get(index, 0.0), is_cut=index in is_cut):
            new = tokenizer.encode(text, add_special_tokens=False).ids
            play.tokens.extend(new)
            play.weights.extend([weight] * len(new))
    return play


def _parts(message: Message, weight: float, *, is_cut: bool) -> Iterator[tuple[str, float]]:
    """Renders a message in ChatML, as SmolLM2's template does, in parts with weights: 0 for text that the policy did not choose.

    A reply that was cut at the token limit has no end token to learn.
    """
    yield f"<|im_start|>{message['role']}\n", 0.0
    yield str(message["content"]), weight
    yield "<|im_end|>", 0.0 if is_cut else weight
    yield "\n", 0.0
