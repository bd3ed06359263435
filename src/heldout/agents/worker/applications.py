"""Serves an ASGI application, such as bedrock-agentcore's app, with its own /invocations and /ping.

Source: the ASGI specification 3.0, HTTP and lifespan protocols.
"""

import asyncio
import contextlib
import sys
import threading
from asyncio.base_events import BaseEventLoop
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import Future
from types import FrameType, MappingProxyType
from typing import Any
from urllib.parse import unquote

from heldout.agents.worker.functions import MAX_THREADS
from heldout.agents.worker.loading import LoadProblem
from heldout.agents.worker.reply import Reply
from heldout.http.exchange import Request

_Message = MutableMapping[str, Any]
_Application = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
]


class ApplicationHost:
    """Answers every request by handing it to the application."""

    def __init__(self, application: object) -> None:
        assert callable(application)  # `LoadedAgent.is_application` has checked it
        self._application: _Application = application
        self._to_lifespan: asyncio.Queue[_Message] = asyncio.Queue()
        self._lifespan: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the application's lifespan, if it has one. Raises LoadProblem when the application reports a failure.

        Raises anyio's limit of 40 threads for sync handlers, so that an attempt never waits for another's thread.
        """
        if "anyio.to_thread" in sys.modules:
            sys.modules["anyio.to_thread"].current_default_thread_limiter().total_tokens = MAX_THREADS
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lifespan = asyncio.create_task(self._run_lifespan(started))
        await self._to_lifespan.put({"type": "lifespan.startup"})
        if failure := await started:
            raise LoadProblem(f"the application did not start: {failure}")

    async def stop(self) -> None:
        """Ends the application's lifespan."""
        await self._to_lifespan.put({"type": "lifespan.shutdown"})
        if self._lifespan is not None:
            await self._lifespan

    async def ping(self) -> bytes:
        """The body of the application's own answer to GET /ping."""
        answer: list[bytes] = []

        async def send(message: _Message) -> None:
            answer.append(message.get("body", b""))

        await self._application(_scope("GET", "/ping"), _receiver(b""), send)
        return b"".join(answer)

    async def play(
        self,
        session: str,  # noqa: ARG002
        request: Request,
        body: bytes,
        reply: Reply,
        running: list[Future[object]],  # noqa: ARG002
    ) -> None:
        """Plays one attempt and answers. Threads are the application's own: cancelling waits for them."""

        async def send(message: _Message) -> None:
            if message["type"] == "http.response.start":
                await reply.start(message["status"], _without_framing(message.get("headers", ())))
            elif message["type"] == "http.response.body":
                await reply.send(bytes(message.get("body", b"")))

        scope = _scope(request.method, request.path, request.query, request.headers)
        await self._application(scope, _receiver(body), send)

    async def _run_lifespan(self, started: asyncio.Future[str]) -> None:
        async def send(message: _Message) -> None:
            if message["type"].startswith("lifespan.startup.") and not started.done():
                is_complete = message["type"] == "lifespan.startup.complete"
                started.set_result("" if is_complete else str(message.get("message") or "lifespan.startup.failed"))

        # By the specification, an application without a lifespan raises here; it is served all the same.
        with contextlib.suppress(Exception):
            await self._application(
                {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, self._to_lifespan.get, send
            )
        if not started.done():
            started.set_result("")


async def blocked_loops(seconds: float) -> int:
    """Counts the event loops of other threads, such as bedrock-agentcore's, that do not answer within `seconds`.

    Loops inside anyio's own worker threads belong to one attempt each and are left out.
    """
    answers = [asyncio.wrap_future(_call_on(loop)) for loop in _other_loops()]
    if not answers:
        return 0
    _, silent = await asyncio.wait(answers, timeout=seconds)
    return len(silent)


def _call_on(loop: BaseEventLoop) -> Future[None]:
    answer: Future[None] = Future()
    with contextlib.suppress(RuntimeError):  # closed in the meantime
        loop.call_soon_threadsafe(answer.set_result, None)
        return answer
    answer.set_result(None)
    return answer


def _other_loops() -> list[BaseEventLoop]:
    """asyncio keeps no list of loops, but the thread that runs one has it as `self` in a frame of `run_forever`."""
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    found = []
    for ident, top in frames.items():
        frame: FrameType | None = None if ident == own or names.get(ident, "").startswith("AnyIO") else top
        while frame is not None:
            if frame.f_code is BaseEventLoop.run_forever.__code__:
                found.append(frame.f_locals["self"])
            frame = frame.f_back
    return found


def _without_framing(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """An application's headers as text, without those by which its server would frame the body: the worker's does."""
    framing = ("content-length", "transfer-encoding", "connection")
    decoded = ((bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers)
    return {name: value for name, value in decoded if name.lower() not in framing}


def _scope(method: str, path: str, query: str = "", headers: Mapping[str, str] = MappingProxyType({})) -> _Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "headers": [
            (name.encode("latin-1"), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }


def _receiver(body: bytes) -> Callable[[], Awaitable[_Message]]:
    messages: list[_Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> _Message:
        if messages:
            return messages.pop()
        # Never a disconnect: an abandoned attempt is cancelled instead.
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")

    return receive
