"""Sample agents by name, attempts to play on them, and a scripted stand-in for the Job Runtime."""

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict, Unpack

from aiohttp import web

from heldout.agents.base import Invocation
from heldout.agents.entry_point import EntryPointAgent

AGENTS = Path(__file__).parent / "agents"
JOB_ARN = "arn:aws:sagemaker:us-west-2:123456789012:job/AgentRFTEvaluation/held-out"

_numbers = itertools.count()


def attempt(
    prompt: str, *, timeout_seconds: float = 30, is_isolated: bool = False, metadata: Mapping[str, str] | None = None
) -> Invocation:
    """An invocation with a trajectory id of its own."""
    trajectory_id = f"job-held-out-rollout-{next(_numbers):06}-attempt-1-0123456789abcdef"
    payload = {
        "prompt": prompt,
        "metadata": {"jobArn": JOB_ARN, "rolloutId": trajectory_id, **(metadata or {})},
        "inferenceParams": {"temperature": 0.5, "topP": 0.9, "maxTokens": 64},
    }
    return Invocation(trajectory_id, json.dumps(payload).encode(), timeout_seconds, is_isolated)


class Options(TypedDict, total=False):
    """What a test may set of an EntryPointAgent besides the usual."""

    forks: bool
    cores: int
    further_after_seconds: float
    cancel_answer_seconds: float


@asynccontextmanager
async def hosted(
    entry_point: str,
    *,
    workers: int | None = 1,
    concurrency: int = 1,
    environment: Mapping[str, str] | None = None,
    folder: Path = AGENTS,
    **options: Unpack[Options],
) -> AsyncIterator[EntryPointAgent]:
    """Starts an entry point below `folder` and stops it at the end."""
    agent = EntryPointAgent(
        entry_point,
        environment=environment or {},
        concurrency=concurrency,
        workers=workers,
        working_directory=folder,
        **options,
    )
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()


async def until(is_so: Callable[[], bool], *, seconds: float = 20) -> None:
    """Polls until `is_so`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


class ScriptedRuntime:
    """Stands in for the Job Runtime: answers chat completions from `replies`, then with the last one, and keeps all requests."""

    def __init__(self) -> None:
        self.url = ""
        self.replies: list[dict[str, object]] = [{"role": "assistant", "content": "the answer is cheese"}]
        self.requests: list[tuple[str, dict[str, str], dict[str, object]]] = []
        """Path, headers, body."""

    def bodies(self, path: str) -> list[dict[str, object]]:
        """The bodies sent to `path`, in order."""
        return [body for at, _, body in self.requests if at == path]

    def headers(self, path: str) -> list[dict[str, str]]:
        """The headers sent to `path`, in order; names in lower case."""
        return [headers for at, headers, _ in self.requests if at == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request."""
        body = json.loads(await request.read())
        self.requests.append((request.path, {name.lower(): value for name, value in request.headers.items()}, body))
        if not request.path.endswith("/chat/completions"):
            return web.json_response({})
        message = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        finish = "tool_calls" if "tool_calls" in message else "stop"
        answer = {"id": "c", "created": 0, "model": "default", "usage": None}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return web.json_response({**answer, "object": "chat.completion", "choices": [choice]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for delta, reason in ((message, None), ({}, finish)):
            chunk = {
                **answer,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def served(handle: Callable[[web.Request], object]) -> AsyncIterator[str]:
    """Serves every request with `handle` on a free port; gives the address."""
    app = web.Application(client_max_size=200 << 20)
    app.router.add_route("*", "/{path:.*}", handle)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def scripted_runtime() -> AsyncIterator[ScriptedRuntime]:
    """A ScriptedRuntime that answers at its `url`."""
    runtime = ScriptedRuntime()
    async with served(runtime.handle) as runtime.url:
        yield runtime
