"""Turns a connection's bytes into requests. httptools (llhttp) parses; this module limits heads and declines upgrades. No I/O.

Source: RFC 9110 and RFC 9112.
"""

from collections import deque

import httptools

from heldout.http.exchange import Channel, Request

_HEAD_BYTES = 64 * 1024
"""Most bytes of a request's line and headers, not counting those that arrived with their beginning."""


class RequestRefused(Exception):
    """The bytes are no request that this server reads; the message says why. Nothing after them can be understood."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """HTTP status of the answer."""


class RequestParser:
    """Parses the requests of one connection. channel: goes into each request, which reads its body through it."""

    def __init__(self, channel: Channel) -> None:
        self.arrived: deque[Request] = deque()
        """Requests with a complete head, in order. The connection removes each one when it starts it."""
        self.arriving: Request | None = None
        """The request whose body is not complete."""
        self._channel = channel
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._is_in_head = False
        self._head_bytes = 0

    def feed(self, data: bytes) -> None:
        """Parses the next bytes. Raises RequestRefused: 400 if they are not HTTP, 431 if a head is too long."""
        was_in_head = self._is_in_head
        try:
            self._parse(data)
        except httptools.HttpParserError as problem:
            raise RequestRefused(400, str(problem)) from problem
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                raise RequestRefused(431, f"the request's head is longer than {_HEAD_BYTES // 1024} KiB")

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                self._decline_upgrade()
                data = data[upgrade.args[0] :]

    def _decline_upgrade(self) -> None:
        """Continues in HTTP/1.1, as a server without other protocols may (RFC 9110, section 7.8).

        llhttp stops where the other protocol would begin, which is before the body: a fresh parser reads the body.
        """
        request = self.arriving or (self.arrived[-1] if self.arrived else None)
        self._parser = httptools.HttpRequestParser(self)
        if request is not None and {"content-length", "transfer-encoding"} & request.headers.keys():
            self.arriving = None
            self.arrived.remove(request)  # not started yet: the connection starts requests after all data is parsed
            self._parser.feed_data(_head_without_upgrade(request))

    # Callbacks of httptools.

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
            self._channel,
            self._parser.get_method().decode("latin-1"),
            self._target.decode("utf-8", "surrogateescape"),
            self._parser.get_http_version(),
            self._headers,
        )
        request.keeps_alive = self._parser.should_keep_alive()
        self.arriving = request
        self.arrived.append(request)

    def on_body(self, data: bytes) -> None:
        if self.arriving is not None:
            self.arriving.add(data)

    def on_message_complete(self) -> None:
        if self.arriving is not None:
            self.arriving.is_complete = True
            self.arriving = None


def _head_without_upgrade(request: Request) -> bytes:
    dropped = ("upgrade", "connection", "http2-settings")
    target = f"{request.path}?{request.query}" if request.query else request.path
    lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if name not in dropped)
    return f"{request.method} {target} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
