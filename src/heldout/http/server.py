"""An HTTP/1.1 server on an asyncio loop for services that answer small JSON requests thousands of times a second.

Parsing is httptools' (llhttp); what is here is the life of a connection: one request at a time in the order they came, bodies
read when they are asked for, limits on what a slow or endless client can hold, and an end that lets answers out first. A
general server spends more on each call than the Job Runtime spends on recording it (benchmarks/runtime.py).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools

log = logging.getLogger(__name__)

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_HEAD_BYTES = 64 * 1024
"""Most of a request's line and headers together, beyond what came with their beginning."""
_AHEAD_BYTES = 256 * 1024
"""A body that nobody reads yet, and requests behind the one under way, stop being read from the network here."""
_BACKLOG = 1024
"""Connections that may wait to be accepted: a job's agents all start at once."""
_LINGER_SECONDS = 5.0
"""How long what a client still sends is thrown away after it was answered early, so that it reads the answer first."""
_LINGER_BYTES = 256 * 2**20


class BodyTooLong(Exception):
    """A request's body has more bytes than its reader takes."""


class BodyTooSlow(Exception):
    """A request's body did not arrive in time."""


class Answer(NamedTuple):
    """A whole answer. `Content-Length` and `Connection` are added."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Request:
    """One request: its head is here, its body is read with `read`."""

    __slots__ = (
        "_body",
        "_connection",
        "_size",
        "headers",
        "is_complete",
        "keeps_alive",
        "method",
        "path",
        "query",
        "version",
    )

    def __init__(
        self, connection: "_Connection", method: str, target: str, version: str, headers: dict[str, str]
    ) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        """As it was sent: escapes are not taken out."""
        self.version = version
        self.headers: Mapping[str, str] = headers
        """Names in lower case; one that came several times has its values joined with commas (RFC 9110, section 5.3)."""
        self.keeps_alive = True
        self.is_complete = False
        """Whether all of the body is here."""
        self._connection = connection
        self._body: list[bytes] = []
        self._size = 0

    async def read(self, *, limit: int, seconds: float) -> bytes:
        """The whole body. Raises BodyTooLong beyond `limit` bytes, BodyTooSlow when it takes longer than `seconds`."""
        if not self.is_complete:  # rarely: head and body come together, so neither a timer nor a wait is needed
            await self._connection.read_body(self, limit, seconds)
        if self._size > limit:
            raise BodyTooLong
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    async def stream(self, status: int, headers: Mapping[str, str]) -> "Stream":
        """Begins an answer whose body comes in pieces; the handler then returns None. Raises ConnectionError."""
        return await self._connection.begin_stream(self, status, headers)

    @property
    def announced_bytes(self) -> int:
        """What the head says of the body's length; 0 when it does not."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() else 0

    @property
    def size(self) -> int:
        """Bytes of the body that are here."""
        return self._size

    def add(self, data: bytes) -> None:
        """A piece of the body has come."""
        self._body.append(data)
        self._size += len(data)


class Stream:
    """An answer that goes out piece by piece."""

    def __init__(self, connection: "_Connection", *, is_chunked: bool, is_silent: bool) -> None:
        self._connection = connection
        self._is_chunked = is_chunked
        self._is_silent = is_silent

    async def write(self, data: bytes) -> None:
        """Sends a piece; waits while the client does not take them. Raises ConnectionError when it has gone."""
        if data and not self._is_silent:
            await self._connection.send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    async def end(self) -> None:
        """Everything has been sent. Raises ConnectionError."""
        if self._is_chunked and not self._is_silent:
            await self._connection.send(b"0\r\n\r\n")


Handler = Callable[[Request], Awaitable[Answer | None]]
"""Answers a request, or returns None after it has streamed the answer. An exception ends the connection."""


