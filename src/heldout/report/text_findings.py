"""Findings from the model's replies: loops, empty replies, inconsistent turns, confident wrong answers.

Only replies are read, not requests. Of a large run a sample is read, spread evenly over the run, and every finding states the
sample's size.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heldout.job.json_values import read_json
from heldout.job.records import ANSWERED
from heldout.report.finding import Finding, Weight, Wording, counted, finding, predicts_failure
from heldout.report.message_text import Reply, form, is_alike, stated_answer
from heldout.report.rollout_rows import BoolArray, RolloutRows

_SAMPLE_BYTES = 96 * 1024 * 1024
"""The most uncompressed bytes of the trajectories file to read: a second or two of work."""
SAMPLE_TURNS = 40_000
"""The most turns to read. Some thousand rollouts measure a share of 2% to half a percent, in two or three seconds."""
_COLUMNS = ["prompt_index", "rollout_index", "trajectory_id", "is_final", "turn", "parent", "reply", "status"]
_LOOP = 3
"""This many alike replies in a row are a loop; two can be a retry."""
_WORTH_TELLING = 0.02
_CONFIDENT = re.compile(
    r"\b(the (final |correct |right )?answer is|final answer|i am (certain|confident|sure)|i'm (certain|confident|sure)|"
    r"definitely|certainly|without (a )?doubt|successfully (completed|solved|fixed|done|finished)|"
    r"(task|problem|issue) (is|has been) (now )?(complete|completed|done|solved|resolved|fixed))\b|\\boxed\{",
    re.IGNORECASE,
)
_HEDGED = re.compile(
    r"\b(not (sure|certain|confident)|unsure|uncertain|might|maybe|perhaps|probably|i guess|cannot|can't|unable)\b",
    re.IGNORECASE,
)


class _Seen(NamedTuple):
    """The patterns in one rollout's replies."""

    loops: bool
    has_empty: bool
    is_inconsistent: bool
    is_confident: bool
    has_bad_call: bool


@dataclass(frozen=True, slots=True)
class _Pattern:
    wording: Wording
    is_in: Callable[[_Seen], bool]
    only_failures: bool
    """Whether it matters only where the rollout did not succeed."""
    what: str
    is_habit: bool = False
    """Whether sound replies have it too, so that it counts only where it goes with failure."""


_PATTERNS = (
    _Pattern(
        Wording(
            "looping",
            "let the environment say something new when an action is repeated, or end the rollout; penalize repetition",
            Weight.PATTERN,
        ),
        lambda seen: seen.loops,
        True,
        f"repeat themselves ({_LOOP} or more replies in a row are alike) and do not succeed",
    ),
    _Pattern(
        Wording(
            "empty_replies",
            "look at max_tokens, the stop words and the chat template: the model may have spent its tokens on reasoning",
            Weight.PATTERN,
        ),
        lambda seen: seen.has_empty,
        False,
        "have a reply without text or tool call",
    ),
    _Pattern(
        Wording(
            "inconsistent_turns",
            "say in the system prompt which form every turn must have, and have the agent remind the model of it",
            Weight.PATTERN,
        ),
        lambda seen: seen.is_inconsistent,
        True,
        "change the form of their replies in the middle, or state different answers, and do not succeed",
        is_habit=True,
    ),
    _Pattern(
        Wording(
            "confident_and_wrong",
            "certainty goes with failure here: read them for a reward that is too strict, else have the policy check its answer",
            Weight.PATTERN,
        ),
        lambda seen: seen.is_confident,
        True,
        "end by stating their result with certainty, and do not succeed",
        is_habit=True,
    ),
    _Pattern(
        Wording(
            "malformed_tool_calls",
            "check that the server parses this model's tool calls (its tool-call parser), and the tools' schemas",
            Weight.PATTERN,
        ),
        lambda seen: seen.has_bad_call,
        False,
        "have a tool call whose arguments are not a JSON object",
    ),
)


def text_findings(folder: Path, rows: RolloutRows, *, sample_turns: int = SAMPLE_TURNS) -> Iterator[Finding]:
    """Find the patterns in the replies of the run whose `trajectories.parquet` is in `folder`.

    sample_turns: how many turns to read, about.
    """
    places, seen = _scan(folder / "trajectories.parquet", rows, sample_turns)
    if not seen:
        return
    total = len(seen)
    is_read = np.zeros(rows.num_rollouts, dtype=np.bool_)
    is_read[places] = True
    with_turns = int((rows.turns > 0).sum())
    sample = "" if total >= with_turns else f" (in a sample of {total:,} of {with_turns:,})"
    for pattern in _PATTERNS:
        mask = np.zeros(rows.num_rollouts, dtype=np.bool_)
        mask[places[np.array([pattern.is_in(one) for one in seen], dtype=np.bool_)]] = True
        if pattern.is_habit and not predicts_failure(rows, mask, is_read):
            continue
        if pattern.only_failures:
            mask &= ~rows.is_success
        if mask.any() and mask.sum() >= _WORTH_TELLING * total:
            yield finding(pattern.wording, f"{counted(int(mask.sum()), total)} {pattern.what}{sample}", rows, mask)


