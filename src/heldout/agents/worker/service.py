"""What a worker answers: the AgentCore contract, and `POST /cancel` for the engine."""

import asyncio
import contextvars
import hmac
import json
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass, field

from heldout.agents.worker.applications import ApplicationHost, blocked_loops
from heldout.agents.worker.functions import FunctionHost, error_body
from heldout.agents.worker.http import Reply, Request
from heldout.agents.worker.output import current_session
from heldout.agents.worker_protocol import CANCEL_SECONDS, KEY_HEADER, LOOP_ANSWER_SECONDS, SESSION_HEADER


@dataclass(slots=True)
class _Playing:
    task: asyncio.Task[None]
    threads: list[Future[object]] = field(default_factory=list)


class Service:
    """Routes the engine's requests to the host, and keeps the attempts that play so that they can be cancelled."""

    def __init__(self, host: FunctionHost | ApplicationHost, key: str) -> None:
        self._host = host
        self._key = key.encode()
        self._playing: dict[str, _Playing] = {}
        self._starting = asyncio.Lock()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answers one request."""
        key = KEY_HEADER.lower().encode()
        if not hmac.compare_digest(request.header(key).encode(), self._key):
            await reply.whole(403, "text/plain", b"only the engine that started this worker may talk to it")
            return
        request = Request(
            request.method, request.target, [item for item in request.headers if item[0] != key], request.body
        )
        match request.method, request.target:
            case "POST", "/invocations":
                await self._play(request, reply)
            case "GET", "/ping":
                await reply.whole(200, "application/json", await self._ping())
            case "POST", "/cancel":
                state = await self._cancel(_session(request))
                await reply.whole(200, "application/json", json.dumps({"state": state}).encode())
            case _:
                await reply.whole(404, "text/plain", b"not found")

    async def _play(self, request: Request, reply: Reply) -> None:
        session = _session(request)
        context = contextvars.copy_context()
        context.run(current_session.set, session.encode())
        threads: list[Future[object]] = []
        play = self._play_in_context(session, request, reply, threads)
        task = asyncio.create_task(play, context=context)
        self._playing[session] = _Playing(task, threads)
        try:
            await asyncio.wait({task})
        finally:
            if not any(_is_running(thread) for thread in threads):
                self._playing.pop(session, None)
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure  # the connection to the engine is gone
        if not reply.is_started:
            await reply.whole(500, "application/json", error_body("CancelledError", "the agent gave no answer"))

    async def _play_in_context(
        self, session: str, request: Request, reply: Reply, threads: list[Future[object]]
    ) -> None:
        try:
            async with self._starting:
                # One a round of the loop: of many that come at once, the first is at its model call while others begin.
                await asyncio.sleep(0)
            await self._host.play(session, request, reply, threads)
        except Exception as error:  # noqa: BLE001  # an ASGI application may raise anything; a server answers 500 then
            traceback.print_exc()
            body = error_body(type(error).__name__, str(error))
            if reply.is_started:
                await reply.send(b"\n\ndata: " + body + b"\n\n")
            else:
                await reply.whole(500, "application/json", body)

    async def _cancel(self, session: str) -> str:
        """Cancels an attempt: `ended`, `stuck` (it still runs), or `blocked` (a loop that others share does not answer)."""
        playing = self._playing.get(session)
        if playing is None:
            return "ended"
        playing.task.cancel()
        await asyncio.wait({playing.task}, timeout=CANCEL_SECONDS)
        threads = [asyncio.wrap_future(thread) for thread in playing.threads if _is_running(thread)]
        if threads:
            await asyncio.wait(threads, timeout=CANCEL_SECONDS)
        if not playing.task.done() or any(_is_running(thread) for thread in playing.threads):
            return "stuck"
        self._playing.pop(session, None)
        return (
            "blocked"
            if isinstance(self._host, ApplicationHost) and await blocked_loops(LOOP_ANSWER_SECONDS)
            else "ended"
        )

    async def _ping(self) -> bytes:
        if isinstance(self._host, ApplicationHost):
            return await self._host.ping()
        status = "HealthyBusy" if self._host.is_busy() else "Healthy"
        return json.dumps({"status": status, "time_of_last_update": int(time.time())}).encode()


def _session(request: Request) -> str:
    return request.header(SESSION_HEADER.lower().encode())


def _is_running(thread: Future[object]) -> bool:
    return not thread.done()
