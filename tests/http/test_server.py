"""The HTTP server on the wire: the behaviour of real clients, and clients that must not block it."""

import asyncio
import contextlib
import io
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.http.exchange import Answer, BodyTooLong, Handler, Request
from heldout.http.server import Server

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
POST = b"POST /echo?a=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


async def echo(request: Request) -> Answer:
    """Answers with the request's method, path, query and body."""
    try:
        body = await request.read(limit=2**20, seconds=30)
    except BodyTooLong:
        return Answer(413, {}, b"too long")
    return Answer(200, {"X-Path": f"{request.path}?{request.query}"}, request.method.encode() + b" " + body)


async def in_pieces(request: Request) -> None:
    """Streams three pieces, one of them empty."""
    stream = await request.stream(200, {"Content-Type": "text/plain"})
    for piece in (b"one ", b"", b"two"):
        await stream.write(piece)
    await stream.end()


@asynccontextmanager
async def serving(handler: Handler, *, idle_seconds: float = 60.0) -> AsyncIterator[int]:
    server = Server(handler, idle_seconds=idle_seconds)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop(1.0)


async def exchanged(port: int, *pieces: bytes) -> bytes:
    """Returns everything the server sends on one connection until it closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


def closing(request: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


async def test_a_request_and_its_answer() -> None:
    async with serving(echo) as port:
        answer = await exchanged(port, closing(POST))
    assert answer == b"HTTP/1.1 200 OK\r\nX-Path: /echo?a=1\r\nContent-Length: 8\r\nConnection: close\r\n\r\nPOST abc"


async def test_requests_sent_all_at_once_are_answered_in_their_order() -> None:
    bodies = [b"%03d" % number for number in range(40)]
    requests = [POST.replace(b"abc", body) for body in bodies]
    async with serving(echo) as port:
        answer = await exchanged(port, b"".join(requests[:-1]) + closing(requests[-1]))
    assert [part[:3] for part in answer.split(b"POST ")[1:]] == bodies


@given(cuts=st.lists(st.integers(1, len(POST) - 1), unique=True))
def test_a_request_may_come_in_any_pieces(cuts: list[int]) -> None:
    request = closing(POST)
    edges = [0, *sorted(cuts), len(request)]

    async def play() -> bytes:
        async with serving(echo) as port:
            return await exchanged(port, *(request[a:b] for a, b in pairwise(edges)))

    assert asyncio.run(play()).endswith(b"POST abc")


@pytest.mark.parametrize(
    ("version", "framed"),
    [
        (b"1.1", b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"),
        (b"1.0", b"Connection: close\r\n\r\none two"),
    ],
)
async def test_a_stream_is_framed_as_the_client_understands_it(version: bytes, framed: bytes) -> None:
    async with serving(in_pieces) as port:
        answer = await exchanged(port, b"GET / HTTP/" + version + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + framed


@pytest.mark.parametrize("handler", [echo, in_pieces])
async def test_head_is_answered_without_a_body(handler: Handler) -> None:
    async with serving(handler) as port:
        answer = await exchanged(port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


async def test_an_http_1_0_client_may_keep_its_connection() -> None:
    request = b"GET /%d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    async with serving(echo) as port:
        answer = await exchanged(port, request % 1, b"GET /2 HTTP/1.0\r\n\r\n")
    assert answer.count(b"Connection: keep-alive") == 1
    assert b"X-Path: /2?" in answer


@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_a_client_that_asks_for_http_2_is_answered_in_1_1(body: bytes) -> None:
    """The JDK's HttpClient asks for HTTP/2 with every first request."""
    head = (
        b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"
    )
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    async with serving(echo) as port:
        answer = await exchanged(port, head + length + b"\r\n" + body, closing(POST))
    assert b"POST " + body + b"HTTP/1.1 200" in answer
    assert answer.endswith(b"POST abc")


async def test_a_client_that_asks_for_http_2_in_each_of_several_requests_at_once_is_answered_each_time() -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with serving(echo) as port:
        answer = await exchanged(
            port, b"GET /1 HTTP/1.1\r\n" + upgrade + b"GET /2 HTTP/1.1\r\n" + upgrade + closing(POST)
        )
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b"X-Path: /1?") < answer.index(b"X-Path: /2?") < answer.index(b"X-Path: /echo?")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * what\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", b"400 Bad Request"),
    ],
)
async def test_bytes_that_are_not_http_are_refused(sent: bytes, status: bytes) -> None:
    async with serving(echo) as port:
        assert (await exchanged(port, sent)).startswith(b"HTTP/1.1 " + status)


