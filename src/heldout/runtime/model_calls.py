"""Passes a model call on to the policy, the reply back to the agent, and keeps the turn."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

import orjson

from heldout.errors import shown
from heldout.http.exchange import Answer, Request, Stream
from heldout.policies.base import ModelCall, ModelReply, Policy, PolicyUnavailable
from heldout.runtime.edits import CallEditor, CallRules, EditedCall, without_logprobs
from heldout.runtime.refusals import Refusal, internal, invalid, relayed
from heldout.runtime.replies import ReplyTooLong, StreamedReply, error_text, read_reply
from heldout.runtime.reports import not_in_valid_status
from heldout.runtime.trajectories import HUNG_UP, Call, Trajectory

log = logging.getLogger(__name__)

CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"

_REPLY_BYTES = 64 * 2**20
"""Most bytes of a streamed reply: room for log-probabilities with alternatives, not for a stream that never ends."""
_UNAVAILABLE = 503
"""Told to an OpenAI client, with a header by which that client does not try again: the policy's retries are used up."""
_UNAVAILABLE_AWS = 424
"""Told to an AWS client instead, which would retry a 503 four times, and each time wait for all the policy's retries."""


class _Asked(NamedTuple):
    """What a call asks the model, taken out of its body."""

    fields: dict[str, object]
    """A chat's `messages`, or a plain completion's `prompt`, as the agent sent it."""
    messages: list[object]
    """The same as messages."""


class ModelCalls:
    """The model side of the Job Runtime. `differences` counts the calls that depart from the job's sampling."""

    def __init__(self, *, policy: Policy, rules: CallRules) -> None:
        self.differences: Counter[str] = Counter()
        self._policy = policy
        self._editor = CallEditor(rules)

    async def answer(
        self,
        request: Request,
        trajectory: Trajectory,
        body: bytes,
        *,
        path: str | None,
        must_stream: bool = False,
    ) -> Answer | None:
        """Answers a request whose body is a model call of this trajectory; None when the answer has been streamed.

        path: of the call below the policy's base URL; None for the Sample operations, where the body decides and errors
        are told as AWS clients expect. Raises Refusal.
        """
        is_sample = path is None
        sent = _parsed(body)
        path = path or (COMPLETION_PATH if "prompt" in sent and "messages" not in sent else CHAT_PATH)
        asked = _taken_messages(sent) if path == CHAT_PATH else _taken_prompt(sent, trajectory)
        try:
            edited = self._editor.edit(
                sent,
                asked=asked.fields,
                model_name=self._policy.model_name,
                seed=trajectory.seed,
                call_number=trajectory.num_calls,
                must_stream=must_stream,
            )
            call = trajectory.begin(sent, asked.messages)
        except (orjson.JSONEncodeError, RecursionError):
            raise invalid("the body is nested too deeply, more than 250 levels") from None
        self._count_differences(trajectory, sent)
        try:
            reply = await self._policy.call(ModelCall(path, edited.body, trajectory.id, edited.is_streamed))
            if reply.chunks is not None and reply.status == 200 and not _is_json(reply):
                await self._relay(request, trajectory, call, edited, reply)
                return None
            return await self._pass_on(trajectory, call, edited, reply, is_sample=is_sample)
        except (PolicyUnavailable, ReplyTooLong) as unavailable:
            status = _UNAVAILABLE_AWS if is_sample else _UNAVAILABLE
            trajectory.policy_error = str(unavailable)
            trajectory.finish(call, status=status, reply=None, error=str(unavailable))
            raise internal(f"the policy is unavailable: {unavailable}", status) from unavailable
        except asyncio.CancelledError:
            if call.is_abandoned:
                _take_back_cancellation()
                raise _ended(trajectory) from None
            trajectory.cut_off(call, status=HUNG_UP, error="the agent hung up before the answer was complete")
            raise
        except ConnectionError:
            trajectory.cut_off(call, status=HUNG_UP, error="the agent hung up before the answer was complete")
            raise
        except Refusal:
            raise
        except Exception as error:
            # A bug, here or in a policy: the turn must still be there to see it by. The caller answers 500.
            trajectory.finish(call, status=500, reply=None, error=f"{type(error).__name__}: {error}")
            raise

    async def _pass_on(
        self, trajectory: Trajectory, call: Call, edited: EditedCall, reply: ModelReply, *, is_sample: bool
    ) -> Answer:
        body = reply.body if reply.chunks is None else await _collected(reply.chunks)
        if reply.status >= 400:
            error = f"the policy answered {reply.status}: {error_text(body)}"
            if reply.status >= 500:
                trajectory.policy_error = error
            trajectory.finish(call, status=reply.status, reply=None, error=error)
            if is_sample:
                raise relayed(reply.status, error)
            return Answer(reply.status, {"Content-Type": reply.content_type}, body)
        parsed = _json_or_none(body)
        kept = read_reply(parsed)
        error_or_none = None if kept is not None else f"the policy's answer is no completion: {shown(body)}"
        trajectory.finish(call, status=reply.status, reply=kept, error=error_or_none)
        if edited.hides_logprobs and isinstance(parsed, dict):
            body = without_logprobs(parsed)
        return Answer(reply.status, {"Content-Type": reply.content_type}, body)

    async def _relay(
        self, request: Request, trajectory: Trajectory, call: Call, edited: EditedCall, reply: ModelReply
    ) -> None:
        """Relays a streamed reply as it comes. Once it has begun, what goes wrong is told as an event in the stream."""
        assert reply.chunks is not None
        streamed = StreamedReply(
            hides_usage=edited.hides_usage, hides_logprobs=edited.hides_logprobs, limit=_REPLY_BYTES
        )
        call.streamed = streamed
        headers = {"Content-Type": reply.content_type, "Cache-Control": "no-cache"}
        try:
            answer = await request.stream(200, headers)
            await self._relay_into(answer, trajectory, call, streamed, reply.chunks)
            await answer.end()
        finally:
            if isinstance(reply.chunks, AsyncGenerator):
                await reply.chunks.aclose()

    async def _relay_into(
        self, answer: Stream, trajectory: Trajectory, call: Call, streamed: StreamedReply, chunks: AsyncIterator[bytes]
    ) -> None:
        try:
            async for chunk in chunks:
                relayed_bytes = streamed.feed(chunk)
                if streamed.is_done:
                    # Recorded before the agent can see the end, or its next request might overtake the recording.
                    _finish_streamed(trajectory, call, streamed)
                await answer.write(relayed_bytes)
            rest = streamed.finish()
            _finish_streamed(trajectory, call, streamed)
            await answer.write(rest)
        except (PolicyUnavailable, ReplyTooLong) as broken:
            trajectory.policy_error = str(broken)
            trajectory.cut_off(call, status=200, error=str(broken))
            await answer.write(_error_event(internal(str(broken))))
        except asyncio.CancelledError:
            if not call.is_abandoned:
                raise
            _take_back_cancellation()
            await answer.write(_error_event(_ended(trajectory)))

    def _count_differences(self, trajectory: Trajectory, sent: dict[str, object]) -> None:
        for name, theirs, ours in self._editor.differences(sent):
            if not self.differences[name]:
                log.warning(
                    "an agent calls the model with %s %s where the job has %s; its value stands (enforce_sampling would"
                    " change that), and further such calls are only counted",
                    name,
                    "left out" if theirs is None else shown(theirs),
                    ours,
                )
            self.differences[name] += 1
            trajectory.sampling_differs = True


