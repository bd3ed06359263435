"""OpenAI's completions: `POST /completions`. A prompt is recorded as messages that continue those of earlier calls."""

from heldout.http.exchange import Answer
from heldout.policies.base import ModelReply
from heldout.runtime.dialects.base import AgentRequest, Route, TrajectoryView, parse_object
from heldout.runtime.dialects.openai_call import COMPLETION_PATH, OpenAICall
from heldout.runtime.refusals import Refusal


class Completions:
    """The dialect of agents that apply the chat template themselves."""

    name = "completions"
    routes = (Route("POST", COMPLETION_PATH),)
    unavailable_status = 503
    """Refusals carry `x-should-retry: false`, which the openai client obeys."""

    def parse(self, request: AgentRequest) -> OpenAICall:
        """Parses a completion. Raises Refusal (400) if the body is no JSON object."""
        return completion_call(parse_object(request.body), request.trajectory)

    def policy_error(self, reply: ModelReply, message: str) -> Answer:  # noqa: ARG002  # the policy's own body says more
        """Passes the policy's error on as it is: the server speaks this dialect."""
        return Answer(reply.status, {"Content-Type": reply.content_type}, reply.body)

    def error(self, refusal: Refusal) -> Answer:
        """Renders an error as OpenAI does."""
        return refusal.answer()


def completion_call(sent: dict[str, object], trajectory: TrajectoryView, *, must_stream: bool = False) -> OpenAICall:
    """Returns a parsed request as a completion; takes one `prompt` (text, or token ids) out of `sent`.

    Several prompts in one call continue no conversation: they stay in the parameters.
    """
    prompt = sent.get("prompt")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(token) is int for token in prompt)):
        return OpenAICall(COMPLETION_PATH, messages=[], parameters=sent, asked={}, must_stream=must_stream)
    del sent["prompt"]
    return OpenAICall(
        COMPLETION_PATH,
        messages=trajectory.messages_of(prompt),
        parameters=sent,
        asked={"prompt": prompt},
        must_stream=must_stream,
    )
