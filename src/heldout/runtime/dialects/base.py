"""What a dialect is: a protocol in which agents call the model, such as OpenAI's chat completions.

A dialect parses a request into the one message form that is recorded, applies the job's edits, and renders replies,
streams and errors in its own shape. Recording, access, limits and reports use these types alone and know no dialect.

The policy's server speaks chat completions and completions. A dialect with another form translates to one of them
(`DialectCall.edit`) and back (`DialectCall.read`, `DialectCall.stream`). A new dialect is one module, and one line in
`heldout.runtime.dialects.table`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from heldout.errors import shown
from heldout.http.exchange import Answer
from heldout.job.json_values import clean_text, read_json
from heldout.policies.base import ModelReply
from heldout.runtime.capture import TextPrompt
from heldout.runtime.refusals import Refusal, invalid
from heldout.runtime.rules import JobEdits

NO_COMPLETION = "the policy's answer is not a completion"
"""How messages about such an answer begin."""


class Route(NamedTuple):
    """An operation that a dialect serves, with and without `/v1` before its path."""

    method: str
    path: str
    """A path that ends with `/` serves everything below it that no longer route serves."""


class TrajectoryView(Protocol):
    """A trajectory, as far as parsing a request needs it."""

    memory: dict[str, object]
    """Whatever dialects keep between requests, such as stored responses, by a key of their own. Dropped when the trajectory
    ends."""

    def messages_of(self, prompt: TextPrompt) -> list[object]:
        """Returns a text prompt as messages that continue those of earlier calls."""
        ...


class AgentRequest(NamedTuple):
    """A request that was admitted, read whole."""

    method: str
    path: str
    """Without `/v1` and without the trajectory's own prefix."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    trajectory: TrajectoryView


class EditedCall(NamedTuple):
    """A model call as the policy's server receives it."""

    path: str
    """Below the policy's base URL: `/chat/completions` or `/completions`."""
    body: bytes
    """JSON, with the job's edits."""
    is_streamed: bool
    added: frozenset[str] = frozenset()
    """Fields that only the job asks for: `seed`, `logprobs`, `stream_options`. A server that refuses one is asked without it."""


class Reply(NamedTuple):
    """What is recorded of a policy's reply. Fields as in `heldout.job.records.Turn`."""

    messages: list[object]
    """One assistant message for each choice; tool calls are in the messages."""
    finish_reason: str | None
    """Of the first choice, as are the log-probabilities."""
    prompt_tokens: int | None
    response_tokens: int | None
    logprobs: tuple[float, ...] | None


class WholeReply(NamedTuple):
    """A whole reply, read and rendered."""

    reply: Reply | None
    """None if the policy's body is not a completion."""
    answer: Answer
    """What the agent receives; unused if the body is not a completion."""


class ReplyTooLong(Exception):
    """A reply has more bytes than the limit."""


class ReplyStream(Protocol):
    """Follows one streamed reply: renders each piece for the agent, and assembles what is recorded."""

    @property
    def is_done(self) -> bool:
        """Whether the last event has arrived. The turn is recorded before the agent receives it."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether every choice has a finish reason, even if the last event is missing."""
        ...

    @property
    def error(self) -> str | None:
        """The message of an error event in the stream. That event is rendered by `feed`."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Takes the policy's next bytes and returns the agent's. Raises ReplyTooLong beyond the limit."""
        ...

    def finish(self) -> bytes:
        """Returns the agent's last bytes after the policy's stream has ended."""
        ...

    def error_event(self, refusal: Refusal) -> bytes:
        """Returns the event that ends a stream after a failure."""
        ...

    def reply(self) -> Reply:
        """Returns the reply as far as it has arrived."""
        ...


class DialectCall(Protocol):
    """One model call: the request in the recorded form, and what its reply has to become."""

    @property
    def messages(self) -> list[object]:
        """The conversation, as chat messages. Empty if the call continues none, such as several prompts at once."""
        ...

    @property
    def parameters(self) -> dict[str, object]:
        """The rest of the request as the agent sent it. The recording keeps it: it must not be changed afterwards."""
        ...

    def sampling(self, name: str) -> object:
        """Returns the agent's value of `temperature`, `top_p` or `max_tokens`, however the dialect spells it; None if absent."""
        ...

    def edit(self, edits: JobEdits) -> EditedCall:
        """Returns the call with the job's edits applied. Called before `read` or `stream`, and again with fewer edits for a
        server that refuses one. The last call decides what `read` and `stream` hide.

        Raises TypeError or RecursionError if it is nested too deeply.
        """
        ...

    def read(self, reply: ModelReply) -> WholeReply:
        """Reads and renders a whole reply with a status below 400."""
        ...

    def stream(self, limit: int) -> ReplyStream:
        """Begins to follow a streamed reply of at most `limit` bytes."""
        ...


class Dialect(Protocol):
    """A protocol in which agents call the model. It holds no state; one instance serves every job."""

    @property
    def name(self) -> str:
        """A short name for messages, such as `chat_completions`."""
        ...

    @property
    def routes(self) -> tuple[Route, ...]:
        """The operations it serves."""
        ...

    @property
    def unavailable_status(self) -> int:
        """HTTP status when the policy is unreachable after its own retries; one that the dialect's clients do not retry."""
        ...

    def parse(self, request: AgentRequest) -> DialectCall | Answer:
        """Parses a request. Returns an answer instead for a request that needs no model call.

        Raises Refusal if the request cannot be understood or translated.
        """
        ...

    def policy_error(self, reply: ModelReply, message: str) -> Answer:
        """Renders an error of the policy's server (status 400 or above). message: one line, naming the status."""
        ...

    def error(self, refusal: Refusal) -> Answer:
        """Renders an error of the Job Runtime."""
        ...


def parse_object(body: bytes) -> dict[str, object]:
    """Parses a request's body. Raises Refusal (400) if it is no JSON object."""
    try:
        # A conversation is long, and sent again in each turn. The policy gets what is recorded.
        sent = read_json(body, is_exact=False)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON ({error}): {shown(body)}; expected an OpenAI-compatible request") from None
    if not isinstance(sent, dict):
        raise invalid(f"the body is {shown(sent)}; expected a JSON object, an OpenAI-compatible request")
    return sent


def error_text(body: bytes) -> str:
    """Returns the message of an error reply on one line, at most 400 characters: its `error.message`, or else its beginning.

    OpenAI's and Anthropic's error bodies both hold `error.message`.
    """
    try:
        parsed = read_json(body)
    except (ValueError, RecursionError):
        parsed = None
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else body[:400].decode(errors="replace")
    return clean_text(" ".join(text.split())[:400])