def _scan(path: Path, rows: RolloutRows, sample_turns: int) -> tuple[Any, list[_Seen]]:
    ids: list[str] = []
    seen: list[_Seen] = []
    for trajectory_id, replies in _sampled(path, sample_turns):
        ids.append(trajectory_id)
        seen.append(_look_at(replies))
    places = rows.places_of(ids)
    known: BoolArray = places >= 0
    return places[known], [one for one, is_known in zip(seen, known, strict=True) if is_known]


def _sampled(path: Path, sample_turns: int) -> Iterator[tuple[str, list[Reply]]]:
    """Yield each sampled rollout with its replies."""
    with pq.ParquetFile(path) as file:
        groups = _spread(file.metadata)
        num_turns = sum(file.metadata.row_group(number).num_rows for number in groups)
        every = max(1, math.ceil(num_turns / sample_turns))
        for number in groups:
            yield from _rollouts(_every(file.read_row_group(number, columns=_COLUMNS), every))


def _spread(metadata: Any) -> list[int]:
    """Choose evenly spread row groups within the sample's bytes; at least one if there is any."""
    total = metadata.num_row_groups
    if total == 0:
        return []
    size = sum(metadata.row_group(number).total_byte_size for number in range(total))
    wanted = total if size <= _SAMPLE_BYTES else max(1, int(total * _SAMPLE_BYTES / size))
    return sorted({int(place) for place in np.linspace(0, total - 1, wanted)})


def _every(turns: Any, step: int) -> Any:
    """Yield the turns of every `step`-th deciding attempt. A row group holds whole attempts, turns in sequence."""
    final = turns.filter(turns["is_final"])
    prompt, rollout = final["prompt_index"].to_numpy(), final["rollout_index"].to_numpy()
    is_new = np.ones(len(prompt), dtype=np.bool_)
    is_new[1:] = (prompt[1:] != prompt[:-1]) | (rollout[1:] != rollout[:-1])
    return final.filter(pa.array((np.cumsum(is_new) - 1) % step == 0))


def _rollouts(turns: Any) -> Iterator[tuple[str, list[Reply]]]:
    columns = (turns[name].to_pylist() for name in ("trajectory_id", "turn", "parent", "status", "reply"))
    rows = zip(*columns, strict=True)
    for trajectory_id, of_rollout in itertools.groupby(rows, key=lambda row: row[0]):
        yield (
            str(trajectory_id),
            [
                Reply.of(turn, parent, status, cast("list[Any]", read_json(reply or "[]", is_exact=False)))
                for _, turn, parent, status, reply in of_rollout
            ],
        )


def _look_at(replies: list[Reply]) -> _Seen:
    answered = [reply for reply in replies if reply.status == ANSWERED]
    return _Seen(
        loops=_loops(answered),
        has_empty=any(reply.is_empty for reply in answered),
        is_inconsistent=_changes_form(answered) or _changes_answer(answered),
        is_confident=bool(answered) and _is_confident(answered[-1].text),
        has_bad_call=any(reply.has_bad_call for reply in answered),
    )


def _loops(replies: list[Reply]) -> bool:
    """Whether enough consecutive replies of one conversation are alike."""
    by_turn = {reply.turn: reply for reply in replies}
    length: dict[int, int] = {}
    for reply in replies:
        before = None if reply.parent is None else by_turn.get(reply.parent)
        repeats = before is not None and not reply.is_empty and is_alike(before, reply)
        length[reply.turn] = length.get(before.turn, 1) + 1 if repeats and before is not None else 1
        if length[reply.turn] >= _LOOP:
            return True
    return False


def _changes_form(replies: list[Reply]) -> bool:
    """Whether a turn differs in form from its neighbours, which share a form."""
    forms = [form(reply) for reply in replies]
    return any(
        before == after != middle for before, middle, after in zip(forms, forms[1:], forms[2:], strict=False) if middle
    )


def _changes_answer(replies: list[Reply]) -> bool:
    answers = {answer for reply in replies if (answer := stated_answer(reply.text))}
    return len(answers) > 1


def _is_confident(text: str) -> bool:
    return _CONFIDENT.search(text) is not None and _HEDGED.search(text) is None
