"""Agents that misbehave in the way that the prompt's first word names."""

import asyncio
import ctypes
import functools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

print("a print at import belongs to no attempt")

_everyone = threading.Barrier(200)
_pair = asyncio.Barrier(2)


async def play(payload: dict[str, Any]) -> object:
    """An async agent."""
    word, _, rest = payload["prompt"].partition(" ")
    print(f"playing {word}")
    match word:
        case "sleep":
            await _sleep(Path(rest))
        case "to-threads":
            await asyncio.to_thread(_everyone.wait, 30)
        case "close-output":
            os.close(1)
            os.close(2)
        case "hold":
            await _hold(Path(rest))
        case "swallow":
            await _swallow()
        case "block":
            time.sleep(3600)
        case "meet-and-block":
            await _pair.wait()
            time.sleep(3600)
        case "meet-and-exit":
            await _pair.wait()
            os._exit(5)
        case "meet":
            await _pair.wait()
            await asyncio.sleep(float(rest))
        case "chat":
            return await _chat(rest)
        case _:
            return _common(word, rest)
    return {"reward": 1.0, "pid": os.getpid()}


def play_sync(payload: dict[str, Any]) -> object:
    """A sync agent."""
    word, _, rest = payload["prompt"].partition(" ")
    print(f"playing {word}")
    if word == "all-together":
        _everyone.wait(30)
    return _common(word, rest)


def with_context(payload: dict[str, Any], context: Any) -> object:
    """An agent that takes AgentCore's context."""
    return {"prompt": payload["prompt"], "session": context.session_id, "headers": context.request_headers}


def stream(payload: dict[str, Any]) -> Iterator[object]:
    """A generator; the last value is the answer."""
    print("streaming")
    yield {"reward": 0.0}
    if payload["prompt"] == "raise":
        raise ValueError("half way")
    yield {"reward": 1.0}


async def stream_async(payload: dict[str, Any]) -> AsyncIterator[object]:
    """An async generator."""
    for value in stream(payload):
        await asyncio.sleep(0)
        yield value


class Player:
    """An agent with state."""

    async def __call__(self, payload: dict[str, Any]) -> object:
        return {"reward": 1.0, "prompt": payload["prompt"]}


player = Player()
partial = functools.partial(Player.__call__, player)
not_callable = 3


def _common(word: str, rest: str) -> object:
    match word:
        case "hang":
            time.sleep(3600)
        case "raise":
            raise ValueError(rest)
        case "exit":
            os._exit(3)
        case "sys-exit":
            sys.exit("enough")
        case "segfault":
            ctypes.string_at(0)
        case "nan":
            return {"reward": float("nan"), "metrics": {"high": float("inf")}}
        case "decimal":
            return {"reward": Decimal("0.5")}
        case "object":
            return {"reward": threading.Event()}
        case "environment":
            return {"value": os.environ.get(rest), "folder": str(Path.cwd()), "argv": sys.argv[0]}
        case "child":
            child = subprocess.Popen(["sleep", "3600"])
            return {"pid": os.getpid(), "child": child.pid}
    return {"reward": 1.0, "pid": os.getpid()}


async def _sleep(marker: Path) -> None:
    marker.with_suffix(".begun").touch()
    try:
        await asyncio.sleep(3600)
    finally:
        marker.touch()


async def _hold(folder: Path) -> None:
    (folder / f"{id(asyncio.current_task())}-{os.getpid()}.playing").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.01)


async def _swallow() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("not me")


async def _chat(text: str) -> object:
    """Says `text` in every way there is, a bit at a time, so that attempts interleave."""
    for number in range(3):
        print(text, number)
        await asyncio.sleep(0.001)
    print(text, "on stderr", file=sys.stderr)
    logging.getLogger("agent").warning("%s logged", text)
    await asyncio.to_thread(print, text, "in a thread")
    sys.stdout.buffer.write(f"{text} in bytes\n".encode())
    return {"reward": 1.0}
