"""Raw handlers: requests that no botocore model describes, and how to forward them to another server on this machine."""

from typing import Protocol

import aiohttp
from aiohttp import web
from yarl import URL

from heldout.runtime.signing import SignedRequest

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"})
"""Headers that concern one connection only and are not forwarded. Source: RFC 9110, section 7.6.1."""


class RawHandler(Protocol):
    """Answers all requests of one kind. It authenticates callers itself."""

    def takes(self, request: web.Request) -> bool:
        """Whether this handler answers the request."""
        ...

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply. Errors are replies too."""
        ...


def signed_request(request: web.Request, body: bytes) -> SignedRequest:
    """The parts of a request that a signature covers. A repeated header holds all its values, separated by commas."""
    path, _, query = request.raw_path.partition("?")
    headers = dict[str, str]()
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    return SignedRequest(request.method, path, query, headers, body)


def new_session() -> aiohttp.ClientSession:
    """A client session for `forward`: it decompresses nothing, follows no redirect and has no total timeout."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
        timeout=aiohttp.ClientTimeout(total=None, connect=5.0),
    )


async def forward(
    session: aiohttp.ClientSession, request: web.Request, server: str, path: str | None = None
) -> web.StreamResponse:
    """Sends `request` unchanged to `server` (`http://host:port`) and streams its reply back.

    path: the raw path and query to request; by default the request's own. The Host header stays the client's, because signatures
    cover it. Raises aiohttp.ClientError if the server cannot be reached.
    """
    body = await request.read()
    headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP | {"content-length"}]
    async with session.request(
        request.method,
        URL(server + (path or request.raw_path), encoded=True),
        headers=headers,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        data=body or None,
        allow_redirects=False,
    ) as answer:
        reply = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                reply.headers.add(name, value)
        await reply.prepare(request)
        async for piece in answer.content.iter_any():
            await reply.write(piece)
        await reply.write_eof()
        return reply
