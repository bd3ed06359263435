"""Passes a model call on to the policy and the reply back to the agent, and records the turn. It knows no dialect."""

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from heldout.errors import shown
from heldout.http.exchange import Answer, Request, Stream
from heldout.job.json_values import sent_json
from heldout.job.records import BAD_REPLY
from heldout.policies.base import ModelCall, ModelReply, Policy, PolicyUnavailable
from heldout.runtime.dialects.base import (
    NO_COMPLETION,
    AgentRequest,
    Dialect,
    DialectCall,
    EditedCall,
    ReplyStream,
    ReplyTooLong,
    error_text,
)
from heldout.runtime.refusals import Refusal, internal, invalid
from heldout.runtime.reports import not_in_valid_status
from heldout.runtime.rules import CallRules, JobEdits, seed_of_call
from heldout.runtime.trajectories import HUNG_UP, Call, PolicyError, Trajectory

log = logging.getLogger(__name__)

_HUNG_UP = "the agent hung up before the answer was complete"


class ModelCalls:
    """The model side of the Job Runtime.

    reply_bytes: most bytes of a streamed reply. note: receives a line that the user has to see. differences: how many calls
    differ from the job's sampling, by parameter.
    """

    def __init__(self, *, policy: Policy, rules: CallRules, reply_bytes: int, note: Callable[[str], None]) -> None:
        self.differences: Counter[str] = Counter()
        self._fields = _AddedFields()
        self._note = note
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
        ).without(self._fields.refused)
        try:
            edited = parsed.edit(edits)
            call = trajectory.begin(parsed.parameters, parsed.messages)
        except (TypeError, RecursionError):
            raise invalid("the body is nested too deeply, more than 250 levels") from None
        self._count_differences(trajectory, parsed)
        try:
            reply = await self._ask(trajectory, parsed, edits, edited)
            if reply.chunks is not None and reply.status == 200 and not _is_json(reply):
                await self._relay(request, trajectory, call, parsed, reply)
                return None
            return await self._pass_on(trajectory, call, parsed, dialect, reply)
        except (PolicyUnavailable, ReplyTooLong) as unavailable:
            status = dialect.unavailable_status
            trajectory.policy_error = PolicyError(_kind_of(unavailable), str(unavailable))
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
                trajectory.policy_error = PolicyError("unreachable", error)
            trajectory.finish(call, status=reply.status, reply=None, error=error)
            return dialect.policy_error(reply, error)
        kept, answer = parsed.read(reply)
        if kept is None:
            return self._refuse_reply(trajectory, call, dialect, reply)
        trajectory.finish(call, status=reply.status, reply=kept)
        return answer

    def _refuse_reply(self, trajectory: Trajectory, call: Call, dialect: Dialect, reply: ModelReply) -> Answer:
        """Gives the agent an error in place of a reply with status 200 that is not a completion."""
        error = f"{NO_COMPLETION}: {reply.status} with {_start_of(reply.body)}"
        trajectory.end_badly(call, status=BAD_REPLY, reply=None, error=error)
        body = sent_json(
            {"error": {"message": error, "type": "InternalServerError", "param": None, "code": "bad_reply"}}
        )
        return dialect.policy_error(ModelReply(BAD_REPLY, "application/json", body), error)

    async def _ask(
        self, trajectory: Trajectory, parsed: DialectCall, edits: JobEdits, edited: EditedCall
    ) -> ModelReply:
        """Sends a call to the policy; once more without the fields of the job that the server refuses."""
        reply = await self._send(trajectory, edited)
        if reply.status < 400:
            self._fields.accept(edited.added)
            return reply
        for fields in self._fields.suspects(edited.added, reply):
            retried = await self._send(trajectory, parsed.edit(edits.without(fields)))
            if retried.status < 400:
                self._fields.refuse(fields, error_text(reply.body), self._note)
                return retried
        if edited.added:
            parsed.edit(edits)
        return reply

    async def _send(self, trajectory: Trajectory, edited: EditedCall) -> ModelReply:
        return await self._policy.call(ModelCall(edited.path, edited.body, trajectory.id, edited.is_streamed))

    async def _collected(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Returns a whole body that arrived in pieces. Raises ReplyTooLong."""
        body = bytearray()
        async with _closing(chunks):
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
        async with _closing(reply.chunks):
            answer = await request.stream(200, headers)
            await self._relay_into(answer, trajectory, call, streamed, reply.chunks)
            await answer.end()

    async def _relay_into(
        self, answer: Stream, trajectory: Trajectory, call: Call, streamed: ReplyStream, chunks: AsyncIterator[bytes]
    ) -> None:
        try:
            async for chunk in chunks:
                relayed_bytes = streamed.feed(chunk)
                if streamed.is_done or streamed.error:
                    # Recorded before the agent receives the end, or its next request could overtake the recording.
                    _finish_streamed(trajectory, call, streamed)
                await answer.write(relayed_bytes)
            rest = streamed.finish()
            error = _finish_streamed(trajectory, call, streamed)
            await answer.write(rest)
            if error and not streamed.error and not streamed.is_done:
                await answer.write(streamed.error_event(internal(error, BAD_REPLY)))
        except (PolicyUnavailable, ReplyTooLong) as broken:
            trajectory.policy_error = PolicyError(_kind_of(broken), str(broken))
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


class _AddedFields:
    """The fields that the job adds to calls (`seed`, `logprobs`, `stream_options`), and which of them the server accepts."""

    def __init__(self) -> None:
        self.refused: frozenset[str] = frozenset()
        self._settled: frozenset[str] = frozenset()
        """Fields that are not suspected again: the server accepted them once, or refused the call without them too."""

    def accept(self, added: frozenset[str]) -> None:
        """Records that the server answered a call with these fields."""
        self._settled |= added

    def suspects(self, added: frozenset[str], reply: ModelReply) -> list[frozenset[str]]:
        """Returns the sets of fields to leave out, one after the other, after this refusal; none if no field can be its reason.

        If the server names a field, that one is left out. Else each is left out alone, then all. This happens once a run.
        """
        added -= self._settled
        if reply.status not in _FIELD_REFUSALS or not added:
            return []
        named = frozenset(field for field in added if field.encode() in reply.body)
        if named:
            return [named]
        if _TOO_LONG.search(reply.body):
            return []
        self._settled |= added
        return [*(frozenset({field}) for field in sorted(added)), *([added] if len(added) > 1 else [])]

    def refuse(self, fields: frozenset[str], message: str, note: Callable[[str], None]) -> None:
        """Records that the server answers only without these fields. The first refusal of a field is noted."""
        news = fields - self.refused
        self.refused |= fields
        if news:
            lost = "; ".join(_LOST_WITHOUT[field] for field in sorted(news))
            note(
                f"the model server refuses {', '.join(sorted(news))} ({message}): calls go without from now on; {lost}"
            )


_FIELD_REFUSALS = frozenset({400, 404, 405, 415, 422})
"""Statuses of servers that do not take a field; others are about keys, sizes and load."""
_TOO_LONG = re.compile(rb"context|too (long|large|many)|max\w* .*(length|tokens)", re.IGNORECASE)
"""Refusals of a conversation that does not fit: no field is their reason."""
_LOST_WITHOUT = {
    "logprobs": "there are no metrics of log-probabilities",
    "seed": "sampled replies cannot be drawn again",
    "stream_options": "streamed calls have no token counts",
}


@contextlib.asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Closes a reply's stream at the end of the context, however it ends: an open one keeps its connection."""
    try:
        yield
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _finish_streamed(trajectory: Trajectory, call: Call, streamed: ReplyStream) -> str | None:
    """Records a stream that has ended. Returns the reason why it is not a completion."""
    reply = streamed.reply()
    reason = streamed.error
    if reason is None and not (streamed.is_done or streamed.is_complete):
        reason = "the stream ended with neither a finish reason nor [DONE]"
    if reason is None and not reply.messages:
        reason = "the stream ended without a completion"
    if reason is None:
        trajectory.finish(call, status=200, reply=reply)
        return None
    error = f"{NO_COMPLETION}: {reason}"
    trajectory.end_badly(call, status=BAD_REPLY, reply=reply if reply.messages else None, error=error)
    return error


def _kind_of(error: PolicyUnavailable | ReplyTooLong) -> str:
    return error.kind if isinstance(error, PolicyUnavailable) else "bad_reply"


def _start_of(body: bytes) -> str:
    """The beginning of a reply's body on one line: of an error object its message."""
    return error_text(body) or "an empty body"


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