class Server:
    """Listens, and calls `handler` in a task for each request. The task is cancelled when its client goes away.

    idle_seconds: how long a connection may be silent between requests, or take over a request's head.
    """

    def __init__(self, handler: Handler, *, idle_seconds: float) -> None:
        self._handler = handler
        self._idle_seconds = idle_seconds
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port; 0 takes a free one. Raises OSError if it is taken."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._handler, self._connections, self._idle_seconds), host, port, backlog=_BACKLOG
        )
        return int(self._listener.sockets[0].getsockname()[1])

    def close_listener(self) -> None:
        """Takes no more connections."""
        if self._listener is not None:
            self._listener.close()

    async def stop(self, seconds: float) -> None:
        """Takes no more requests, gives those under way `seconds` to end, and ends the rest."""
        self.close_listener()
        tasks = {
            task for connection in list(self._connections) if (task := connection.close_after_request()) is not None
        }
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=seconds)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        for connection in list(self._connections):
            connection.abort()
        if self._listener is not None:
            await self._listener.wait_closed()


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, connections: "set[_Connection]", idle_seconds: float) -> None:
        self._handler = handler
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._is_in_head = False
        self._head_bytes = 0
        self._arriving: Request | None = None
        """The request whose body is not complete."""
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_paused = False
        self._is_full = False
        """Whether the client takes no more for now."""
        self._is_closing = False
        self._thrown_away = 0
        self._idle_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # What requests and streams call.

    async def read_body(self, request: Request, limit: int, seconds: float) -> None:
        if request.announced_bytes > limit:
            raise BodyTooLong
        if request.headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(seconds):
                while not request.is_complete and request.size <= limit:
                    self._reader = self._loop.create_future()
                    self._resume()
                    await self._reader
        except TimeoutError:
            raise BodyTooSlow from None
        finally:
            self._reader = None

    async def begin_stream(self, request: Request, status: int, headers: Mapping[str, str]) -> Stream:
        is_chunked = request.version != "1.0"
        if not is_chunked:
            request.keeps_alive = False  # the body's end is the connection's
        framing = "Transfer-Encoding: chunked\r\n" if is_chunked else ""
        await self.send(self._head(request, status, headers, framing))
        return Stream(self, is_chunked=is_chunked, is_silent=request.method == "HEAD")

    async def send(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)
        if self._is_full:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    # What the server calls.

    def close_after_request(self) -> "asyncio.Task[None] | None":
        """Takes no further request; the task of the one under way."""
        self._is_closing = True
        self._waiting.clear()
        if self._task is None:
            self.abort()
        return self._task

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # A request's life.

    def _start_next(self) -> None:
        if self._current is None and self._waiting and self._transport is not None:
            self._current = request = self._waiting.popleft()
            self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._handler(request)
            if answer is not None:
                await self._send_answer(request, answer)
        except asyncio.CancelledError:
            self.abort()
            raise
        except ConnectionError:
            self.abort()
        except Exception:
            log.exception("a request's handler failed")
            self.abort()
        finally:
            self._current = self._task = None
            self._finish(request)

    async def _send_answer(self, request: Request, answer: Answer) -> None:
        head = self._head(request, answer.status, answer.headers, f"Content-Length: {len(answer.body)}\r\n")
        await self.send(head if request.method == "HEAD" else head + answer.body)

    def _head(self, request: Request, status: int, headers: Mapping[str, str], framing: str) -> bytes:
        if not request.is_complete:
            request.keeps_alive = False  # what is left of its body is not worth reading
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection = ""
        if not request.keeps_alive or self._is_closing:
            connection = "Connection: close\r\n"
        elif request.version == "1.0":
            connection = "Connection: keep-alive\r\n"
        return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n{lines}{framing}{connection}\r\n".encode("latin-1")

    def _finish(self, request: Request) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_closing or not request.keeps_alive:
            self._close_gently(is_read_out=request.is_complete)
            return
        self._idle_since = self._loop.time()
        self._start_next()
        self._resume()

    def _close_gently(self, *, is_read_out: bool) -> None:
        """Closes; while the client is still sending, only after it has had a chance to read the answer.

        A socket closed with unread data resets the connection, and the answer with it.
        """
        self._is_closing = True
        self._waiting.clear()
        assert self._transport is not None
        if is_read_out:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_LINGER_SECONDS, self.abort)
        self._resume()

    def _resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def _pause_if_ahead(self) -> None:
        arriving = self._arriving
        is_unread = arriving is not None and self._reader is None and arriving.size > _AHEAD_BYTES
        if (is_unread or len(self._waiting) > 1) and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _check_idle(self) -> None:
        """Ends a connection that was silent too long; else looks again when it may be."""
        if self._transport is None:
            return
        left = self._idle_since + self._idle_seconds - self._loop.time()
        if self._current is None and left <= 0:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(left if left > 0 else self._idle_seconds, self._check_idle)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._timer = self._loop.call_later(self._idle_seconds, self._check_idle)

    def connection_lost(self, problem: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._connections.discard(self)
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._writer is not None and not self._writer.done():
            self._writer.set_exception(ConnectionResetError("the client has gone"))
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._is_closing and self._current is None:
            self._throw_away(len(data))
            return
        was_in_head = self._is_in_head
        try:
            self._parse(data)
        except httptools.HttpParserError as problem:
            self._refuse(400, str(problem))
            return
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse(431, f"the request's head is longer than {_HEAD_BYTES // 1024} KiB")
                return
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._start_next()
        self._pause_if_ahead()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                self._decline_upgrade()
                data = data[upgrade.args[0] :]

    def _throw_away(self, num_bytes: int) -> None:
        self._thrown_away += num_bytes
        if self._thrown_away > _LINGER_BYTES:
            self.abort()

    def _refuse(self, status: int, reason: str) -> None:
        """Not HTTP, or too much of it: nothing after it can be understood."""
        if self._current is None and self._transport is not None:
            text = f"{reason}\n".encode()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            )
            self._transport.write(f"{head}Connection: close\r\n\r\n".encode() + text)
            self._close_gently(is_read_out=False)
        else:
            self.abort()

    def _decline_upgrade(self) -> None:
        """Goes on in HTTP/1.1, as a server may that has nothing to upgrade to (RFC 9110, section 7.8).

        The parser has stopped where the other protocol would begin, so the body is given to another one.
        """
        request = self._arriving or (self._waiting[-1] if self._waiting else None)
        self._parser = httptools.HttpRequestParser(self)
        if request is not None and {"content-length", "transfer-encoding"} & request.headers.keys():
            self._arriving = None
            self._waiting.remove(request)  # it is not begun: that comes after the parser has had all of the data
            self._parser.feed_data(_head_without_upgrade(request))

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._target, self._headers = b"", {}
        self._is_in_head, self._head_bytes = True, 0

    def on_url(self, piece: bytes) -> None:
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "surrogateescape")
        self._headers[key] = f"{self._headers[key]},{text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        request = Request(
            self,
            self._parser.get_method().decode("latin-1"),
            self._target.decode("utf-8", "surrogateescape"),
            self._parser.get_http_version(),
            self._headers,
        )
        request.keeps_alive = self._parser.should_keep_alive()
        self._arriving = request
        self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        if self._arriving is not None:
            self._arriving.add(data)

    def on_message_complete(self) -> None:
        if self._arriving is not None:
            self._arriving.is_complete = True
            self._arriving = None


def _head_without_upgrade(request: Request) -> bytes:
    asked = ("upgrade", "connection", "http2-settings")
    target = f"{request.path}?{request.query}" if request.query else request.path
    lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if name not in asked)
    return f"{request.method} {target} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
