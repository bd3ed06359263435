"""One attempt's side of the Job Runtime: its turns and its reports, as they arrive. No HTTP."""

import asyncio
import json
import time
from bisect import insort
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter

from heldout.job.records import Turn, turn_json
from heldout.runtime.capture import Capture, CapturedCall, TextPrompt
from heldout.runtime.dialects.base import Reply, ReplyStream
from heldout.runtime.refusals import conflict
from heldout.runtime.reports import Ledger, Report, ReportRefused, not_in_valid_status

CLOSED = 409
"""Status of a turn that the trajectory's end cut off."""
HUNG_UP = 499
"""Status of a turn whose agent disconnected before any answer, as nginx logs it."""
_LEDGERS_KEPT = 4096
"""Closed trajectories whose reports are still recognised when an agent repeats them."""


@dataclass(frozen=True, slots=True)
class PolicyError:
    """Why the policy failed a call."""

    kind: str
    """`unreachable`, `bad_reply`, `given_up` or `exhausted`, as in `heldout.job.records.Failure`."""
    message: str
    """One line."""


class Call:
    """A model call in flight."""

    __slots__ = ("captured", "is_abandoned", "policy_error", "started", "started_at", "streamed", "task")

    def __init__(
        self, captured: CapturedCall, task: "asyncio.Task[object] | None", *, policy_error: PolicyError | None
    ) -> None:
        self.captured = captured
        self.task = task
        self.policy_error = policy_error
        """The trajectory's `policy_error` when the call began."""
        self.started_at = time.time()
        self.started = time.perf_counter()
        self.streamed: ReplyStream | None = None
        """Set when a streamed reply begins."""
        self.is_abandoned = False
        """Whether its trajectory was closed first; the task that answers the call is then cancelled."""


class Trajectory:
    """The record of one attempt: `JobRuntime.open` creates it, the agent's requests write it, the engine reads it."""

    def __init__(
        self,
        trajectory_id: str,
        *,
        endpoint: str,
        base_url: str,
        url_token: str,
        seed: int | None,
        on_report: Callable[[Report], Awaitable[None]],
        on_close: Callable[["Trajectory"], None],
    ) -> None:
        self.id = trajectory_id
        self.endpoint = endpoint
        """Base URL of the Job Runtime's operations for this agent."""
        self.base_url = base_url
        """OpenAI base URL of this trajectory alone. It needs no key and no header."""
        self.url_token = url_token
        """The secret in `base_url`."""
        self.turns: list[Turn] = []
        """Finished turns in the order of their calls."""
        self.policy_error: PolicyError | None = None
        """The policy's latest failure; None after it answered a later call, since most clients retry."""
        self.has_bad_reply = False
        """Whether the policy ever answered a call with something that is not a completion."""
        self.sampling_differs = False
        """Whether a call's sampling parameters differed from the job's, or were absent."""
        self.memory: dict[str, object] = {}
        """Kept by dialects between requests; see `heldout.runtime.dialects.base.TrajectoryView`."""
        self.seed = seed
        self.ledger = Ledger(trajectory_id)
        self._on_report = on_report
        self._on_close = on_close
        self._is_closed = False
        self._capture = Capture()
        self._in_flight: set[Call] = set()
        self._report_lock = asyncio.Lock()

    def close(self) -> None:
        """Accepts no further calls and no new reports. Records calls in flight as cut off, and cancels them.

        `turns` stays readable. A second call has no effect.
        """
        if self._is_closed:
            return
        self._is_closed = True
        for call in sorted(self._in_flight, key=lambda call: call.captured.turn):
            self.cut_off(call, status=CLOSED, error="the trajectory ended during this call")
            call.is_abandoned = True
            if call.task is not None:
                call.task.cancel()
        self._capture = Capture()
        self.memory.clear()
        # The receiver of reports holds this trajectory: a cycle would keep the turns until the next garbage collection.
        self._on_report = _refuse
        self._on_close(self)

    def messages_of(self, prompt: TextPrompt) -> list[object]:
        """Returns a text prompt as messages that continue those of earlier calls."""
        return self._capture.messages_of(prompt)

    @property
    def num_calls(self) -> int:
        """Model calls so far, including those in flight."""
        return self._capture.num_calls

    def waits(self) -> list[float]:
        """Returns how long each model call in flight has waited, in seconds."""
        now = time.perf_counter()
        return [now - call.started for call in self._in_flight]

    def begin(self, request: dict[str, object], messages: list[object]) -> Call:
        """Records the beginning of a model call. request: its parameters without the messages; it must not be changed afterwards.

        Raises Refusal (409) if the trajectory is over; TypeError or RecursionError, recording nothing, if the
        request is nested too deeply.
        """
        if self._is_closed or not self.ledger.takes_calls:
            raise not_in_valid_status(self.id, "model calls: it has ended")
        call = Call(self._capture.begin(request, messages), asyncio.current_task(), policy_error=self.policy_error)
        self._in_flight.add(call)
        return call

    def finish(self, call: Call, *, status: int, reply: Reply | None, error: str | None = None) -> None:
        """Records the end of a call. Only the first end counts: one after `close`, or after a stream's end, adds nothing."""
        if call not in self._in_flight:
            return
        self._in_flight.remove(call)
        if error is None and self.policy_error is call.policy_error:
            self.policy_error = None
        captured = call.captured
        turn = Turn(
            captured.turn,
            captured.parent,
            captured.shared_messages,
            captured.messages,
            captured.request,
            _reply_json(reply.messages) if reply is not None else b"",
            reply.finish_reason if reply is not None else None,
            reply.prompt_tokens if reply is not None else None,
            reply.response_tokens if reply is not None else None,
            reply.logprobs if reply is not None else None,
            call.started_at,
            time.perf_counter() - call.started,
            status,
            error,
        )
        if not self.turns or self.turns[-1].index < turn.index:
            self.turns.append(turn)
        else:
            insort(self.turns, turn, key=attrgetter("index"))
        if reply is not None and reply.messages:
            with suppress(RecursionError):  # a reply that is nested so deeply begins no conversation
                self._capture.end(captured, reply.messages[0])

    def cut_off(self, call: Call, *, status: int, error: str) -> None:
        """Records a call that ended early, with the part of its streamed reply that arrived. That part may be complete."""
        if call.streamed is None:
            self.finish(call, status=status, reply=None, error=error)
        else:
            is_complete = call.streamed.is_complete
            self.finish(call, status=200, reply=call.streamed.reply(), error=None if is_complete else error)

    def end_badly(self, call: Call, *, status: int, reply: Reply | None, error: str) -> None:
        """Records a call that the policy answered with something that is not a completion. reply: what arrived of one.

        As with `finish`, only the first end of a call counts.
        """
        if call not in self._in_flight:
            return
        self.policy_error = PolicyError("bad_reply", error)
        self.has_bad_reply = True
        self.finish(call, status=status, reply=reply, error=error)

    async def report(self, report: Report, client_token: str | None) -> None:
        """Passes a report to the engine, unless it repeats an earlier one; returns when the engine has stored it.

        Raises Refusal (409) if it contradicts an earlier report, comes too late, or is refused.
        """
        async with self._report_lock:
            if not self.ledger.is_news(report, client_token):
                return
            if self._is_closed:
                raise not_in_valid_status(self.id, f"the report {report.kind}: it has ended")
            try:
                await self._on_report(report)
            except ReportRefused as refused:
                raise conflict(str(refused)) from refused
            self.ledger.enter(report, client_token)


