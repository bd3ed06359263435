"""One exchange of the HTTP server: the request that a handler reads, and the answer that it gives whole or as a stream.

`heldout.http.request_parser` makes the requests, `heldout.http.flow_control` moves the bytes, `heldout.http.server` listens.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol


class BodyTooLong(Exception):
    """A request's body has more bytes than the handler accepts."""


class BodyTooSlow(Exception):
    """A request's body did not arrive in time."""


class Answer(NamedTuple):
    """A whole answer. The server adds `Content-Length` and `Connection`."""

    status: int
    headers: Mapping[str, str]
    """Names and values in Latin-1."""
    body: bytes


class Channel(Protocol):
    """The connection that a request came on, as the request and its stream use it."""

    async def read_body(self, request: "Request", limit: int, seconds: float) -> None:
        """Waits until the request's body is complete. Raises BodyTooLong or BodyTooSlow."""
        ...

    async def begin_stream(self, request: "Request", status: int, headers: Mapping[str, str]) -> "Stream":
        """Sends the head of a streamed answer. Raises ConnectionError if the client has gone."""
        ...

    async def send(self, data: bytes) -> None:
        """Sends bytes, at the client's pace. Raises ConnectionError if the client has gone."""
        ...


class Request:
    """One request. Its head is complete; `read` waits for its body."""

    __slots__ = (
        "_body",
        "_channel",
        "_size",
        "headers",
        "is_complete",
        "keeps_alive",
        "method",
        "path",
        "query",
        "version",
    )

    def __init__(self, channel: Channel, method: str, target: str, version: str, headers: dict[str, str]) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        """As sent: percent escapes are kept."""
        self.version = version
        """HTTP version: `1.1` or `1.0`."""
        self.headers: Mapping[str, str] = headers
        """Names in lower case. Values of a repeated name are joined with commas (RFC 9110, section 5.3). Bytes that are not
        UTF-8 are surrogate escapes."""
        self.keeps_alive = True
        """Whether the connection stays open after the answer."""
        self.is_complete = False
        """Whether the whole body has arrived."""
        self._channel = channel
        self._body: list[bytes] = []
        self._size = 0

    async def read(self, *, limit: int, seconds: float) -> bytes:
        """Returns the whole body.

        Raises BodyTooLong if it has more than `limit` bytes, BodyTooSlow if the rest takes longer than `seconds`.
        """
        if not self.is_complete:  # rare: head and body usually arrive together, and need no timer
            await self._channel.read_body(self, limit, seconds)
        if self._size > limit:
            raise BodyTooLong
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    async def stream(self, status: int, headers: Mapping[str, str]) -> "Stream":
        """Begins an answer whose body is sent in pieces. The handler then returns None.

        The server frames the body: headers must not have `Content-Length`. Raises ConnectionError if the client has gone.
        """
        return await self._channel.begin_stream(self, status, headers)

    @property
    def announced_bytes(self) -> int:
        """Length of the body according to `Content-Length`; 0 without that header."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() else 0

    @property
    def size(self) -> int:
        """Bytes of the body that have arrived."""
        return self._size

    def add(self, data: bytes) -> None:
        """Appends a piece of the body."""
        self._body.append(data)
        self._size += len(data)


class Stream:
    """An answer whose body is sent in pieces: `write` any number of times, then `end`."""

    def __init__(self, channel: Channel, *, is_chunked: bool, is_silent: bool) -> None:
        self._channel = channel
        self._is_chunked = is_chunked
        self._is_silent = is_silent
        """Whether the request was HEAD, whose answer has no body."""

    async def write(self, data: bytes) -> None:
        """Sends a piece, at the client's pace. Raises ConnectionError if the client has gone."""
        if data and not self._is_silent:
            await self._channel.send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    async def end(self) -> None:
        """Ends the body. Raises ConnectionError if the client has gone."""
        if self._is_chunked and not self._is_silent:
            await self._channel.send(b"0\r\n\r\n")


Handler = Callable[[Request], Awaitable[Answer | None]]
"""Answers a request, or returns None after it streamed the answer. An exception closes the connection."""
