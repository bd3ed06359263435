"""A dialect of its own form for tests: requests, replies, streams, errors and stored replies.

POST /toy/ask {"say": "hi", "words": 5, "live": false}  ->  {"id": "1", "heard": "Hello"}
GET /toy/replies/1                                       ->  the same reply again
an error                                                 ->  {"oh": "the message"}
a stream                                                 ->  lines "+Hello", then ".", or "!the message"
"""

import orjson

from heldout.http.exchange import Answer
from heldout.policies.base import ModelReply
from heldout.runtime.dialects.base import (
    AgentRequest,
    EditedCall,
    Reply,
    Route,
    TrajectoryView,
    WholeReply,
    parse_object,
)
from heldout.runtime.dialects.openai_call import CHAT_PATH, OpenAICall
from heldout.runtime.dialects.openai_replies import OpenAIStream
from heldout.runtime.refusals import Refusal, invalid, not_found
from heldout.runtime.rules import JobEdits

_REPLIES = "/toy/replies/"


class ToyDialect:
    """Translates to chat completions and back."""

    name = "toy"
    routes = (Route("POST", "/toy/ask"), Route("GET", _REPLIES))
    unavailable_status = 503

    def parse(self, request: AgentRequest) -> "ToyCall | Answer":
        """Parses a question, or answers with a stored reply."""
        if request.path.startswith(_REPLIES):
            return _stored(request.path.removeprefix(_REPLIES), request.trajectory)
        sent = parse_object(request.body)
        say = sent.pop("say", None)
        if not isinstance(say, str):
            raise invalid("say is missing; it must be a text")
        return ToyCall([{"role": "user", "content": say}], sent, request.trajectory)

    def policy_error(self, reply: ModelReply, message: str) -> Answer:
        """Renders the policy's error."""
        return Answer(reply.status, {}, orjson.dumps({"oh": message}))

    def error(self, refusal: Refusal) -> Answer:
        """Renders an error of the Job Runtime."""
        return Answer(refusal.status, {}, orjson.dumps({"oh": refusal.message}))


class ToyCall:
    """One question, translated to a chat completion."""

    def __init__(self, messages: list[object], parameters: dict[str, object], trajectory: TrajectoryView) -> None:
        self.messages = messages
        self.parameters = parameters
        self._trajectory = trajectory
        translated = {"stream": parameters.get("live", False)}
        if "words" in parameters:
            translated["max_tokens"] = parameters["words"]
        self._chat = OpenAICall(CHAT_PATH, messages=messages, parameters=translated, asked={"messages": messages})

    def sampling(self, name: str) -> object:
        """Returns `words` as `max_tokens`; the toy has no other sampling parameter."""
        return self._chat.sampling(name)

    def edit(self, edits: JobEdits) -> EditedCall:
        """Returns the edited chat completion."""
        return self._chat.edit(edits)

    def read(self, reply: ModelReply) -> WholeReply:
        """Renders a whole reply and stores it."""
        kept = self._chat.read(reply).reply
        number = str(len(self._trajectory.memory) + 1)
        body = orjson.dumps({"id": number, "heard": _text(kept)})
        self._trajectory.memory[number] = body
        return WholeReply(kept, Answer(200, {}, body))

    def stream(self, limit: int) -> "ToyStream":
        """Begins to follow a streamed reply."""
        return ToyStream(self._chat.stream(limit))


class ToyStream:
    """Renders the text of each chunk as a line."""

    def __init__(self, chat: OpenAIStream) -> None:
        self._chat = chat
        self._num_sent = 0

    @property
    def is_done(self) -> bool:
        """Whether the last event has arrived."""
        return self._chat.is_done

    @property
    def is_complete(self) -> bool:
        """Whether the reply has a finish reason."""
        return self._chat.is_complete

    @property
    def error(self) -> str | None:
        """The message of an error event."""
        return self._chat.error

    def feed(self, data: bytes) -> bytes:
        """Renders the text that is new."""
        self._chat.feed(data)
        text = _text(self._chat.reply())
        new, self._num_sent = text[self._num_sent :], len(text)
        return (f"+{new}\n" if new else "").encode() + (b".\n" if self._chat.is_done else b"")

    def finish(self) -> bytes:
        """Renders nothing: the last event was the end."""
        return b""

    def error_event(self, refusal: Refusal) -> bytes:
        """Renders a failure."""
        return f"!{refusal.message}\n".encode()

    def reply(self) -> Reply:
        """Returns the reply as far as it has arrived."""
        return self._chat.reply()


def _stored(number: str, trajectory: TrajectoryView) -> Answer:
    body = trajectory.memory.get(number)
    if not isinstance(body, bytes):
        raise not_found(f"there is no reply {number}")
    return Answer(200, {}, body)


def _text(reply: Reply | None) -> str:
    message = reply.messages[0] if reply is not None and reply.messages else None
    return str(message["content"] or "") if isinstance(message, dict) else ""