def _parsed(body: bytes) -> dict[str, object]:
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON ({error}): {shown(body)}; expected an OpenAI-compatible request") from None
    if not isinstance(sent, dict):
        raise invalid(f"the body is {shown(sent)}; expected a JSON object, an OpenAI-compatible request")
    return sent


def _taken_messages(sent: dict[str, object]) -> _Asked:
    messages = sent.pop("messages", None)
    if not isinstance(messages, list):
        raise invalid(f"messages is {shown(messages)}; it must be a list of messages")
    return _Asked({"messages": messages}, messages)


def _taken_prompt(sent: dict[str, object], trajectory: Trajectory) -> _Asked:
    """One prompt. Several in one call stay with the rest of the request: they continue no conversation."""
    prompt = sent.get("prompt")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(token) is int for token in prompt)):
        return _Asked({}, [])
    del sent["prompt"]
    return _Asked({"prompt": prompt}, trajectory.messages_of(prompt))


def _finish_streamed(trajectory: Trajectory, call: Call, streamed: StreamedReply) -> None:
    reply = streamed.reply()
    error = streamed.error or (None if reply.messages else "the policy's stream held no completion")
    trajectory.finish(call, status=200, reply=reply, error=error)


def _is_json(reply: ModelReply) -> bool:
    """Whether a policy answered a call for a stream with a whole body after all."""
    return reply.content_type.startswith("application/json")


def _json_or_none(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


async def _collected(chunks: AsyncIterator[bytes]) -> bytes:
    """A whole body that came in pieces. Raises ReplyTooLong."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > _REPLY_BYTES:
            raise ReplyTooLong("the policy's reply is longer than the Job Runtime takes")
    return bytes(body)


def _error_event(refusal: Refusal) -> bytes:
    """A server-sent event by which the openai client raises."""
    return b"data: " + refusal.body() + b"\n\n"


def _ended(trajectory: Trajectory) -> Refusal:
    return not_in_valid_status(trajectory.id, "model calls: it ended during this one")


def _take_back_cancellation() -> None:
    """The trajectory cancelled this task so as to wake it; the task itself goes on, to tell the agent."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
