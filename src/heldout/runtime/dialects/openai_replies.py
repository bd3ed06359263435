"""Reads OpenAI's replies: a whole JSON body, or server-sent events, which are relayed as they arrive.

Pure: bytes and parsed JSON in, records and bytes out. Source: OpenAI's API reference, chat completions and completions
(version of openai 2.54).
"""

import math
import re
from dataclasses import dataclass, field

from heldout.job.json_values import clean_text, read_json, sent_json
from heldout.job.received import token_count
from heldout.job.records import BAD_REPLY
from heldout.runtime.dialects.base import NO_COMPLETION, Reply, ReplyTooLong, error_text
from heldout.runtime.refusals import Refusal, internal

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_LONGEST_END = 4


def read_reply(body: object) -> Reply | None:
    """Returns what is recorded of a whole reply, parsed; None if it is not a completion."""
    if not isinstance(body, dict) or body.get("error"):
        return None
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not all(_is_answer(choice) for choice in choices):
        return None
    first = choices[0]
    return Reply(
        [_message(choice) for choice in choices],
        _text_or_none(first.get("finish_reason")),
        *_token_counts(body.get("usage")),
        _as_tuple(_logprobs(first)),
    )


def without_logprobs(reply: dict[str, object]) -> bytes:
    """Returns a reply, or a chunk of one, as JSON whose log-probabilities are null, as if the agent's request had gone alone."""
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict) and "logprobs" in choice:
            choice["logprobs"] = None
    return sent_json(reply)


class OpenAIStream:
    """Follows a streamed reply. It implements `heldout.runtime.dialects.base.ReplyStream`.

    hides_usage, hides_logprobs: remove what the agent did not ask for. limit: most bytes of the whole reply.
    Only whole events are relayed; those with nothing to remove are relayed byte for byte.
    """

    def __init__(self, *, hides_usage: bool, hides_logprobs: bool, limit: int) -> None:
        self.is_done = False
        """Whether the event `[DONE]` has arrived."""
        self.error: str | None = None
        """The message of an error event in the stream."""
        self._hides_usage = hides_usage
        self._hides_logprobs = hides_logprobs
        self._room = limit
        self._rest = bytearray()
        self._searched = 0
        self._choices: dict[int, _Choice] = {}
        self._usage: object = None

    def feed(self, data: bytes) -> bytes:
        """Takes the policy's next bytes and returns those to relay. Raises ReplyTooLong beyond the limit."""
        self._room -= len(data)
        if self._room < 0:
            raise ReplyTooLong("the policy's streamed reply is longer than the Job Runtime takes")
        self._rest += data
        start = 0
        relayed = []
        for end in _EVENT_END.finditer(self._rest, self._searched):
            relayed.append(self._take(bytes(self._rest[start : end.end()])))
            start = end.end()
        del self._rest[:start]
        self._searched = max(0, len(self._rest) - _LONGEST_END + 1)
        return b"".join(relayed)

    def finish(self) -> bytes:
        """Returns the rest to relay, if no empty line closed the last event."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._take(rest) if rest else b""

    def error_event(self, refusal: Refusal) -> bytes:
        """Returns an event on which the openai client raises."""
        return b"data: " + refusal.body() + b"\n\n"

    @property
    def is_complete(self) -> bool:
        """Whether every choice has a finish reason: the reply is whole, even if `[DONE]` is missing."""
        return bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())

    def reply(self) -> Reply:
        """Returns the reply as far as it has arrived."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        first = choices[0] if choices else _Choice()
        return Reply(
            [choice.message() for choice in choices],
            first.finish_reason,
            *_token_counts(self._usage),
            _as_tuple(first.logprobs),
        )

    def _take(self, event: bytes) -> bytes:
        data = _event_data(event)
        if data == b"[DONE]":
            self.is_done = True
            return event if self._choices or self.error else self._refused_end() + event
        try:
            chunk = read_json(data)
        except (ValueError, RecursionError):
            return event
        if not isinstance(chunk, dict):
            return event
        return self._take_chunk(chunk, event)

    def _refused_end(self) -> bytes:
        """Returns an error event that comes before the end of a stream without a choice: clients stop reading at the end."""
        self.error = "the stream ended without a completion"
        return self.error_event(internal(f"{NO_COMPLETION}: {self.error}", BAD_REPLY))

    def _take_chunk(self, chunk: dict[str, object], event: bytes) -> bytes:
        if chunk.get("error"):
            self.error = error_text(sent_json(chunk))
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return b"" if self._hides_usage and chunk.get("usage") is not None else event
        has_logprobs = False
        for choice in choices:
            if isinstance(choice, dict):
                self._take_choice(choice)
                has_logprobs = has_logprobs or choice.get("logprobs") is not None
        if self._hides_logprobs and has_logprobs:
            return b"data: " + without_logprobs(chunk) + b"\n\n"
        return event

    def _take_choice(self, choice: dict[str, object]) -> None:
        index = choice.get("index")
        kept = self._choices.setdefault(index if isinstance(index, int) else 0, _Choice())
        delta = choice.get("delta")
        if isinstance(delta, dict):
            kept.add(delta)
        elif isinstance(choice.get("text"), str):
            kept.add({"role": "assistant", "content": choice["text"]})
        kept.finish_reason = _text_or_none(choice.get("finish_reason")) or kept.finish_reason
        if (logprobs := _logprobs(choice)) is not None:
            kept.logprobs = kept.logprobs or []
            kept.logprobs += logprobs


