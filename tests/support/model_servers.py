"""Model servers for tests: scripted ones in processes of their own, and broken ones."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path


@contextmanager
def model_server(
    folder: Path, reply: str = "ok", name: str = "scripted", *, error: str = "", port: int = 0
) -> Iterator[str]:
    """A server whose model says `reply`, or answers 500 with `error`; gives the model as a user names it, `http://...#name`."""
    rules = folder / f"{name}-rules.json"
    answer = {"content": error, "status": 500} if error else {"content": reply}
    rules.write_text(json.dumps([{"reply": answer}]))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "heldout.policies.scripted",
            "--models",
            name,
            "--rules",
            str(rules),
            "--port",
            str(port),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1#{name}"
    finally:
        process.terminate()
        process.communicate()


@asynccontextmanager
async def hanging_server() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The base URL of a server that takes connections and never answers, and an event that is set with the first."""
    is_reached, is_over = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_reached.set()
        await is_over.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", is_reached
        is_over.set()


@asynccontextmanager
async def refusing_server() -> AsyncIterator[str]:
    """The base URL of a server that answers every request with 503, as one does that loads its model."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 13\r\n\r\nLoading model"
        )
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
