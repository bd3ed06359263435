"""OpenAI's chat completions: `POST /chat/completions`. The recorded message form is this dialect's own."""

from heldout.errors import shown
from heldout.http.exchange import Answer
from heldout.policies.base import ModelReply
from heldout.runtime.dialects.base import AgentRequest, Route, parse_object
from heldout.runtime.dialects.openai_call import CHAT_PATH, OpenAICall
from heldout.runtime.refusals import Refusal, invalid


class ChatCompletions:
    """The dialect of the openai client and of most agent frameworks."""

    name = "chat_completions"
    routes = (Route("POST", CHAT_PATH),)
    unavailable_status = 503
    """Refusals carry `x-should-retry: false`, which the openai client obeys."""

    def parse(self, request: AgentRequest) -> OpenAICall:
        """Parses a chat completion. Raises Refusal (400) if `messages` is no list."""
        return chat_call(parse_object(request.body))

    def policy_error(self, reply: ModelReply, message: str) -> Answer:  # noqa: ARG002  # the policy's own body says more
        """Passes the policy's error on as it is: the server speaks this dialect."""
        return Answer(reply.status, {"Content-Type": reply.content_type}, reply.body)

    def error(self, refusal: Refusal) -> Answer:
        """Renders an error as OpenAI does."""
        return refusal.answer()


def chat_call(sent: dict[str, object], *, must_stream: bool = False) -> OpenAICall:
    """Returns a parsed request as a chat completion; takes `messages` out of `sent`. Raises Refusal (400) if it is no list."""
    messages = sent.pop("messages", None)
    if not isinstance(messages, list):
        raise invalid(f"messages is {shown(messages)}; it must be a list of messages")
    return OpenAICall(
        CHAT_PATH, messages=messages, parameters=sent, asked={"messages": messages}, must_stream=must_stream
    )
