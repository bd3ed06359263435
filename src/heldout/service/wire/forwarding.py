"""A request handed on to another server of this machine as it came, and its reply handed back as it comes."""

import aiohttp
from aiohttp import web
from yarl import URL

_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"})
"""Headers that are between two neighbours, and of no one else's business (RFC 9110, section 7.6.1)."""


def new_session() -> aiohttp.ClientSession:
    """What `forward` sends with: bodies stay compressed as they are, nothing is followed, nothing times out by itself."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
        timeout=aiohttp.ClientTimeout(total=None, connect=5.0),
    )


async def forward(
    session: aiohttp.ClientSession, request: web.Request, server: str, path: str | None = None
) -> web.StreamResponse:
    """Sends `request` to `server` (`http://host:port`): method, path and query, headers and body byte by byte.

    path: the raw path and query to ask for, if not the request's own. The Host header stays the one the client sent, which
    signatures cover. Raises aiohttp.ClientError when the server cannot be reached.
    """
    body = await request.read()
    headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _OF_THE_CONNECTION | {"content-length"}]
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
            if name.lower() not in _OF_THE_CONNECTION:
                reply.headers.add(name, value)
        await reply.prepare(request)
        async for piece in answer.content.iter_any():
            await reply.write(piece)
        await reply.write_eof()
        return reply
