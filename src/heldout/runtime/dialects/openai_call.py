"""A model call in OpenAI's own form, which the policy's server speaks too: edited, passed on, and its reply passed back.

Source: OpenAI's API reference, chat completions and completions (version of openai 2.54).
"""

from collections.abc import Mapping

from heldout.http.exchange import Answer
from heldout.job.json_values import read_json, sent_json
from heldout.policies.base import ModelReply
from heldout.runtime.dialects.base import EditedCall, WholeReply
from heldout.runtime.dialects.openai_replies import OpenAIStream, read_reply, without_logprobs
from heldout.runtime.rules import JobEdits

CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"


class OpenAICall:
    """A call of chat completions or completions. It implements `heldout.runtime.dialects.base.DialectCall`.

    path: `CHAT_PATH` or `COMPLETION_PATH`. messages: the conversation in the recorded form. parameters: the request without
    what `asked` holds. asked: a chat's `messages` or one `prompt`, as sent. must_stream: stream even if the request does not
    ask for it, because the operation does.
    """

    __slots__ = ("_asked", "_hides_logprobs", "_hides_usage", "_must_stream", "_path", "messages", "parameters")

    def __init__(
        self,
        path: str,
        *,
        messages: list[object],
        parameters: dict[str, object],
        asked: Mapping[str, object],
        must_stream: bool = False,
    ) -> None:
        self.messages = messages
        self.parameters = parameters
        self._path = path
        self._asked = asked
        self._must_stream = must_stream
        self._hides_logprobs = False
        """Whether only the job wants the reply's log-probabilities."""
        self._hides_usage = False
        """Whether the last chunk of a stream, which has only the usage, is there because the job asks for it."""

    def sampling(self, name: str) -> object:
        """Returns the agent's value of `temperature`, `top_p` or `max_tokens`; None if absent."""
        return self.parameters.get(self._spelling(name))

    def edit(self, edits: JobEdits) -> EditedCall:
        """Returns the call with the job's edits. Raises TypeError or RecursionError if it is nested too deeply."""
        sent = self.parameters
        is_streamed = self._must_stream or sent.get("stream") is True
        added = self._added(edits, is_streamed=is_streamed)
        self._hides_logprobs, self._hides_usage = "logprobs" in added, "stream_options" in added
        edited = {**sent, "model": edits.model_name, **self._asked, **added}
        for name, value in edits.enforced:
            edited[self._spelling(name)] = value
        if is_streamed:
            edited["stream"] = True
        return EditedCall(self._path, sent_json(edited), is_streamed, frozenset(added))

    def _added(self, edits: JobEdits, *, is_streamed: bool) -> dict[str, object]:
        """The fields that only the job asks for."""
        sent = self.parameters
        added: dict[str, object] = {}
        if edits.seed is not None and sent.get("seed") is None:
            added["seed"] = edits.seed
        if edits.wants_logprobs and not _asks_for_logprobs(sent):
            # Completions take a number: how many alternatives to list for each token.
            added["logprobs"] = True if self._path == CHAT_PATH else 1
        if is_streamed and edits.wants_usage and not _asks_for_usage(sent):
            options = sent.get("stream_options")
            added["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return added

    def read(self, reply: ModelReply) -> WholeReply:
        """Reads a whole reply and passes it on, without log-probabilities that the agent did not ask for."""
        parsed = _json_or_none(reply.body)
        kept = read_reply(parsed)  # before the log-probabilities are taken out
        body = without_logprobs(parsed) if self._hides_logprobs and isinstance(parsed, dict) else reply.body
        return WholeReply(kept, Answer(reply.status, {"Content-Type": reply.content_type}, body))

    def stream(self, limit: int) -> OpenAIStream:
        """Begins to follow a streamed reply of at most `limit` bytes."""
        return OpenAIStream(hides_usage=self._hides_usage, hides_logprobs=self._hides_logprobs, limit=limit)

    def _spelling(self, name: str) -> str:
        """OpenAI renamed max_tokens. Servers differ in which of the two names they accept, so the agent's choice stands."""
        is_renamed = name == "max_tokens" and self.parameters.get("max_completion_tokens") is not None
        return "max_completion_tokens" if is_renamed else name


def _asks_for_usage(sent: Mapping[str, object]) -> bool:
    options = sent.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _asks_for_logprobs(sent: Mapping[str, object]) -> bool:
    """Whether the agent wants log-probabilities. In completions 0 does: no alternatives, but that of each token."""
    logprobs = sent.get("logprobs")
    return logprobs is not None and logprobs is not False


def _json_or_none(body: bytes) -> object:
    try:
        return read_json(body)
    except (ValueError, RecursionError):
        return None
