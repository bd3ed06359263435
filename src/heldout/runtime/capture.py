"""Finds the new messages of each model call in a trajectory, so that every message is stored once. Pure.

The conversations of a trajectory form a tree: a call usually continues an earlier one, and sometimes branches off. A call
follows the tree along its messages; where it leaves the tree, its new messages begin. The time of one call is proportional
to the length of its conversation.

Two messages are equal if their JSON is equal apart from keys whose value is null: clients drop and add such keys when they
send a reply back. (Python compares: 1, 1.0 and true are equal.)

A completion has one prompt instead of messages, and the prompt repeats the earlier prompts and replies. It is stored as
messages too: the earlier messages that it begins with, and the rest as a message of the user. Their contents, joined, are
the prompt.
"""

from typing import NamedTuple, TypeGuard

from heldout.job.records import turn_json

TextPrompt = str | list[int]
"""The prompt of a completion: text, or token ids."""


class _Node:
    """A message at its place in the tree. The path to it is the conversation before it. turn: the first turn that has it."""

    __slots__ = ("children", "message", "turn")

    def __init__(self, message: object, turn: int | None) -> None:
        self.message = message
        self.turn = turn
        self.children: list[_Node] = []

    def child(self, message: object) -> "_Node | None":
        """Returns the child with this message. The latest child is tried first: it is the usual one."""
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
        """Returns the child whose content is at `start` of the prompt, and that content; the longest one if there are several."""
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
    """What is recorded when a model call begins. Fields as in `heldout.job.records.Turn`."""

    turn: int
    """The turn's index."""
    parent: int | None
    shared_messages: int
    messages: bytes
    request: bytes
    end: _Node
    """The place of its reply."""


class Capture:
    """The conversations of an open trajectory, each message once, and the parameters of its calls."""

    def __init__(self) -> None:
        self._root = _Node(None, None)
        self._tip = self._root
        """The end of the latest conversation, which the next call usually continues."""
        self._path: list[object] = []
        """The messages on the way to the tip."""
        self._requests: list[dict[str, object]] = []

    def messages_of(self, prompt: TextPrompt) -> list[object]:
        """Returns a prompt as messages: those of earlier calls that it begins with, and the rest as the user's."""
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
        """Calls so far, including those in flight."""
        return len(self._requests)

    def begin(self, request: dict[str, object], messages: list[object]) -> CapturedCall:
        """Records the beginning of a call. request: its parameters without the messages; it must not be changed afterwards.

        Raises TypeError or RecursionError, recording nothing, if the request is nested too deeply.
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
        """Records a call's reply; a later call may continue from it."""
        node = call.end.child(message) or call.end.add(message, call.turn)
        if call.end is self._tip:
            self._tip = node
            self._path.append(node.message)

    def _follow(self, messages: list[object]) -> tuple[_Node, list[object], list[object]]:
        """Follows the messages through the tree; returns the last node, and the messages on the way to it in two parts.

        The first part is the path of the latest call, if the messages begin with it: one comparison, and usually all the
        work.
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
    """Whether the prompt has this content at `start`; False for empty content."""
    if not content:
        return False
    if isinstance(prompt, str):
        return isinstance(content, str) and prompt.startswith(content, start)
    return isinstance(content, list) and prompt[start : start + len(content)] == content


def _without_nulls(value: object) -> object:
    """Returns the JSON value without null keys, at every depth; the same object if there are none."""
    if not _has_nulls(value):
        return value
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _has_nulls(value: object) -> bool:
    """Whether a key is null at any depth. A loop for speed: nearly every message is flat and has none."""
    if type(value) is dict:
        for item in value.values():
            if item is None or (type(item) is not str and _has_nulls(item)):
                return True
    elif type(value) is list:
        for item in value:
            if _has_nulls(item):
                return True
    return False
