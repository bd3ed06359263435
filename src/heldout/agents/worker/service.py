"""The HTTP interface of a worker: the AgentCore contract, and `POST /cancel` for the engine."""

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
from heldout.agents.worker.harness_failures import harness_failure
from heldout.agents.worker.output import current_session
from heldout.agents.worker.reply import Reply
from heldout.agents.worker_protocol import CANCEL_SECONDS, KEY_HEADER, LOOP_ANSWER_SECONDS, SESSION_HEADER
from heldout.http.exchange import Answer, Request

_BODY_BYTES = 2**31
"""No limit in practice: the engine is the only client, and limits payloads itself."""
_BODY_SECONDS = 3600.0
"""No limit in practice: a loop that an agent blocks reads late."""
_KEY = KEY_HEADER.lower()
_JSON = {"Content-Type": "application/json"}
_TEXT = {"Content-Type": "text/plain"}


@dataclass(slots=True)
class _Playing:
    task: asyncio.Task[None]
    threads: list[Future[object]] = field(default_factory=list)


class Service:
    """Routes the engine's requests to the host, and tracks the attempts in play so that it can cancel them."""

    def __init__(self, host: FunctionHost | ApplicationHost, key: str) -> None:
        self._host = host
        self._key = key.encode()
        self._playing: dict[str, _Playing] = {}
        self._starting = asyncio.Lock()

    async def handle(self, request: Request) -> Answer | None:
        """Answers one request."""
        key = request.headers.get(_KEY, "")
        if not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), self._key):
            return Answer(403, _TEXT, b"only the engine that started this worker may talk to it")
        request.headers = {name: value for name, value in request.headers.items() if name != _KEY}
        match request.method, request.path:
            case "POST", "/invocations":
                return await self._play(request)
            case "GET", "/ping":
                return Answer(200, _JSON, await self._ping())
            case "POST", "/cancel":
                return Answer(200, _JSON, json.dumps({"state": await self._cancel(_session(request))}).encode())
            case _:
                return Answer(404, _TEXT, b"not found")

    async def _play(self, request: Request) -> Answer | None:
        session, reply = _session(request), Reply(request)
        body = await request.read(limit=_BODY_BYTES, seconds=_BODY_SECONDS)
        context = contextvars.copy_context()
        context.run(current_session.set, session.encode())
        threads: list[Future[object]] = []
        play = self._play_in_context(session, request, body, reply, threads)
        task = asyncio.create_task(play, context=context)
        self._playing[session] = playing = _Playing(task, threads)
        task.add_done_callback(lambda _: self._leave(session, playing))
        # The server cancels this wait when the engine disconnects. The attempt itself ends by `POST /cancel`.
        await asyncio.wait({task})
        if not reply.is_started:
            reply.whole(500, "application/json", error_body("CancelledError", "the agent gave no answer"))
        return await reply.finish()

    def _leave(self, session: str, playing: _Playing) -> None:
        """Forgets an attempt whose task has ended, unless one of its threads still runs."""
        if not playing.task.cancelled():
            playing.task.exception()  # the engine disconnected during the answer: no error of the agent's
        if not any(_is_running(thread) for thread in playing.threads):
            self._playing.pop(session, None)

    async def _play_in_context(
        self, session: str, request: Request, body: bytes, reply: Reply, threads: list[Future[object]]
    ) -> None:
        try:
            async with self._starting:
                # One per round of the loop: the first of many simultaneous attempts calls the model while others begin.
                await asyncio.sleep(0)
            await self._host.play(session, request, body, reply, threads)
        except Exception as error:  # noqa: BLE001  # an ASGI application may raise anything; a server answers 500 then
            traceback.print_exc()
            problem = error_body(type(error).__name__, str(error), harness_failure=harness_failure(error))
            if reply.is_started:
                await reply.send(b"\n\ndata: " + problem + b"\n\n")
            else:
                reply.whole(500, "application/json", problem)

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
    return request.headers.get(SESSION_HEADER.lower(), "")


def _is_running(thread: Future[object]) -> bool:
    return not thread.done()
