"""Passes a model call on to the policy and the reply back to the agent, and records the turn. It knows no dialect."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

import orjson

from heldout.errors import shown
from heldout.http.exchange import Answer, Request, Stream
from heldout.policies.base import ModelCall, ModelReply, Policy, PolicyUnavailable
from heldout.runtime.call_rules import CallRules, JobEdits, seed_of_call
from heldout.runtime.dialects.base import (
    AgentRequest,
    Dialect,
    DialectCall,
    ReplyStream,
    ReplyTooLong,
    error_text,
)
from heldout.runtime.refusals import Refusal, internal, invalid
from heldout.runtime.reports import not_in_valid_status
from heldout.runtime.trajectories import HUNG_UP, Call, Trajectory

log = logging.getLogger(__name__)

_HUNG_UP = "the agent hung up before the answer was complete"


class ModelCalls:
    """The model side of the Job Runtime.

    reply_bytes: most bytes of a streamed reply. differences: how many calls differ from the job's sampling, by parameter.
    """

    def __init__(self, *, policy: Policy, rules: CallRules, reply_bytes: int) -> None:
        self.differences: Counter[str] = Counter()
        self._policy = policy
        self._rules = rules
        self._reply_bytes = reply_bytes
        sampling = rules.sampling()
        self._enforced = sampling if rules.enforce_sampling else ()
        self._compared = () if rules.enforce_sampling else sampling

    async def answer(
        self, request: Request, trajectory: Trajectory, dialect: Dialect, asked: AgentRequest
    ) -> Answer | None:
        """Answers one request of this trajectory, in its dialect; returns None after it streamed the answer.

        Raises Refusal, which the caller renders in the dialect.
        """
        parsed = dialect.parse(asked)
        if isinstance(parsed, Answer):
            return parsed
        edits = JobEdits(
            self._policy.model_name,
            seed_of_call(trajectory.seed, trajectory.num_calls),
            self._enforced,
            self._rules.wants_logprobs,
        )
        try:
            edited = parsed.edit(edits)
            call = trajectory.begin(parsed.parameters, parsed.messages)
        except (orjson.JSONEncodeError, RecursionError):
            raise invalid("the body is nested too deeply, more than 250 levels") from None
        self._count_differences(trajectory, parsed)
        try:
            reply = await self._policy.call(ModelCall(edited.path, edited.body, trajectory.id, edited.is_streamed))
            if reply.chunks is not None and reply.status == 200 and not _is_json(reply):
                await self._relay(request, trajectory, call, parsed, reply)
                return None
            return await self._pass_on(trajectory, call, parsed, dialect, reply)
        except (PolicyUnavailable, ReplyTooLong) as unavailable:
            status = dialect.unavailable_status
            trajectory.policy_error = str(unavailable)
            trajectory.finish(call, status=status, reply=None, error=str(unavailable))
            raise internal(f"the policy is unavailable: {unavailable}", status) from unavailable
        except asyncio.CancelledError:
            if call.is_abandoned:
                _take_back_cancellation()
                raise _ended(trajectory) from None
            trajectory.cut_off(call, status=HUNG_UP, error=_HUNG_UP)
            raise
        except ConnectionError:
            trajectory.cut_off(call, status=HUNG_UP, error=_HUNG_UP)
            raise
        except Refusal:
            raise
        except Exception as error:
            # A bug, here or in a policy. The turn is recorded so that the bug can be found; the caller answers 500.
            trajectory.finish(call, status=500, reply=None, error=f"{type(error).__name__}: {error}")
            raise

    async def _pass_on(
        self, trajectory: Trajectory, call: Call, parsed: DialectCall, dialect: Dialect, reply: ModelReply
    ) -> Answer:
        if reply.chunks is not None:
            body = await self._collected(reply.chunks)
            reply = ModelReply(reply.status, reply.content_type, body)
        if reply.status >= 400:
            error = f"the policy answered {reply.status}: {error_text(reply.body)}"
            if reply.status >= 500:
                trajectory.policy_error = error
            trajectory.finish(call, status=reply.status, reply=None, error=error)
            return dialect.policy_error(reply, error)
        kept, answer = parsed.read(reply)
        error_or_none = None if kept is not None else f"the policy's answer is no completion: {shown(reply.body)}"
        trajectory.finish(call, status=reply.status, reply=kept, error=error_or_none)
        return answer

    async def _collected(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Returns a whole body that arrived in pieces. Raises ReplyTooLong."""
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > self._reply_bytes:
                raise ReplyTooLong("the policy's reply is longer than the Job Runtime takes")
        return bytes(body)

    async def _relay(
        self, request: Request, trajectory: Trajectory, call: Call, parsed: DialectCall, reply: ModelReply
    ) -> None:
        """Relays a streamed reply as it arrives. A failure after its beginning becomes an event of the stream."""
        assert reply.chunks is not None
        streamed = parsed.stream(self._reply_bytes)
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
        self, answer: Stream, trajectory: Trajectory, call: Call, streamed: ReplyStream, chunks: AsyncIterator[bytes]
    ) -> None:
        try:
            async for chunk in chunks:
                relayed_bytes = streamed.feed(chunk)
                if streamed.is_done:
                    # Recorded before the agent receives the end, or its next request could overtake the recording.
                    _finish_streamed(trajectory, call, streamed)
                await answer.write(relayed_bytes)
            rest = streamed.finish()
            _finish_streamed(trajectory, call, streamed)
            await answer.write(rest)
        except (PolicyUnavailable, ReplyTooLong) as broken:
            trajectory.policy_error = str(broken)
            trajectory.cut_off(call, status=200, error=str(broken))
            await answer.write(streamed.error_event(internal(str(broken))))
        except asyncio.CancelledError:
            if not call.is_abandoned:
                raise
            _take_back_cancellation()
            await answer.write(streamed.error_event(_ended(trajectory)))

    def _count_differences(self, trajectory: Trajectory, parsed: DialectCall) -> None:
        for name, ours in self._compared:
            theirs = parsed.sampling(name)
            if theirs == ours:
                continue
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


def _finish_streamed(trajectory: Trajectory, call: Call, streamed: ReplyStream) -> None:
    reply = streamed.reply()
    error = streamed.error or (None if reply.messages else "the policy's stream held no completion")
    trajectory.finish(call, status=200, reply=reply, error=error)


def _is_json(reply: ModelReply) -> bool:
    """Whether a policy answered a call for a stream with a whole body."""
    return reply.content_type.startswith("application/json")


def _ended(trajectory: Trajectory) -> Refusal:
    return not_in_valid_status(trajectory.id, "model calls: it ended during this one")


def _take_back_cancellation() -> None:
    """Continues the current task, which the trajectory cancelled to wake it: the agent still gets its answer."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
