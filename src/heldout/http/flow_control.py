"""The life of one client's connection: one request at a time, back pressure in both directions, and an orderly end.

Bodies are read when the handler asks for them. Limits bound what a slow or endless client can hold in memory.
"""

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

from heldout.http.exchange import Answer, BodyTooLong, BodyTooSlow, Handler, Request, Stream
from heldout.http.request_parser import RequestParser, RequestRefused

log = logging.getLogger(__name__)

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_AHEAD_BYTES = 256 * 1024
"""Reading pauses when an unread body is longer than this, or when requests queue behind the current one."""
_LINGER_BYTES = 256 * 2**20
"""Most bytes discarded from a client that was answered before it had sent its whole request."""


class Connection(asyncio.Protocol):
    """One client's connection. It implements `heldout.http.exchange.Channel`.

    connections: the server's open connections; this one adds and removes itself. idle_seconds, linger_seconds: as in
    `heldout.http.server.Server`.
    """

    def __init__(
        self, handler: Handler, connections: "set[Connection]", *, idle_seconds: float, linger_seconds: float
    ) -> None:
        self._handler = handler
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._linger_seconds = linger_seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(self)
        self._current: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        """Wakes the handler that waits for more of the body."""
        self._writer: asyncio.Future[None] | None = None
        """Wakes the handler that waits until the client accepts more."""
        self._is_paused = False
        """Whether reading from the network is paused."""
        self._is_full = False
        """Whether the client accepts no more for now."""
        self._is_closing = False
        self._num_discarded = 0
        self._idle_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # Called by requests and streams.

    async def read_body(self, request: Request, limit: int, seconds: float) -> None:
        """Waits until the request's body is complete or longer than `limit`. Raises BodyTooLong or BodyTooSlow."""
        if request.announced_bytes > limit:
            raise BodyTooLong
        if request.headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(seconds):
                while not request.is_complete and request.size <= limit:
                    self._reader = self._loop.create_future()
                    self._resume_reading()
                    await self._reader
        except TimeoutError:
            raise BodyTooSlow from None
        finally:
            self._reader = None

    async def begin_stream(self, request: Request, status: int, headers: Mapping[str, str]) -> Stream:
        """Sends the head of a streamed answer. Raises ConnectionError if the client has gone."""
        is_chunked = request.version != "1.0"
        if not is_chunked:
            request.keeps_alive = False  # the end of the connection marks the end of the body
        framing = "Transfer-Encoding: chunked\r\n" if is_chunked else ""
        await self.send(self._head(request, status, headers, framing))
        return Stream(self, is_chunked=is_chunked, is_silent=request.method == "HEAD")

    async def send(self, data: bytes) -> None:
        """Sends bytes; waits while the client does not accept them. Raises ConnectionError if the client has gone."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)
        if self._is_full:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    # Called by the server.

    def close_after_request(self) -> "asyncio.Task[None] | None":
        """Starts no further request. Returns the task of the current one; without one the connection closes at once."""
        self._is_closing = True
        self._parser.arrived.clear()
        if self._task is None:
            self.abort()
        return self._task

    def abort(self) -> None:
        """Closes without sending what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    # One request.

    def _start_next(self) -> None:
        if self._current is None and self._parser.arrived and self._transport is not None:
            self._current = request = self._parser.arrived.popleft()
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
            request.keeps_alive = False  # the rest of its body is not worth reading
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
            self._close_gently(is_request_read=request.is_complete)
            return
        self._idle_since = self._loop.time()
        self._start_next()
        self._resume_reading()

    # The end of the connection.

    def _close_gently(self, *, is_request_read: bool) -> None:
        """Closes. If the client may still be sending, first lets it read the answer.

        A socket that closes with unread data resets the connection, and the client loses the answer.
        """
        self._is_closing = True
        self._parser.arrived.clear()
        assert self._transport is not None
        if is_request_read:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(self._linger_seconds, self.abort)
        self._resume_reading()

    def _discard(self, num_bytes: int) -> None:
        self._num_discarded += num_bytes
        if self._num_discarded > _LINGER_BYTES:
            self.abort()

    def _refuse(self, status: int, reason: str) -> None:
        """Answers bytes that are no request, if nothing else is being answered, and closes."""
        if self._current is None and self._transport is not None:
            text = f"{reason}\n".encode()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            )
            self._transport.write(f"{head}Connection: close\r\n\r\n".encode() + text)
            self._close_gently(is_request_read=False)
        else:
            self.abort()

    def _check_idle(self) -> None:
        """Closes the connection if it was silent for too long; else sets the timer again."""
        if self._transport is None:
            return
        left = self._idle_since + self._idle_seconds - self._loop.time()
        if self._current is None and left <= 0:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(left if left > 0 else self._idle_seconds, self._check_idle)

    # Back pressure on the client.

    def _resume_reading(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def _pause_reading_if_ahead(self) -> None:
        arriving = self._parser.arriving
        is_unread = arriving is not None and self._reader is None and arriving.size > _AHEAD_BYTES
        if (is_unread or len(self._parser.arrived) > 1) and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._timer = self._loop.call_later(self._idle_seconds, self._check_idle)

    def connection_lost(self, problem: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._connections.discard(self)
        self._parser.arrived.clear()
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
            self._discard(len(data))
            return
        try:
            self._parser.feed(data)
        except RequestRefused as refused:
            self._refuse(refused.status, str(refused))
            return
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._start_next()
        self._pause_reading_if_ahead()
