"""Finds what is new in each model call of a trajectory, so that every message is stored once. Pure: no clock, no socket.

The conversations of a trajectory form a tree, since a call usually continues an earlier one and sometimes branches off
it. A call walks the tree along its messages; where it leaves, its own begin. One call takes time in proportion to its
conversation, and the tree holds each message once.

Messages are the same if they are equal as JSON but for keys whose value is null: clients drop and add those when they send
a reply back. (As Python compares: 1, 1.0 and true are equal.)

A plain completion has no messages but one prompt, which holds what was said before. It is kept as messages all the same:
what it begins with of an earlier prompt and its reply, and the rest. Their contents together are the prompt.
"""

from typing import NamedTuple, TypeGuard

from heldout.job.records import turn_json

TextPrompt = str | list[int]
"""The prompt of a plain completion: text, or the tokens' ids."""


class _Node:
    """A message in its place: after the messages on the way to it, and first said by a turn."""

    __slots__ = ("children", "message", "turn")

    def __init__(self, message: object, turn: int | None) -> None:
        self.message = message
        self.turn = turn
        self.children: list[_Node] = []

    def child(self, message: object) -> "_Node | None":
        """The child that says this message; the latest is tried first, being the usual one."""
        if not self.children:
            return None
        for child in reversed(self.children):
            if child.message == message:
                return child
        bare = _without_nulls(message)
        if bare is message:
            return None
        for child in reversed(self.children):
            if child.message == bare:
                return child
        return None

    def beginning(self, prompt: TextPrompt, start: int) -> "tuple[_Node, TextPrompt] | None":
        """The child with whose content the prompt goes on from `start`, and that content; the longest, if several do."""
        longest: tuple[_Node, TextPrompt] | None = None
        for child in self.children:
            content = child.message.get("content") if isinstance(child.message, dict) else None
            if _is_at(content, prompt, start) and (longest is None or len(content) > len(longest[1])):
                longest = child, content
        return longest

    def add(self, message: object, turn: int) -> "_Node":
        node = _Node(_without_nulls(message), turn)
        self.children.append(node)
        return node


class CapturedCall(NamedTuple):
    """What is stored of a model call when it begins. Fields as in `heldout.job.records.Turn`."""

    turn: int
    """Its index."""
    parent: int | None
    shared_messages: int
    messages: bytes
    request: bytes
    end: _Node
    """Where its reply belongs."""


class Capture:
    """What an open trajectory remembers of its calls: its conversations, each message once, and its last parameters."""

    def __init__(self) -> None:
        self._root = _Node(None, None)
        self._tip = self._root
        """Where the latest conversation ends, which the next call usually continues."""
        self._path: list[object] = []
        """The messages on the way to it."""
        self._requests: list[dict[str, object]] = []

    def messages_of(self, prompt: TextPrompt) -> list[object]:
        """A plain completion's prompt as messages: those of earlier calls that it begins with, and the rest as the user's."""
        messages: list[object] = []
        node, start = self._root, 0
        while (next_one := node.beginning(prompt, start)) is not None:
            node, content = next_one
            messages.append(node.message)
            start += len(content)
        if start < len(prompt):
            messages.append({"role": "user", "content": prompt[start:]})
        return messages

    @property
    def num_calls(self) -> int:
        """Calls that were begun."""
        return len(self._requests)

    def begin(self, request: dict[str, object], messages: list[object]) -> CapturedCall:
        """A call is made. request: what it sent beside its messages; it must not be changed afterwards.

        Raises orjson.JSONEncodeError or RecursionError, and remembers nothing of the call, if it is nested too deeply.
        """
        index = self.num_calls
        node, path, found = self._follow(messages)
        parent, shared = node.turn, len(path) + len(found)
        new = messages[shared:]
        new_json = turn_json(new)
        if parent is not None and self._requests[parent] == request:
            request, request_json = self._requests[parent], b""
        else:
            request_json = turn_json(request)
        end = node
        for message in new:
            end = end.add(message, index)
            found.append(end.message)
        path += found
        self._tip, self._path = end, path
        self._requests.append(request)
        return CapturedCall(index, parent, shared, new_json, request_json, end)

    def end(self, call: CapturedCall, message: object) -> None:
        """The call was answered with this message; a later call may continue from it."""
        node = call.end.child(message) or call.end.add(message, call.turn)
        if call.end is self._tip:
            self._tip = node
            self._path.append(node.message)

    def _follow(self, messages: list[object]) -> tuple[_Node, list[object], list[object]]:
        """As far as the messages lead through the tree: the last node, and the messages on the way to it in two parts.

        The first part is the path remembered from the latest call, if the messages begin with it: one comparison, and
        usually all there is to do.
        """
        path = self._path
        node = self._tip
        if messages[: len(path)] != path:
            node, path = self._root, []
        found: list[object] = []
        for message in messages[len(path) :]:
            child = node.child(message)
            if child is None:
                break
            node = child
            found.append(child.message)
        return node, path, found


def _is_at(content: object, prompt: TextPrompt, start: int) -> TypeGuard[TextPrompt]:
    """Whether the prompt has this content, which is not empty, at `start`."""
    if not content:
        return False
    if isinstance(prompt, str):
        return isinstance(content, str) and prompt.startswith(content, start)
    return isinstance(content, list) and prompt[start : start + len(content)] == content


def _without_nulls(value: object) -> object:
    """The JSON value without the keys that are null, at every depth; the very same object if there are none."""
    if not _has_nulls(value):
        return value
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _has_nulls(value: object) -> bool:
    """Whether a key is null somewhere in the JSON value. A loop, since nearly every message is flat and has none."""
    if type(value) is dict:
        for item in value.values():
            if item is None or (type(item) is not str and _has_nulls(item)):
                return True
    elif type(value) is list:
        for item in value:
            if _has_nulls(item):
                return True
    return False
