"""The load on a service that stands between agents and their model: trajectories of a fixed conversation over kept-alive
connections. Written on bare sockets so that it costs little beside what it measures; prints its figures as JSON.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, cast

import orjson
import uvloop

from benchmarks.workload import MODEL, REPLY, observation, opening, prompt, turns

_REPLY_TEXT = orjson.dumps(REPLY)


def bodies(number: int) -> list[bytes]:
    """The bodies of a trajectory's model calls; they are known beforehand because the model always says the same."""
    messages: list[Any] = [message._asdict() for message in opening(prompt(number))]
    found = []
    for turn in range(turns()):
        found.append(orjson.dumps({"model": MODEL, "messages": messages}))
        messages += [{"role": "assistant", "content": REPLY}, observation(turn)._asdict()]
    return found


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection, one request at a time."""

    def __init__(self, host: str) -> None:
        self._host = host.encode()
        self._buffer = b""
        self._missing = 0
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, problem: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(problem or ConnectionResetError("the service closed the connection"))

    async def post(self, path: str, body: bytes) -> bytes:
        """The answer's body. Raises RuntimeError if the status is not 200."""
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head % (path.encode(), self._host, len(body)) + body)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < self._missing:
            return
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        length_at = head.index(b"content-length:") + 15
        length = int(head[length_at:].split(b"\r\n", 1)[0])
        self._missing = head_end + 4 + length
        if len(self._buffer) < self._missing:
            return
        answer, self._buffer, self._missing = self._buffer[head_end + 4 :], b"", 0
        assert self._answer is not None
        if head[9:12] == b"200":
            self._answer.set_result(answer)
        else:
            self._answer.set_exception(RuntimeError(f"{head.decode()}: {answer.decode()}"))


class Load:
    """Plays trajectories on every connection until all are played."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._port: int = options.port
        self._kind: str = options.kind
        self._control: int = options.control
        self._pending = iter(range(options.trajectories))
        self._bodies = bodies(0)
        self._pause = options.connections / options.calls_per_second if options.calls_per_second else 0.0
        self.latencies: list[float] = []
        self.cpu_seconds = 0.0

    async def play(self, connections: int) -> float:
        """Returns the seconds from the first call to the last."""
        slots = [await self._connected() for _ in range(connections)]
        started, cpu_before = time.perf_counter(), time.process_time()
        await asyncio.gather(*(self._slot(number, connections, *slot) for number, slot in enumerate(slots)))
        self.cpu_seconds = time.process_time() - cpu_before
        return time.perf_counter() - started

    async def _connected(self) -> tuple[Connection, asyncio.StreamReader | None, asyncio.StreamWriter | None]:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection("127.0.0.1"), "127.0.0.1", self._port)
        if not self._control:
            return connection, None, None
        reader, writer = await asyncio.open_connection("127.0.0.1", self._control)
        return connection, reader, writer

    async def _slot(
        self,
        number: int,
        connections: int,
        connection: Connection,
        reader: asyncio.StreamReader | None,
        writer: asyncio.StreamWriter | None,
    ) -> None:
        due = time.perf_counter() + self._pause * number / connections
        for _ in self._pending:
            if reader is not None and writer is not None:
                writer.write(b"\n")
                base = (await reader.readline()).decode().strip()
            elif self._kind == "gateway":
                session = orjson.loads(await connection.post("/sessions", b"{}"))
                base = f"/sessions/{session['session_id']}/v1"
            else:
                base = "/v1"
            for body in self._bodies:
                if self._pause:
                    due = max(due + self._pause, time.perf_counter() - self._pause)
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await self._call(connection, f"{base}/chat/completions", body)
            if self._kind == "heldout":
                await connection.post(f"{base}/complete-rollout", b'{"Status":"ready"}')
                await connection.post(f"{base}/update-reward", b'{"Rewards":[1.0]}')

    async def _call(self, connection: Connection, path: str, body: bytes) -> None:
        started = time.perf_counter()
        answer = await connection.post(path, body)
        self.latencies.append(time.perf_counter() - started)
        if _REPLY_TEXT not in answer:
            raise RuntimeError(f"not the model's reply: {answer.decode()}")


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """The latency that `share` of the calls stay under, milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000


def main() -> None:
    """Plays the load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["heldout", "gateway", "relay", "direct"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=int, default=0)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--trajectories", type=int, required=True)
    parser.add_argument("--calls-per-second", type=float, default=0.0, help="over all connections; 0 is no limit")
    options = parser.parse_args()
    load = Load(options)
    seconds = uvloop.run(load.play(options.connections))
    figures = {
        "calls": len(load.latencies),
        "seconds": seconds,
        "p50_ms": quantile_ms(load.latencies, 0.5),
        "p99_ms": quantile_ms(load.latencies, 0.99),
        "load_cpu_seconds": load.cpu_seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
