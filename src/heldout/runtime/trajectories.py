"""One attempt's side of the Job Runtime: its turns as they are made, and its reports as they come. No HTTP."""

import asyncio
import time
from bisect import insort
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from operator import attrgetter

from heldout.job.records import Turn, turn_json
from heldout.runtime.capture import Capture, CapturedCall, TextPrompt
from heldout.runtime.refusals import conflict
from heldout.runtime.replies import Reply, StreamedReply
from heldout.runtime.reports import Ledger, Report, ReportRefused, not_in_valid_status

CLOSED = 409
"""Status of a turn that was cut off by the trajectory's end."""
HUNG_UP = 499
"""Status of a turn whose agent went away before any answer, as nginx logs it."""
_LEDGERS_KEPT = 4096
"""Closed trajectories whose reports are still recognised when sent again."""


class Call:
    """A model call in flight."""

    __slots__ = ("captured", "is_abandoned", "policy_error", "started", "started_at", "streamed", "task")

    def __init__(
        self, captured: CapturedCall, task: "asyncio.Task[object] | None", *, policy_error: str | None
    ) -> None:
        self.captured = captured
        self.task = task
        self.policy_error = policy_error
        """Its trajectory's, when the call came."""
        self.started_at = time.time()
        self.started = time.perf_counter()
        self.streamed: StreamedReply | None = None
        """Set as soon as a streamed reply comes in."""
        self.is_abandoned = False
        """Whether its trajectory was closed before it ended; the task that answers it has been cancelled."""


class Trajectory:
    """What an attempt records: opened by `JobRuntime.open`, written by the agent's requests, read by the engine."""

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
        """Where the agent finds the Job Runtime's operations."""
        self.base_url = base_url
        """OpenAI base URL of this trajectory alone; who has it needs no key and no header."""
        self.url_token = url_token
        """The secret in `base_url`."""
        self.turns: list[Turn] = []
        """Finished turns in the order of their calls."""
        self.policy_error: str | None = None
        """Why the policy could not be reached, or failed; None once it has answered a later call: most clients try again."""
        self.sampling_differs = False
        """Whether a call had other sampling parameters than the job's, or none."""
        self.seed = seed
        self.ledger = Ledger(trajectory_id)
        self._on_report = on_report
        self._on_close = on_close
        self._is_closed = False
        self._capture = Capture()
        self._in_flight: set[Call] = set()
        self._report_lock = asyncio.Lock()

    def close(self) -> None:
        """Takes no further calls and no new reports. Calls in flight are recorded as cut off, and cancelled.

        `turns` stays readable. Safe to call twice.
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
        # Whoever takes the reports holds this trajectory: held both ways, a rollout's turns would stay until the next collection.
        self._on_report = _refuse
        self._on_close(self)

    def messages_of(self, prompt: TextPrompt) -> list[object]:
        """A plain completion's prompt as messages, which continue those of earlier calls."""
        return self._capture.messages_of(prompt)

    @property
    def num_calls(self) -> int:
        """Model calls that have come so far, those in flight too."""
        return self._capture.num_calls

    def begin(self, request: dict[str, object], messages: list[object]) -> Call:
        """A model call has come. Raises Refusal (409) if the trajectory is over, orjson.JSONEncodeError or RecursionError,
        with nothing kept of it, if it is nested too deeply."""
        if self._is_closed or not self.ledger.takes_calls:
            raise not_in_valid_status(self.id, "model calls: it has ended")
        call = Call(self._capture.begin(request, messages), asyncio.current_task(), policy_error=self.policy_error)
        self._in_flight.add(call)
        return call

    def finish(self, call: Call, *, status: int, reply: Reply | None, error: str | None = None) -> None:
        """Records the call. Only the first time counts: what comes after `close`, or after a stream's end, adds nothing."""
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
            turn_json(reply.messages) if reply is not None else b"",
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
            self._capture.end(captured, reply.messages[0])

    def cut_off(self, call: Call, *, status: int, error: str) -> None:
        """Records a call that ended early, with what came of its streamed reply; that may be all that mattered."""
        if call.streamed is None:
            self.finish(call, status=status, reply=None, error=error)
        else:
            is_complete = call.streamed.is_complete
            self.finish(call, status=200, reply=call.streamed.reply(), error=None if is_complete else error)

    async def report(self, report: Report, client_token: str | None) -> None:
        """Hands a report on, unless it repeats an earlier one; returns when whoever takes it has made it last.

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


async def _refuse(report: Report) -> None:
    raise ReportRefused(f"the report {report.kind} comes after the end")


class Trajectories:
    """Those that are open, and for a while what the closed ones reported. Nothing else of a closed one is kept."""

    def __init__(self) -> None:
        self._open: dict[str, Trajectory] = {}
        self._closed: OrderedDict[str, Ledger] = OrderedDict()

    def add(self, trajectory: Trajectory) -> None:
        """Raises ValueError if one of this id is open."""
        if trajectory.id in self._open:
            raise ValueError(f"trajectory {trajectory.id!r} is open already; each attempt needs a name of its own")
        self._closed.pop(trajectory.id, None)
        self._open[trajectory.id] = trajectory

    def remove(self, trajectory: Trajectory) -> None:
        """Keeps only the closed trajectory's ledger, in place of the oldest."""
        del self._open[trajectory.id]
        self._closed[trajectory.id] = trajectory.ledger
        if len(self._closed) > _LEDGERS_KEPT:
            self._closed.popitem(last=False)

    def get(self, trajectory_id: str) -> Trajectory | None:
        """The open trajectory of this id."""
        return self._open.get(trajectory_id)

    def ledger_of_closed(self, trajectory_id: str) -> Ledger | None:
        """What a recently closed trajectory reported."""
        return self._closed.get(trajectory_id)
