"""Rebuilds the conversations of a trajectory, whose turns store each message once."""

from collections.abc import Sequence
from typing import cast

from heldout.job.json_values import read_json
from heldout.job.records import Turn


def conversation(turns: Sequence[Turn], index: int) -> list[dict[str, object]]:
    """Returns the messages that the turn with this index sent to the model, without the model's reply.

    turns: turns of one trajectory, in any order, with the ancestors of this turn among them.
    Takes time proportional to the number of messages returned.
    Raises KeyError if the turn or one of its ancestors is missing.
    """
    by_index = {turn.index: turn for turn in turns}
    line = [by_index[index]]
    while (parent := line[-1].parent) is not None:
        line.append(by_index[parent])
    messages: list[dict[str, object]] = []
    for child in reversed(line):
        if child.parent is not None:
            messages += _messages(by_index[child.parent].reply or b"[]")[:1]
        del messages[child.shared_messages :]
        messages += _messages(child.messages)
    return messages


def _messages(text: bytes) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", read_json(text))
