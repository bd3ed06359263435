"""Sample and SampleWithResponseStream of SageMaker's Job Runtime: an OpenAI request, with errors for AWS clients.

Source: botocore's service model `sagemakerjobruntime` (2026-02-01).
"""

from heldout.http.exchange import Answer
from heldout.policies.base import ModelReply
from heldout.runtime.dialects.base import AgentRequest, Route, parse_object
from heldout.runtime.dialects.chat_completions import chat_call
from heldout.runtime.dialects.completions import completion_call
from heldout.runtime.dialects.openai_call import OpenAICall
from heldout.runtime.refusals import Refusal, relayed

_STREAM_PATH = "/sample-with-response-stream"


class Sample:
    """The dialect of boto3 and of the published SageMaker client."""

    name = "sample"
    routes = (Route("POST", "/sample"), Route("POST", _STREAM_PATH))
    unavailable_status = 424
    """AWS clients retry a 503 four times, and each time wait for all the policy's retries."""

    def parse(self, request: AgentRequest) -> OpenAICall:
        """Parses a completion if the body has a `prompt` and no `messages`, else a chat completion. Raises Refusal (400)."""
        sent = parse_object(request.body)
        must_stream = request.path == _STREAM_PATH
        if "prompt" in sent and "messages" not in sent:
            return completion_call(sent, request.trajectory, must_stream=must_stream)
        return chat_call(sent, must_stream=must_stream)

    def policy_error(self, reply: ModelReply, message: str) -> Answer:
        """Renders the policy's error as an exception of the service model, with the policy's status."""
        return relayed(reply.status, message).answer()

    def error(self, refusal: Refusal) -> Answer:
        """Renders an error as the service model defines it."""
        return refusal.answer()