async def test_a_head_without_end_is_refused() -> None:
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nX-Long: ")
        await writer.drain()
        for _ in range(64):
            writer.write(b"x" * 64 * 1024)
        answer = await asyncio.wait_for(reader.readline(), 10)
        writer.transport.abort()
    assert answer == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


async def test_one_header_sent_twice_is_one_list() -> None:
    async def header(request: Request) -> Answer:
        return Answer(200, {}, request.headers["x-a"].encode())

    async with serving(header) as port:
        answer = await exchanged(port, b"GET / HTTP/1.1\r\nX-A: 1\r\nConnection: close\r\nx-a: 2\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n1,2")


async def test_a_client_that_sends_too_much_still_reads_the_answer() -> None:
    async with serving(echo) as port, aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{port}/", data=io.BytesIO(b"x" * 30 * 2**20)) as answer:
            assert (answer.status, await answer.read()) == (413, b"too long")
        async with session.post(f"http://127.0.0.1:{port}/", data=b"fits") as answer:
            assert await answer.read() == b"POST fits"


async def test_a_stream_that_begins_before_the_body_arrived_is_the_connections_last_answer() -> None:
    async with serving(in_pieces) as port:
        answer = await exchanged(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(b"3\r\ntwo\r\n0\r\n\r\n")


async def test_an_unread_body_does_not_pile_up() -> None:
    may_read = asyncio.Event()
    held: list[int] = []

    async def late(request: Request) -> Answer:
        await may_read.wait()
        held.append(request.size)
        return Answer(200, {}, b"%d" % len(await request.read(limit=2**26, seconds=30)))

    async with serving(late) as port, aiohttp.ClientSession() as session:
        posting = asyncio.create_task(session.post(f"http://127.0.0.1:{port}/", data=io.BytesIO(b"x" * 2**25)))
        for _ in range(200):
            await asyncio.sleep(0)
        may_read.set()
        async with await posting as answer:
            assert await answer.read() == b"%d" % 2**25
    assert held[0] < 2**21


async def test_a_handler_is_cancelled_when_its_client_disconnects() -> None:
    is_begun, is_cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_: Request) -> Answer:
        is_begun.set()
        try:
            await asyncio.Event().wait()
            return Answer(200, {}, b"the client has gone")
        finally:
            is_cancelled.set()

    async with serving(wait) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST)
        await is_begun.wait()
        writer.close()
        await asyncio.wait_for(is_cancelled.wait(), 10)


async def test_a_stream_to_a_client_that_reads_nothing_waits_for_it() -> None:
    sent: list[int] = []

    async def endless(request: Request) -> None:
        stream = await request.stream(200, {})
        while True:
            await stream.write(b"x" * 2**16)
            sent.append(2**16)

    async with serving(endless) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(POST)
        await reader.readline()
        before = -1
        while before != len(sent):  # until the stream has stopped
            before = len(sent)
            await asyncio.sleep(0.05)
        writer.transport.abort()
    assert sum(sent) < 2**25


async def test_a_handler_that_fails_costs_its_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Answer:
        raise ZeroDivisionError(request.path)

    async with serving(fail) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()
    assert "ZeroDivisionError: /echo" in caplog.text


async def test_a_silent_connection_is_closed() -> None:
    async with serving(echo, idle_seconds=0.05) as port:
        assert await exchanged(port) == b""


async def test_stopping_lets_the_current_request_end() -> None:
    is_begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Answer:
        is_begun.set()
        await may_end.wait()
        return Answer(200, {}, b"done")

    server = Server(slow, idle_seconds=60, linger_seconds=0.1)
    port = await server.start("127.0.0.1", 0)
    asking = asyncio.create_task(exchanged(port, POST))
    await is_begun.wait()
    stopping = asyncio.create_task(server.stop(10))
    await asyncio.sleep(0)
    may_end.set()
    assert (await asking).endswith(b"Connection: close\r\n\r\ndone")
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


def test_as_many_connections_may_wait_as_the_system_lets() -> None:
    """Agents that all start at once connect while the loop is busy; a shorter queue would reset some of them."""
    limit = int(Path("/proc/sys/net/core/somaxconn").read_text()) if sys.platform == "linux" else 128
    number = min(limit, 2000)

    async def handle(request: Request) -> Answer:
        return Answer(200, {}, b"")

    async def connect_while_busy() -> int:
        server = Server(handle, idle_seconds=5)
        port = await server.start("127.0.0.1", 0)
        held = []
        for _ in range(number):  # blocks the loop, which accepts none of them
            try:
                held.append(socket.create_connection(("127.0.0.1", port), timeout=1))
            except TimeoutError:
                break
        for connection in held:
            connection.close()
        await server.stop(0)
        return len(held)

    assert asyncio.run(connect_while_busy()) == number