def _reply_json(messages: list[object]) -> bytes:
    """Encodes a reply. A message that is nested too deeply to be stored as JSON is stored as text."""
    try:
        return turn_json(messages)
    except TypeError:
        return turn_json([json.dumps(message) for message in messages])


async def _refuse(report: Report) -> None:
    raise ReportRefused(f"the report {report.kind} comes after the end")


class Trajectories:
    """The open trajectories, and the reports of recently closed ones."""

    def __init__(self) -> None:
        self._open: dict[str, Trajectory] = {}
        self._closed: OrderedDict[str, Ledger] = OrderedDict()

    def add(self, trajectory: Trajectory) -> None:
        """Adds an open trajectory. Raises ValueError if one with its id is open."""
        if trajectory.id in self._open:
            raise ValueError(f"trajectory {trajectory.id!r} is open already; each attempt needs a name of its own")
        self._closed.pop(trajectory.id, None)
        self._open[trajectory.id] = trajectory

    def remove(self, trajectory: Trajectory) -> None:
        """Removes a closed trajectory. Keeps its ledger, in place of the oldest one."""
        del self._open[trajectory.id]
        self._closed[trajectory.id] = trajectory.ledger
        if len(self._closed) > _LEDGERS_KEPT:
            self._closed.popitem(last=False)

    def get(self, trajectory_id: str) -> Trajectory | None:
        """Returns the open trajectory with this id."""
        return self._open.get(trajectory_id)

    def waits(self) -> list[float]:
        """Returns how long each model call in flight has waited, in seconds."""
        return [wait for trajectory in self._open.values() for wait in trajectory.waits()]

    def ledger_of_closed(self, trajectory_id: str) -> Ledger | None:
        """Returns the reports of a recently closed trajectory."""
        return self._closed.get(trajectory_id)
