"""Conversations of a trajectory, rebuilt from turns that hold each message once."""

from collections.abc import Sequence

import orjson

from heldout.job.records import Turn


def conversation(turns: Sequence[Turn], index: int) -> list[dict[str, object]]:
    """The messages that the turn with this index sent to the model, without the model's reply to them.

    turns: those of one trajectory, in any order; ancestors of the turn must be among them.
    Takes time in proportion to the messages on the way from the first ancestor, whatever the number of turns.
    Raises KeyError if the turn or an ancestor of it is missing.
    """
    by_index = {turn.index: turn for turn in turns}
    line = [by_index[index]]
    while (parent := line[-1].parent) is not None:
        line.append(by_index[parent])
    messages: list[dict[str, object]] = []
    for child in reversed(line):
        if child.parent is not None:
            messages += orjson.loads(by_index[child.parent].reply or b"[]")[:1]
        del messages[child.shared_messages :]
        messages += orjson.loads(child.messages)
    return messages
