"""Replies of the scripted model server: the rules that choose one, and its bytes on the wire.

Wire format: OpenAI chat completions and completions, plain and as server-sent events, as the openai client 2.x reads them.
Token counts follow a simple rule: a word with the spaces before it is one response token, four bytes of the request are one
prompt token.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from heldout.errors import InputError, did_you_mean, shown

JSON = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in a reply."""

    name: str
    arguments: str = "{}"
    """A JSON object, as text."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one request; by default a plain `ok`."""

    content: str | tuple[str, ...] = "ok"
    """Text of the reply. With several, choice i of a request with `n` gets the i-th, and they repeat."""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    """By default `tool_calls` with tool calls, `length` when `max_tokens` cut the text, else `stop`."""
    logprobs: tuple[float, ...] = (-0.5,)
    """Log-probabilities of the tokens, repeated as needed, for a request that wants them."""
    status: int = 200
    """With another status the body is an OpenAI error object whose message is `content`."""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    """Wait before the first byte, on top of the server's own latency."""
    seconds_per_token: float = 0.0
    """Wait before each further chunk of a streamed reply."""
    dropped_after: int | None = None
    """Close the connection after this many bytes of the response, head included."""
    raw: bytes | None = None
    """The body for any request, instead of a completion: server-sent events if it begins with `data:`, else JSON."""


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """One request, the input of a script."""

    number: int
    """From 0, in the order of arrival at this server."""
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: JSON = field(default_factory=dict)

    @property
    def last_message(self) -> str:
        """Returns the text of the last message, or the prompt of a text completion; empty without either."""
        messages = self.body.get("messages")
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            return str(messages[-1].get("content") or "")
        return str(self.body.get("prompt") or "")


Script = Callable[[ScriptedCall], Reply]


class Wire(NamedTuple):
    """A reply ready to send."""

    content_type: str
    chunks: tuple[bytes, ...]
    """One for a plain body; one for each server-sent event otherwise."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Answers matching requests with `reply`; by default all of them."""

    reply: Reply
    contains: str = ""
    """Text that the last message must contain."""
    calls: tuple[int, int | None] = (0, None)
    """Range of request numbers: from the first up to, not including, the second."""

    def fits(self, call: ScriptedCall) -> bool:
        first, end = self.calls
        return call.number >= first and (end is None or call.number < end) and self.contains in call.last_message


_RULES = TypeAdapter(list[Rule], config=ConfigDict(extra="forbid"))
_NAMES = [one.name for kind in (Rule, Reply, ToolCall) for one in fields(kind)]


def by_rules(rules: Sequence[Rule]) -> Script:
    """Returns a script that answers with the first matching rule, or with a plain `ok`."""

    def answer(call: ScriptedCall) -> Reply:
        return next((rule.reply for rule in rules if rule.fits(call)), Reply())

    return answer


def read_rules(path: Path) -> list[Rule]:
    """Reads rules from a JSON file: an array of `{"contains"?, "calls"?: [first, end], "reply": {fields of Reply}}`.

    Raises InputError, naming the file, the place and the expected value, for any other content.
    """
    try:
        return _RULES.validate_json(path.read_bytes())
    except OSError as problem:
        raise InputError(f"rules {str(path)!r} cannot be read: {problem}") from problem
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][-1]) if first["loc"] else ""
        hint = did_you_mean(name, _NAMES) if first["type"] == "unexpected_keyword_argument" else ""
        place = "".join(f"[{part!r}]" for part in first["loc"])
        raise InputError(f"rules{place} in {str(path)!r} is {shown(first['input'])}: {first['msg']}.{hint}") from error