@dataclass(slots=True)
class _Choice:
    """One choice of a streamed reply, as far as it has arrived."""

    fields: dict[str, object] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, "_ToolCall"] = field(default_factory=dict)
    finish_reason: str | None = None
    logprobs: list[float] | None = None

    def add(self, delta: dict[str, object]) -> None:
        for key, value in delta.items():
            if key == "tool_calls" and isinstance(value, list):
                for part in value:
                    if isinstance(part, dict):
                        self._tool_call(part).add(part)
            elif isinstance(value, str) and key != "role":
                self.texts.setdefault(key, []).append(value)
            elif value is not None:
                earlier = self.fields.get(key)
                are_lists = isinstance(earlier, list) and isinstance(value, list)
                self.fields[key] = [*earlier, *value] if are_lists else value  # type: ignore[misc]

    def _tool_call(self, part: dict[str, object]) -> "_ToolCall":
        """Returns the tool call that a piece belongs to: the one with its index.

        Some servers send no index, which OpenAI's streams always have. There a piece begins a new call if it has another id than
        the call before, or a name where that call has one already. Any other piece continues the call before.
        """
        index = part.get("index")
        if isinstance(index, int):
            return self.tool_calls.setdefault(index, _ToolCall())
        last = max(self.tool_calls, default=-1)
        known = self.tool_calls.get(last)
        if known is None or known.is_followed_by(part):
            known = self.tool_calls[last + 1] = _ToolCall()
        return known

    def message(self) -> dict[str, object]:
        """Returns the message of the same reply unstreamed. Content that is absent is null, as OpenAI has it."""
        message = {"role": "assistant", "content": None, **self.fields}
        message.update((key, "".join(texts)) for key, texts in self.texts.items())
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[index].whole() for index in sorted(self.tool_calls)]
            message["content"] = message["content"] or None
        return message


@dataclass(slots=True)
class _ToolCall:
    """A tool call whose arguments arrive in pieces, and everything else at once."""

    fields: dict[str, object] = field(default_factory=dict)
    function: dict[str, object] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)

    def add(self, part: dict[str, object]) -> None:
        function = part.get("function")
        for key, value in (function if isinstance(function, dict) else {}).items():
            if key == "arguments" and isinstance(value, str):
                self.arguments.append(value)
            elif value not in (None, ""):
                self.function[key] = value
        self.fields.update(
            (key, value) for key, value in part.items() if key not in ("index", "function") and value not in (None, "")
        )

    def is_followed_by(self, part: dict[str, object]) -> bool:
        """Whether a piece without an index begins another call than this one."""
        identity, known = part.get("id"), self.fields.get("id")
        if identity and known:
            return identity != known
        function = part.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        return bool(identity or name) and bool(self.function.get("name"))

    def whole(self) -> dict[str, object]:
        return {"type": "function", **self.fields, "function": {**self.function, "arguments": "".join(self.arguments)}}


def _event_data(event: bytes) -> bytes:
    """Returns the data of a server-sent event: its `data` lines, joined (WHATWG HTML, section 9.2.6)."""
    if event.startswith(b"data:") and event.find(b"\n") >= len(event) - 2:
        return event[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines).strip()


def _is_answer(choice: object) -> bool:
    """Whether a choice contains output of the model. Routers put a provider's error into the choice (`error`)."""
    if not isinstance(choice, dict) or choice.get("error"):
        return False
    return isinstance(choice.get("message"), dict) or isinstance(choice.get("text"), str)


def _message(choice: dict[str, object]) -> object:
    if "message" not in choice and "text" in choice:
        return {"role": "assistant", "content": choice["text"]}
    return choice.get("message")


def _token_counts(usage: object) -> tuple[int | None, int | None]:
    counts = usage if isinstance(usage, dict) else {}
    return token_count(counts.get("prompt_tokens")), token_count(counts.get("completion_tokens"))


def _logprobs(choice: dict[str, object]) -> list[float] | None:
    """Returns the log-probability of each token of a choice. Chat completions and completions have different shapes."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    tokens = logprobs.get("content")
    if isinstance(tokens, list):
        values = [token.get("logprob") for token in tokens if isinstance(token, dict)]
    else:
        listed = logprobs.get("token_logprobs")
        if not isinstance(listed, list):
            return None
        values = listed
    return [_float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer
        return math.copysign(math.inf, value)


def _as_tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _text_or_none(value: object) -> str | None:
    return clean_text(value) if isinstance(value, str) else None
