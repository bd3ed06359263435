"""A scripted model server for tests and benchmarks: OpenAI-compatible, with fixed replies.

In a test: `async with ScriptedServer(script) as server: ... server.url ...`. As a process of its own:
`python -m heldout.policies.scripted`, which prints its port on one line once it accepts connections.

It implements the part of HTTP/1.1 that common clients use (keep-alive, Content-Length requests) directly on an asyncio
protocol, so that it costs a benchmark little.
"""

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast

import orjson

from heldout.errors import InputError
from heldout.policies.scripted_replies import Reply, Script, ScriptedCall, Wire, by_rules, read_rules, render

_BYTES_PER_PROMPT_TOKEN = 4


class _Answer(NamedTuple):
    reply: Reply
    wire: Wire
    delay_seconds: float = 0.0


class ScriptedServer:
    """Serves a script on 127.0.0.1 from the running event loop.

    models: the list of /v1/models; None answers 404, as servers without that route do. key: requests without it get 401.
    latency_seconds: the wait before every reply to a completion. `calls` holds the latest `kept_calls` requests, oldest first.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        models: Sequence[str] | None = ("scripted",),
        key: str | None = None,
        latency_seconds: float = 0.0,
        port: int = 0,
        kept_calls: int = 10_000,
    ) -> None:
        self.script: Script = script or (lambda _: Reply())
        self.models = models
        self.key = key
        self.latency_seconds = latency_seconds
        self.port = port
        self.calls: deque[ScriptedCall] = deque(maxlen=kept_calls)
        self.num_calls = 0
        self.num_connections = 0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def url(self) -> str:
        """The base URL, up to `/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def num_open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def start(self) -> None:
        """Listens on `port`; 0 takes a free one and sets `port` to it. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and drops every connection. `start` then listens on the same port again."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.drop()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def opened(self, connection: "_Connection") -> None:
        self.num_connections += 1
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> "_Answer":
        """Returns the reply to one request, and its bytes."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return _problem(HTTPStatus.UNAUTHORIZED, "wrong or missing API key")
        if method == "GET":
            return self._answer_get(path)
        if method != "POST" or not path.endswith("/completions"):
            return _problem(HTTPStatus.NOT_FOUND, f"no {method} {path} here")
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError as problem:
            return _problem(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {problem}")
        if not isinstance(given, dict):
            return _problem(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
        call = ScriptedCall(self.num_calls, path, headers, given)
        self.num_calls += 1
        self.calls.append(call)
        reply = self.script(call)
        wire = render(reply, call, len(body) // _BYTES_PER_PROMPT_TOKEN)
        return _Answer(reply, wire, self.latency_seconds + reply.seconds)

    def _answer_get(self, path: str) -> "_Answer":
        if path.endswith("/models") and self.models is not None:
            listed = [{"id": model, "object": "model", "created": 0, "owned_by": "heldout"} for model in self.models]
            return _Answer(Reply(), Wire("application/json", (orjson.dumps({"object": "list", "data": listed}),)))
        if path == "/health":
            return _Answer(Reply(), Wire("application/json", (b'{"status":"ok"}',)))
        return _problem(HTTPStatus.NOT_FOUND, f"no GET {path} here")


class _Connection(asyncio.Protocol):
    """One client's connection: one request at a time, as HTTP clients without pipelining send them."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.opened(self)

    def connection_lost(self, problem: Exception | None) -> None:  # noqa: ARG002
        self._server.closed(self)
        self._transport = None
        if self._sending is not None:
            self._sending.cancel()

    def drop(self) -> None:
        """Closes the connection at once, also during a reply."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        request_line, *header_lines = self._buffer[:head_end].decode("latin-1").split("\r\n")
        headers = {}
        for line in header_lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body_end = head_end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < body_end:
            return
        body, self._buffer = self._buffer[head_end + 4 : body_end], self._buffer[body_end:]
        method, path, _ = request_line.split(" ", 2)
        self._send(self._server.answer(method, path, headers, body))

    def _send(self, answer: _Answer) -> None:
        reply, wire, delay_seconds = answer
        if delay_seconds or reply.seconds_per_token or reply.dropped_after is not None:
            self._sending = asyncio.get_running_loop().create_task(self._send_slowly(answer))
        else:
            self._write(_head(reply, wire) + _framed(wire, wire.chunks, is_last=True))

    async def _send_slowly(self, answer: _Answer) -> None:
        reply, wire, delay_seconds = answer
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        pieces = [_head(reply, wire)]
        pieces += [_framed(wire, (chunk,), is_last=chunk is wire.chunks[-1]) for chunk in wire.chunks]
        if not reply.seconds_per_token:
            pieces = [b"".join(pieces)]
        left = sys.maxsize if reply.dropped_after is None else reply.dropped_after
        for piece in pieces:
            self._write(piece[:left])
            left = max(0, left - len(piece))
            if not left:
                break
            await asyncio.sleep(reply.seconds_per_token)
        if reply.dropped_after is not None and self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


_PLAIN_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def _head(reply: Reply, wire: Wire) -> bytes:
    """Renders status line and headers."""
    if reply.status == 200 and not reply.headers and not _is_streamed(wire):
        return _PLAIN_HEAD % len(wire.chunks[0])
    size = "Transfer-Encoding: chunked" if _is_streamed(wire) else f"Content-Length: {len(wire.chunks[0])}"
    phrase = responses.get(reply.status, "Scripted")
    lines = [f"HTTP/1.1 {reply.status} {phrase}", f"Content-Type: {wire.content_type}", size]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _framed(wire: Wire, chunks: Sequence[bytes], *, is_last: bool) -> bytes:
    """Returns body bytes as they are, or as HTTP chunks (RFC 9112, section 7.1) for a streamed reply."""
    if not _is_streamed(wire):
        return b"".join(chunks)
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed + b"0\r\n\r\n" if is_last else framed


def _is_streamed(wire: Wire) -> bool:
    return wire.content_type == "text/event-stream"


def _problem(status: HTTPStatus, message: str) -> _Answer:
    body = orjson.dumps({"error": {"message": message, "type": "scripted", "code": int(status)}})
    return _Answer(Reply(status=status), Wire("application/json", (body,)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server until it is interrupted, after printing its port on one line. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        script = by_rules(read_rules(options.rules) if options.rules else [])
    except InputError as problem:
        print(problem, file=sys.stderr)
        return 2
    server = ScriptedServer(
        script, models=options.models, latency_seconds=options.latency_ms / 1000, port=options.port, kept_calls=0
    )
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(server))
    return 0


async def _serve(server: ScriptedServer) -> None:
    async with server:
        print(server.port, flush=True)
        await asyncio.get_running_loop().create_future()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # not there on Windows

    return uvloop.new_event_loop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m heldout.policies.scripted", description="A scripted model server.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--models", nargs="*", default=["scripted"], help="names listed at /v1/models")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before each reply, milliseconds")
    parser.add_argument("--rules", type=Path, help="JSON file with the replies (see read_rules)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
