"""A small HTTP/1.1 server for one known client, the engine, on loopback.

Why not the server the rest of Heldout uses: its import costs every worker half a second and 20 MB, and this needs to be
neither. Bodies come with Content-Length; anything else is refused with 411.
"""

import asyncio
import http
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

_HEAD_LIMIT = 256 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read whole."""

    method: str
    target: str
    """Path and query, as sent."""
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> str:
        """The value of header `name` (lower case); empty when it is not there."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


class Reply:
    """The answer to one request: `start`, `send` any number of times, `finish`; or `whole` for all in one."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._is_chunked = False
        self.is_started = False

    async def whole(self, status: int, content_type: str, body: bytes) -> None:
        """Answers with one body."""
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        self.start(status, headers)
        await self.send(body)

    def start(self, status: int, headers: Headers) -> None:
        """Sends the head; without a Content-Length the body goes out in chunks."""
        self.is_started = True
        self._is_chunked = all(name.lower() != b"content-length" for name, _ in headers)
        if self._is_chunked:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        lines = [b"HTTP/1.1 %d %s" % (status, _phrase(status)), *(b"%s: %s" % header for header in headers)]
        self._writer.write(b"\r\n".join(lines) + b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        """Sends a piece of the body."""
        if data:
            self._writer.write(b"%x\r\n%s\r\n" % (len(data), data) if self._is_chunked else data)
        await self._writer.drain()

    async def finish(self) -> None:
        """Ends the body."""
        if self._is_chunked:
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()


Handler = Callable[[Request, Reply], Awaitable[None]]


async def serve(handler: Handler) -> asyncio.Server:
    """Listens on a free loopback port and answers every request with `handler`."""
    return await asyncio.start_server(
        partial(_serve_connection, handler), "127.0.0.1", 0, limit=_HEAD_LIMIT, backlog=1024
    )


async def _serve_connection(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            request = await _read_request(reader, writer)
            reply = Reply(writer)
            if request is None:
                await reply.whole(411, "text/plain", b"a Content-Length is needed")
                return
            await handler(request, reply)
            await reply.finish()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the engine closed the connection: between two requests, or because it gave the attempt up
    finally:
        writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request; None for one whose length is not told. Raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    values = dict(headers)
    if b"transfer-encoding" in values:
        return None
    if values.get(b"expect", b"").lower() == b"100-continue":
        writer.write(_CONTINUE)
    body = await reader.readexactly(int(values.get(b"content-length", b"0")))
    return Request(method, target, headers, body)


def _phrase(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
