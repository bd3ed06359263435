"""An HTTP/1.1 client with a pool of kept-alive connections, for small JSON requests thousands of times a second.

httptools (llhttp) parses; this module holds the pool and the life of a connection. A general client spends more on each
call than the Job Runtime spends on recording it (benchmarks/runtime.py).
"""

import asyncio
import ssl
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import httptools
from yarl import URL

_PAUSE_BYTES = 1024 * 1024
"""Reading from the network pauses when a reply has this many unread bytes."""


class Origin(NamedTuple):
    """The address of a server."""

    host: str
    port: int
    is_tls: bool


class Site:
    """A base URL: a server, and the path that begins every request to it.

    url: `http(s)://host[:port][/path]`. Raises ValueError, naming what was expected, for any other text.
    """

    def __init__(self, url: str) -> None:
        site = URL(url)
        if site.scheme not in ("http", "https") or not site.raw_host:
            raise ValueError("expected http://host:port or https://host:port")
        if site.raw_query_string or site.raw_fragment:
            raise ValueError("expected an address without '?' and '#': paths are appended to it")
        self.origin = Origin(site.raw_host, site.port or 80, site.scheme == "https")
        self._host = site.host_port_subcomponent
        self._path = site.raw_path.rstrip("/")

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """Returns the bytes of a request, for `Connections.request`. Header names and values must be printable ASCII."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        length = f"Content-Length: {len(body)}\r\n" if body or method != "GET" else ""
        head = f"{method} {self._path}{path} HTTP/1.1\r\nHost: {self._host}\r\n{lines}{length}\r\n"
        return head.encode("ascii") + body


class NotConnected(OSError):
    """No connection could be made; the request was not sent."""


class Dropped(OSError):
    """The connection ended before the reply did."""


class Connections:
    """A connection pool. It reuses the connection that became idle last, and drops those idle for `keep_alive_seconds`.

    max_connections: requests at one time; further ones wait. connect_seconds: how long opening a connection may take.
    """

    def __init__(
        self, *, max_connections: int = sys.maxsize, keep_alive_seconds: float, connect_seconds: float
    ) -> None:
        self._places = asyncio.Semaphore(max_connections)
        self._keep_alive_seconds = keep_alive_seconds
        self._connect_seconds = connect_seconds
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._all: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def request(self, origin: Origin, request: bytes) -> "Response":
        """Sends one request and returns when the head of its reply has arrived.

        The caller reads the response to its end or closes it. Raises NotConnected or Dropped.
        """
        await self._places.acquire()
        try:
            connection = self._take(origin) or await self._connect(origin)
            return await connection.send(request)
        except BaseException:
            self._places.release()
            raise

    def close(self) -> None:
        """Drops every connection, including those in use."""
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()

    def _take(self, origin: Origin) -> "_Connection | None":
        idle = self._idle.get(origin)
        now = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.is_open and now - connection.idle_since < self._keep_alive_seconds:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> "_Connection":
        if origin.is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, protocol = await loop.create_connection(
                    lambda: _Connection(self, origin),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.is_tls else None,
                )
        except TimeoutError as problem:
            raise NotConnected(f"took no connection within {self._connect_seconds:g} s") from problem
        except ConnectionRefusedError as problem:
            raise NotConnected("refuses connections (nothing is listening)") from problem
        except OSError as problem:
            raise NotConnected(f"cannot be reached ({problem})") from problem
        return protocol

    def opened(self, connection: "_Connection") -> None:
        self._all.add(connection)

    def done(self, connection: "_Connection", *, is_reusable: bool) -> None:
        """Takes a connection back after its request."""
        self._places.release()
        if is_reusable:
            self._idle.setdefault(connection.origin, deque()).append(connection)
        else:
            connection.abort()

    def lost(self, connection: "_Connection") -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)


class Response:
    """One reply. Its head has arrived; `read` and `read_some` wait for its body."""

    def __init__(self, connection: "_Connection", status: int, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        """Names in lower case."""

    async def read(self) -> bytes:
        """Returns the whole body. Raises Dropped."""
        return await self._connection.read_all()

    async def read_some(self) -> bytes:
        """Waits for more of the body and returns it; empty at the end. Raises Dropped."""
        return await self._connection.read_some()

    def close(self) -> None:
        """Abandons the rest: the server sees a closed connection. Has no effect after the end."""
        self._connection.give_up()


class _Connection(asyncio.Protocol):
    """One connection, with at most one request at a time."""

    def __init__(self, pool: Connections, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.is_open = False
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_busy = False
        self._is_paused = False

    async def send(self, request: bytes) -> Response:
        self._is_busy = True
        self._is_complete = False
        self._has_head = False
        self._may_stay_open = False
        self._problem: Exception | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        if self._transport is None:
            raise Dropped("the server closed the connection")
        self._transport.write(request)
        try:
            while not self._has_head:
                await self._wait()
        except BaseException:
            # `Connections.request` frees the place: a request without a response never reaches `done`.
            self._is_busy = False
            self.abort()
            raise
        return Response(self, self._parser.get_status_code(), self._headers)

    async def read_all(self) -> bytes:
        parts = []
        is_last = False
        while not is_last:
            # Takes pieces as they come: reading pauses while many bytes are unread, so a wait for a whole long body would hang.
            await self._read_until(lambda: self._is_complete or self._is_paused)
            is_last = self._is_complete
            parts.append(self._taken())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_some(self) -> bytes:
        await self._read_until(lambda: bool(self._body) or self._is_complete)
        return self._taken()

    async def _read_until(self, is_enough: Callable[[], bool]) -> None:
        try:
            while not is_enough():
                await self._wait()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        if self._is_busy:
            self._end(is_reusable=False)

    def abort(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _taken(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._size = [], 0
        if self._is_complete:
            if self._is_busy:
                self._end(is_reusable=self.is_open and self._may_stay_open)
        elif self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return body

    def _end(self, *, is_reusable: bool) -> None:
        self._is_busy = False
        self.idle_since = self._loop.time()
        self._pool.done(self, is_reusable=is_reusable)

    async def _wait(self) -> None:
        """Waits for data. Raises the connection's problem after everything that arrived before it was taken."""
        if self._problem is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._problem is not None:
            raise self._problem

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._is_busy:
            # A server that sends without a request is about to close, or has lost count of requests.
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._problem = Dropped(f"the reply is not HTTP: {problem}")
            self.is_open = False
        if self._size > _PAUSE_BYTES and not self._is_complete and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, problem: Exception | None) -> None:
        self.is_open = False
        self._transport = None
        self._pool.lost(self)
        if self._is_busy and not self._is_complete:
            self._end_of_stream(problem)
            self._wake()

    def _end_of_stream(self, problem: Exception | None) -> None:
        ends_with_connection = self._has_head and not {"content-length", "transfer-encoding"} & self._headers.keys()
        if problem is None and ends_with_connection:
            self._is_complete = True
        elif self._problem is None:
            self._problem = Dropped(str(problem) if problem else "the server closed the connection")

    # Callbacks of httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._has_head = True
            # Read now: the parser forgets it when the message is complete.
            self._may_stay_open = self._parser.should_keep_alive()
        else:
            self._headers = {}

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True
