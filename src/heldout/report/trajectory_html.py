"""Prepares a recorded trajectory for the report: every text sanitized and cut to fit the page."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from heldout.job.json_values import read_json
from heldout.report.message_text import content_text, reasoning, tool_calls
from heldout.report.sanitizing import one_line, visible
from heldout.report.trajectory import describe_branch
from heldout.runs.recordings import Message, RecordedTrajectory, RecordedTurn

_FIRST_TURNS, _LAST_TURNS = 8, 6
"""The most turns shown; of a longer trajectory the middle is left out."""
_TITLE_CHARACTERS = 110
_OUTPUT_SHARE = 1 / 2
"""The share of a message's length that the agent's output may have."""


@dataclass(frozen=True, slots=True)
class ReadableText:
    """A text and the number of characters that were cut."""

    text: str
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class ReadableMessage:
    role: str
    style: str
    """One of `system`, `user`, `assistant`, `tool`, `other`."""
    text: ReadableText | None
    reasoning: ReadableText | None
    calls: tuple[tuple[str, ReadableText], ...]
    """Name and arguments of each tool call."""


@dataclass(frozen=True, slots=True)
class ReadableTurn:
    title: str
    details: str
    messages: tuple[ReadableMessage, ...]
    error: str | None
    turns_left_out: int
    """Turns left out between this one and the next."""


@dataclass(frozen=True, slots=True)
class ReadableTrajectory:
    anchor: str
    trajectory_id: str
    why: str
    prompt: str
    """The beginning of the prompt, on one line."""
    outcome: str
    tone: str
    """`good`, `bad` or `failed`."""
    details: str
    metrics: str
    turns: tuple[ReadableTurn, ...]
    error: str | None
    output: ReadableText | None


def readable(played: RecordedTrajectory, why: str, anchor: str, most_characters: int) -> ReadableTrajectory:
    """Prepare `played` for the page. No text is longer than `most_characters`."""
    tone = "failed" if played.reward is None else "good" if played.is_success else "bad"
    printed = played.output.strip()
    return ReadableTrajectory(
        anchor=anchor,
        trajectory_id=visible(played.trajectory_id),
        why=why,
        prompt=one_line(played.prompt, _TITLE_CHARACTERS),
        outcome="failed" if played.reward is None else f"reward {played.reward:.4g}",
        tone=tone,
        details=f"prompt {played.prompt_index}, rollout {played.rollout_index} · {_counts(played)}",
        metrics=", ".join(f"{visible(name)} {value:g}" for name, value in played.metrics.items()),
        turns=tuple(_turns(played.turns, most_characters)),
        error=None if played.error is None else one_line(f"{played.error_kind}: {played.error}", 400),
        output=_cut(printed, int(most_characters * _OUTPUT_SHARE), keep_end=True) if printed else None,
    )


def _counts(played: RecordedTrajectory) -> str:
    tokens = sum(turn.response_tokens or 0 for turn in played.turns)
    return f"{played.counted_turns} · {tokens:,} response tokens · {played.seconds:.1f} s"


def _turns(turns: tuple[RecordedTurn, ...], most: int) -> Iterator[ReadableTurn]:
    left_out = len(turns) - _FIRST_TURNS - _LAST_TURNS
    for place, turn in enumerate(turns):
        if left_out > 0 and _FIRST_TURNS <= place < _FIRST_TURNS + left_out:
            continue
        is_before_gap = left_out > 0 and place == _FIRST_TURNS - 1
        yield ReadableTurn(
            title=f"turn {turn.index}",
            details=_turn_details(turn, turns),
            messages=tuple(_message(message, most) for message in [*turn.messages, *turn.replies]),
            error=None if turn.error is None else one_line(f"HTTP {turn.status}: {turn.error}", 400),
            turns_left_out=left_out if is_before_gap else 0,
        )


def _turn_details(turn: RecordedTurn, turns: tuple[RecordedTurn, ...]) -> str:
    parts = [describe_branch(turn, turns)]
    if turn.response_tokens is not None:
        parts.append(f"{turn.prompt_tokens or 0:,} + {turn.response_tokens:,} tokens")
    if turn.finish_reason not in (None, "stop", "tool_calls"):
        parts.append(f"finished by {one_line(str(turn.finish_reason), 40)}")
    return " · ".join(part for part in parts if part)


def _message(message: Message, most: int) -> ReadableMessage:
    role = one_line(str(message.get("role") or "unknown"), 20)
    text, calls, thought = content_text(message), tool_calls(message), reasoning(message)
    return ReadableMessage(
        role=role,
        style=role if role in ("system", "user", "assistant", "tool") else "other",
        text=_cut(text, most) if text.strip() or not calls else None,
        reasoning=_cut(thought, most) if thought else None,
        calls=tuple((one_line(name, 80), _cut(_indented(arguments), most)) for name, arguments in calls),
    )


def _indented(arguments: str) -> str:
    """Indent JSON arguments that are longer than a line. Leave anything else unchanged."""
    if len(arguments) <= _TITLE_CHARACTERS:
        return arguments
    try:
        return json.dumps(read_json(arguments), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _cut(text: str, most: int, *, keep_end: bool = False) -> ReadableText:
    left_out = max(0, len(text) - most)
    kept = text[left_out:] if keep_end else text[: len(text) - left_out]
    return ReadableText(visible(kept), left_out)
