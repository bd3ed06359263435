"""Extracts the text, reasoning and tool calls of a message in any of the forms that servers use."""

import re
from typing import Any, NamedTuple, Self

from heldout.job.json_values import read_json, stored_json

_SHINGLE_WORDS = 3
_ALIKE = 0.8
"""Two replies are alike from this share of common word triples on."""
_LONG_WORDS = 8
"""Replies with fewer words are alike only when equal: there, one word more or less is another action."""
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*\.?\d*%?")
_ANSWER = re.compile(r"answer\s*(?:is|:|=)\s*[*$\"'`]*(?:\\boxed\{)?([-+]?\w[\w.,/:-]*)", re.IGNORECASE)


class Reply(NamedTuple):
    """One reply of the model."""

    turn: int
    parent: int | None
    status: int
    text: str
    calls: tuple[tuple[str, str], ...]
    """Name and arguments of each tool call."""

    @classmethod
    def of(cls, turn: int, parent: int | None, status: int, messages: list[Any]) -> Self:
        """Extract the first message of a recorded reply."""
        message = messages[0] if messages and isinstance(messages[0], dict) else {}
        return cls(turn, parent, status, content_text(message), tool_calls(message))

    @property
    def is_empty(self) -> bool:
        """Whether the reply has neither text nor a tool call. Reasoning alone is not a reply."""
        return not self.text.strip() and not self.calls

    @property
    def has_bad_call(self) -> bool:
        """Whether a tool call's arguments are not a JSON object."""
        return any(not _is_object(arguments) for _, arguments in self.calls)


def content_text(message: dict[str, Any]) -> str:
    """Extract the text of a message: its content, the text of its parts, or its refusal. Other parts are named."""
    content = message.get("content")
    if isinstance(content, list) and not all(isinstance(part, int) for part in content):  # token ids
        content = "\n".join(_part(part) for part in content)
    elif content is not None and not isinstance(content, str):
        content = stored_json(content).decode()
    return content or str(message.get("refusal") or "")


def reasoning(message: dict[str, Any]) -> str:
    """Extract the reasoning of a message, under any of the names that servers use; empty when there is none."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(thought := message.get(name), str) and thought.strip():
            return thought
    return ""


def tool_calls(message: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Extract the name and the arguments (JSON text as the model wrote it) of each tool call in a message."""
    given = message.get("tool_calls")
    calls = [call.get("function") for call in given if isinstance(call, dict)] if isinstance(given, list) else []
    calls.append(message.get("function_call"))
    return tuple(
        (str(call.get("name") or ""), _text(call.get("arguments"))) for call in calls if isinstance(call, dict)
    )


def form(reply: Reply) -> str:
    """Classify the form of a reply in one word; empty for an empty reply."""
    text = reply.text.strip()
    if reply.calls:
        return "call"
    if not text:
        return ""
    if text[0] in "{[" and text[-1] in "}]":
        return "json"
    if "```" in text:
        return "code"
    return "number" if _NUMBER.fullmatch(text) else "prose"


def stated_answer(text: str) -> str:
    """Extract the text after `the answer is` or `answer:`, in lower case; empty when there is none."""
    found = _ANSWER.search(text)
    return found[1].rstrip(".,:").lower() if found else ""


def is_alike(one: Reply, other: Reply) -> bool:
    """Whether two replies have the same tool calls and nearly the same words."""
    if one.calls != other.calls:
        return False
    words, other_words = _words(one.text), _words(other.text)
    if words == other_words:
        return bool(words or one.calls)
    if min(len(words), len(other_words)) < _LONG_WORDS:
        return False
    shingles, other_shingles = _shingles(words), _shingles(other_words)
    return len(shingles & other_shingles) >= _ALIKE * len(shingles | other_shingles)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _shingles(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(_SHINGLE_WORDS)), strict=False))


def _part(part: object) -> str:
    if isinstance(part, dict):
        text = part.get("text")
        return text if isinstance(text, str) else f"[{part.get('type') or 'part'}]"
    return str(part)


def _text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else stored_json(arguments).decode()


def _is_object(arguments: str) -> bool:
    if not arguments.strip():
        return True  # servers send this for a tool without parameters
    try:
        return isinstance(read_json(arguments), dict)
    except (ValueError, RecursionError):
        return False