def render(reply: Reply, call: ScriptedCall, prompt_tokens: int) -> Wire:
    """Renders the body of `reply` to `call`, plain or streamed as requested."""
    if reply.raw is not None:
        return Wire("text/event-stream" if reply.raw.startswith(b"data:") else "application/json", (reply.raw,))
    if reply.status != 200:
        error = {"message": _content(reply, 0), "type": "scripted", "code": reply.status}
        return Wire("application/json", (orjson.dumps({"error": error}),))
    shape = _shape(call)
    if call.body.get("stream"):
        return Wire("text/event-stream", tuple(_events(reply, call, shape, prompt_tokens)))
    return Wire("application/json", (_plain(reply, call, shape, prompt_tokens),))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fields of a request that change the form of the reply."""

    is_chat: bool
    n: int
    max_tokens: int | None
    has_logprobs: bool


class _Choice(NamedTuple):
    tokens: tuple[str, ...]
    finish_reason: str


def _shape(call: ScriptedCall) -> _Shape:
    limit = call.body.get("max_completion_tokens", call.body.get("max_tokens"))
    n = call.body.get("n")
    logprobs = call.body.get("logprobs")
    return _Shape(
        is_chat=call.path.endswith("/chat/completions"),
        n=n if isinstance(n, int) else 1,
        max_tokens=limit if isinstance(limit, int) else None,
        has_logprobs=logprobs is not None and logprobs is not False,
    )


def _content(reply: Reply, index: int) -> str:
    return reply.content if isinstance(reply.content, str) else reply.content[index % len(reply.content)]


def _choice(reply: Reply, shape: _Shape, index: int) -> _Choice:
    tokens = tuple(re.findall(r"\s*\S+|\s+", _content(reply, index)))
    kept = tokens[: shape.max_tokens]
    finish = "length" if len(kept) < len(tokens) else "tool_calls" if reply.tool_calls else "stop"
    return _Choice(kept, reply.finish_reason or finish)


def _plain(reply: Reply, call: ScriptedCall, shape: _Shape, prompt_tokens: int) -> bytes:
    choices, response_tokens = _plain_choices(reply, shape)
    return b'{%b,"choices":%b,"usage":%b}' % (
        _head(call, "chat.completion" if shape.is_chat else "text_completion"),
        choices,
        orjson.dumps(_usage(prompt_tokens, response_tokens)),
    )


@lru_cache(maxsize=4096)
def _plain_choices(reply: Reply, shape: _Shape) -> tuple[bytes, int]:
    """Returns the JSON of the choices and their token count. Cached: a benchmark requests the same one a million times."""
    choices: list[dict[str, object]] = []
    response_tokens = 0
    for index in range(shape.n):
        choice = _choice(reply, shape, index)
        response_tokens += len(choice.tokens)
        text = "".join(choice.tokens)
        if shape.is_chat:
            message: dict[str, object] = {"role": "assistant", "content": text}
            if reply.tool_calls:
                message |= {"content": text or None, "tool_calls": _tool_calls(reply, index)}
            body: dict[str, object] = {"message": message}
        else:
            body = {"text": text}
        logprobs = _logprobs(reply, shape, choice.tokens)
        choices.append({"index": index, **body, "logprobs": logprobs, "finish_reason": choice.finish_reason})
    return orjson.dumps(choices), response_tokens


def _events(reply: Reply, call: ScriptedCall, shape: _Shape, prompt_tokens: int) -> Iterator[bytes]:
    head = _head(call, "chat.completion.chunk" if shape.is_chat else "text_completion")
    choices = [_choice(reply, shape, index) for index in range(shape.n)]
    for index, choice in enumerate(choices):
        for event in _choice_events(reply, shape, index, choice):
            yield b"data: {%b,%b}\n\n" % (head, orjson.dumps({"choices": [event]})[1:-1])
    options = call.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        usage = _usage(prompt_tokens, sum(len(choice.tokens) for choice in choices))
        yield b"data: {%b,%b}\n\n" % (head, orjson.dumps({"choices": [], "usage": usage})[1:-1])
    yield b"data: [DONE]\n\n"


def _choice_events(reply: Reply, shape: _Shape, index: int, choice: _Choice) -> Iterator[dict[str, object]]:
    if not shape.is_chat:
        for token in choice.tokens:
            yield {"index": index, "text": token, "finish_reason": None}
        yield {"index": index, "text": "", "finish_reason": choice.finish_reason}
        return
    yield {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for position, token in enumerate(choice.tokens):
        event: dict[str, object] = {"index": index, "delta": {"content": token}, "finish_reason": None}
        if shape.has_logprobs:
            event["logprobs"] = {"content": [_logprob(reply, position, token)]}
        yield event
    for position, tool_call in enumerate(_tool_calls(reply, index)):
        delta = {"tool_calls": [{"index": position, **tool_call}]}
        yield {"index": index, "delta": delta, "finish_reason": None}
    yield {"index": index, "delta": {}, "finish_reason": choice.finish_reason}


def _head(call: ScriptedCall, kind: str) -> bytes:
    model = orjson.dumps(call.body.get("model", "scripted"))
    return b'"id":"scripted-%d","object":"%b","created":0,"model":%b' % (call.number, kind.encode(), model)


def _usage(prompt_tokens: int, response_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": response_tokens,
        "total_tokens": prompt_tokens + response_tokens,
    }


def _tool_calls(reply: Reply, index: int) -> list[dict[str, object]]:
    return [
        {
            "id": f"call_{index}_{position}",
            "type": "function",
            "function": {"name": tool_call.name, "arguments": tool_call.arguments},
        }
        for position, tool_call in enumerate(reply.tool_calls)
    ]


def _logprobs(reply: Reply, shape: _Shape, tokens: Sequence[str]) -> dict[str, object] | None:
    if not shape.has_logprobs:
        return None
    entries = [_logprob(reply, position, token) for position, token in enumerate(tokens)]
    if shape.is_chat:
        return {"content": entries}
    return {"tokens": list(tokens), "token_logprobs": [entry["logprob"] for entry in entries], "top_logprobs": None}


def _logprob(reply: Reply, position: int, token: str) -> dict[str, object]:
    logprob = reply.logprobs[position % len(reply.logprobs)]
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
