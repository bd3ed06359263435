"""One worker process, as the engine sees it: starts and ends it, plays and cancels attempts on it, keeps their output."""

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

from heldout.agents.agentcore_contract import one_line, read_answer, says_busy
from heldout.agents.base import Invocation, InvocationResult, Outcome
from heldout.agents.launcher import Child, WorkerProblem, WorkerSettings, WorkerStarter
from heldout.agents.processes import shown_exit
from heldout.agents.worker_protocol import (
    CANCEL_SECONDS,
    KEY_HEADER,
    LOOP_ANSWER_SECONDS,
    SESSION_HEADER,
    START_SECONDS,
    FrameReader,
    Tail,
    read_pipe,
)
from heldout.exhaustion import exhausted_resource
from heldout.http.connections import Connections, NotConnected, Site

CANCEL_ANSWER_SECONDS = LOOP_ANSWER_SECONDS + 2 * CANCEL_SECONDS + 1
"""A worker's own checks on a cancelled attempt take less; if it gives no answer by then, its loop is blocked."""
_STOP_SECONDS = 2.0
"""How long the agent's own clean-up (atexit, an application's lifespan) may take when a worker is stopped."""


class WorkerGone(Exception):
    """The worker ended before it got the attempt: another worker can play it."""


class WorkerProcess:
    """One worker process. `start` it, `play` attempts on it concurrently, `close` it."""

    def __init__(
        self,
        settings: WorkerSettings,
        starter: WorkerStarter,
        connections: Connections,
        *,
        cancel_answer_seconds: float = CANCEL_ANSWER_SECONDS,
        on_loaded: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """cancel_answer_seconds: a worker that does not answer a cancellation within this time counts as blocked.

        on_loaded: receives `loaded` of each message that lists the worker's code.
        """
        self._cancel_answer_seconds = cancel_answer_seconds
        self._on_loaded = on_loaded
        self._settings = settings
        self._starter = starter
        self._connections = connections
        self._key = secrets.token_hex(16)
        self._site: Site | None = None
        self._child: Child | None = None
        self._playing: dict[str, Tail] = {}
        self._stuck: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._frames = FrameReader()
        self._received = b""
        self._stray = Tail()
        self._num_inside_at_exit = 0
        self._ended_because = ""
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[dict[str, object]] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        """Resolves to the exit status, negative for a signal, once all output is in."""
        self.retired = asyncio.Event()
        """Set when the worker takes no more attempts: it ended, or an attempt on it cannot be cancelled. In the second case it
        ends with its last attempt."""
        self.num_taken = 0
        """Number of attempts that it has received."""

    @property
    def num_playing(self) -> int:
        """Number of attempts in flight, without abandoned ones."""
        return len(self._playing)

    async def start(self) -> None:
        """Starts the process and waits until it serves. Raises WorkerProblem if it cannot serve."""
        self._spawn()
        started: set[asyncio.Future[dict[str, object]] | asyncio.Future[int]] = {self._ready, self.exited}
        await asyncio.wait(started, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        message = self._ready.result() if self._ready.done() else {}
        if "port" in message:
            self._site = Site(f"http://127.0.0.1:{message['port']}")
            return
        if not self.exited.done() and "problem" not in message:
            self.kill()
            raise WorkerProblem(f"agent {self._settings.entry_point!r} took over {START_SECONDS:.0f} s to import")
        status = await self._exit_status()
        if "problem" in message:
            raise WorkerProblem(str(message["problem"]))
        raise WorkerProblem(self._why_it_ended(status), may_pass=status < 0 or self._was_refused)

    async def play(self, invocation: Invocation) -> InvocationResult:
        """Plays one attempt to its end. Raises WorkerGone if the worker ended before it got the attempt.

        A timeout, or cancelling this call, cancels the attempt in the worker; if it cannot be cancelled, the worker retires.
        """
        session = invocation.trajectory_id
        self._playing[session] = output = Tail()
        self.num_taken += 1
        invocation.on_begin()
        try:
            result = await self._invoke(invocation)
            if result.outcome is Outcome.RETURNED:
                result = await self._held(invocation, result)
        except asyncio.CancelledError:
            self._in_background(self._abandon(session))
            raise
        self._leave(session)
        return replace(result, output=output.text())

    async def is_busy(self) -> bool:
        """Whether the agent in this process reports work in the background."""
        if self._site is None:
            return False
        try:
            async with asyncio.timeout(LOOP_ANSWER_SECONDS):
                _, _, body = await self._ask("GET", "/ping", self._headers(""))
        except OSError:  # TimeoutError is one
            return False
        return says_busy(body)

    def kill(self) -> None:
        """Ends the process and its own children at once."""
        self.retired.set()
        if self._child is not None and not self.exited.done():
            self._child.kill()

    async def close(self) -> None:
        """Ends the process after the agent's clean-up, which may take two seconds. Attempts in flight are lost."""
        if self._child is not None and not self.exited.done():
            self._ended_because = self._ended_because or "the agent was stopped"
            self._child.terminate()
            await asyncio.wait({self.exited}, timeout=_STOP_SECONDS)
            self.kill()
            await self._exit_status()
        for task in list(self._tasks):
            await asyncio.wait({task})

    @property
    def _was_refused(self) -> bool:
        """Whether the system refused the process."""
        return self._child is not None and bool(self._child.problem)

    def _why_it_ended(self, status: int) -> str:
        """The reason, in one line, why the process ended before it served."""
        assert self._child is not None
        if self._child.problem:
            return f"a worker process cannot be started: {self._child.problem}"
        last_line = self._stray.last_line() or self._child.launcher.printed.last_line()
        reason = f"its process {shown_exit(status)} while starting" + (f": {last_line}" if last_line else "")
        return f"agent {self._settings.entry_point!r} cannot be imported: {one_line(reason)}"

    def _spawn(self) -> None:
        theirs = self._open_pipes()
        try:
            self._child = self._starter.start(self._key, theirs, self._on_exit)
        except WorkerProblem:
            _close(self._ours)
            self.exited.set_result(1)
            raise
        finally:
            _close(theirs)
        for fd, read in ((self._frames_fd, self._read_frames), (self._raw_fd, self._read_raw)):
            os.set_blocking(fd, False)
            asyncio.get_running_loop().add_reader(fd, read)

    def _open_pipes(self) -> list[int]:
        """Opens the pipes to the worker; returns its ends: lifeline, output and frames."""
        fds: list[int] = []
        try:
            for _ in range(3):
                fds += os.pipe()
        except OSError as error:
            _close(fds)
            self.exited.set_result(1)
            raise WorkerProblem(f"a worker process cannot be started: {error}", may_pass=True) from error
        lifeline, lifeline_held, self._raw_fd, output, self._frames_fd, frames = fds
        self._ours = [lifeline_held, self._raw_fd, self._frames_fd]
        return [lifeline, output, frames]

    async def _exit_status(self) -> int:
        await asyncio.wait({self.exited})  # awaiting a future itself would cancel it with the task that awaits
        return self.exited.result()

    def _on_exit(self, status: int) -> None:
        self._num_inside_at_exit = len(self._playing) + len(self._stuck)
        self._read_output()
        for fd in (self._frames_fd, self._raw_fd):
            asyncio.get_running_loop().remove_reader(fd)
        _close(self._ours)
        self.exited.set_result(status)
        self.retired.set()

    async def _invoke(self, invocation: Invocation) -> InvocationResult:
        session = invocation.trajectory_id
        headers = {
            **self._headers(session),
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        try:
            async with asyncio.timeout(invocation.timeout_seconds):
                status, content_type, body = await self._ask("POST", "/invocations", headers, invocation.payload)
        except TimeoutError:
            return await self._time_out(session, invocation.timeout_seconds)
        except NotConnected as error:
            await asyncio.wait({self.exited}, timeout=LOOP_ANSWER_SECONDS)
            self._leave(session)
            if self.exited.done():
                raise WorkerGone(str(error)) from error
            outcome = Outcome.UNREACHABLE if exhausted_resource(error) is None else Outcome.EXHAUSTED
            return InvocationResult(outcome, message=one_line(str(error)))
        except OSError as error:
            return await self._lose(error)
        self._read_output()
        return read_answer(status, content_type, body)

    async def _held(self, invocation: Invocation, answer: InvocationResult) -> InvocationResult:
        """Waits until an answered attempt is over; the result is its answer, unless the process ends first."""
        over = asyncio.ensure_future(invocation.until_over(answer))
        try:
            either: set[asyncio.Future[None] | asyncio.Future[int]] = {over, self.exited}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not over.done():
                return self._ended()
            over.result()
            self._read_output()
            return answer
        finally:
            over.cancel()
            await asyncio.gather(over, return_exceptions=True)

    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, str, bytes]:
        assert self._site is not None  # `start` comes before `play`
        response = await self._connections.request(self._site.origin, self._site.request(method, path, headers, body))
        content = await response.read()
        return response.status, response.headers.get("content-type", ""), content

    async def _time_out(self, session: str, seconds: float) -> InvocationResult:
        await self._abandon(session)
        if self.exited.done() and self._num_inside_at_exit > 1:
            return self._lost()
        return InvocationResult(Outcome.TIMED_OUT, message=f"no answer within {seconds:g} s")

    async def _lose(self, error: OSError) -> InvocationResult:
        """The result of an attempt whose connection broke: nearly always the process has ended."""
        self.retired.set()
        await asyncio.wait({self.exited}, timeout=LOOP_ANSWER_SECONDS)
        if not self.exited.done():
            return InvocationResult(Outcome.DISCONNECTED, message=one_line(f"the agent's answer broke off: {error}"))
        return self._ended()

    def _ended(self) -> InvocationResult:
        """The result of an attempt whose process has ended."""
        if self._num_inside_at_exit > 1 or self._ended_because:
            return self._lost()
        return InvocationResult(Outcome.CRASHED, message=f"the agent's process {shown_exit(self.exited.result())}")

    def _lost(self) -> InvocationResult:
        reason = self._ended_because or f"its process {shown_exit(self.exited.result())}"
        return InvocationResult(Outcome.LOST, message=f"{reason}, with {self._num_inside_at_exit} attempts in it")

    async def _abandon(self, session: str) -> None:
        """Ends an abandoned attempt, with the whole process if it cannot be cancelled."""
        state = await self._cancel(session)
        if state == "blocked" and not self.exited.done():
            self._ended_because = "its event loop was blocked when an attempt ran out of time"
            self.kill()
            await self._exit_status()
        elif state == "stuck":
            self._stuck.add(session)
            self.retired.set()
        self._leave(session)

    async def _cancel(self, session: str) -> str:
        try:
            async with asyncio.timeout(self._cancel_answer_seconds):
                _, _, body = await self._ask("POST", "/cancel", self._headers(session))
        except OSError:  # TimeoutError is one
            return "blocked"
        return str(json.loads(body)["state"])

    def _leave(self, session: str) -> None:
        self._playing.pop(session, None)
        if self.retired.is_set() and not self._playing:
            self.kill()  # only attempts that cannot be cancelled may be left

    def _headers(self, session: str) -> dict[str, str]:
        return {SESSION_HEADER: session, KEY_HEADER: self._key}

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _read_output(self) -> None:
        """Reads all output written so far: the event loop may report an answer before it reports the output.

        One read of each pipe takes all that the pipe holds; a loop could keep the engine here during a flood.
        """
        if not self.exited.done():
            self._read_frames()
            self._read_raw()

    def _read_frames(self) -> None:
        for session, piece in self._frames.feed(read_pipe(self._frames_fd)):
            if not session:
                self._handle_messages(piece)
            elif (output := self._playing.get(session)) is not None:
                output.add(piece)

    def _read_raw(self) -> None:
        data = read_pipe(self._raw_fd)
        for output in self._playing.values() or (self._stray,):
            output.add(data)

    def _handle_messages(self, piece: bytes) -> None:
        self._received += piece
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "loaded" in message:
                self._on_loaded(message["loaded"])
            if not self._ready.done():
                self._ready.set_result(message)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
