"""A scripted OpenAI-compatible model server, a policy that reaches it, and a Job Runtime in front of both."""

import asyncio
import importlib
import importlib.util
import io
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from types import ModuleType

import aiohttp
import orjson
from aiohttp import web

from heldout.job.records import Turn
from heldout.policies.base import ModelCall, ModelReply, PolicyUnavailable
from heldout.runtime import CallRules, Credentials, JobRuntime, Limits, Report, Trajectory
from heldout.runtime.dialects.base import Dialect
from heldout.runtime.dialects.table import DIALECTS
from heldout.runtime.rules import DEFAULT_LIMITS

Json = dict[str, object]

JOB_ARN = "arn:aws:sagemaker:us-west-2:123456789012:job/AgentRFTEvaluation/held-out"
REGION = "us-west-2"
KEY_PAIR = Credentials("AKIDHELDOUT", "the-secret-key")
NO_RULES = CallRules(temperature=None, top_p=None, max_tokens=None)


@dataclass
class Answer:
    """What the model server says to one call."""

    message: Json = field(default_factory=lambda: {"role": "assistant", "content": "Hello, who is there?"})
    finish_reason: str = "stop"
    status: int = 200
    error: str = ""
    breaks_after: int | None = None
    """Break the connection after this many chunks of a streamed reply."""
    waits_for: asyncio.Event | None = None
    """Before the answer, or before the last chunk of a streamed one."""


class ModelServer:
    """Answers from `script`, then with the default; remembers what it was sent."""

    def __init__(self) -> None:
        self.requests: list[Json] = []
        self.script: deque[Answer] = deque()
        self.arrived = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        sent = orjson.loads(await request.read())
        self.requests.append(sent)
        answer = self.script.popleft() if self.script else Answer()
        self.arrived.set()
        if answer.status != 200:
            return web.json_response({"error": {"message": answer.error, "type": "scripted"}}, status=answer.status)
        try:
            if sent.get("stream"):
                return await self._stream(request, sent, answer)
            if answer.waits_for is not None:
                await answer.waits_for.wait()
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise
        return web.Response(body=orjson.dumps(whole_reply(sent, answer)), content_type="application/json")

    async def _stream(self, request: web.Request, sent: Json, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = list(streamed_events(sent, answer))
        for number, event in enumerate(events):
            if number == answer.breaks_after:
                assert request.transport is not None
                request.transport.abort()
            if answer.waits_for is not None and number == len(events) - 1:
                await answer.waits_for.wait()
            await response.write(event)
        await response.write_eof()
        return response


def whole_reply(sent: Json, answer: Answer) -> Json:
    """A chat completion, or a completion for a prompt."""
    tokens = str(answer.message.get("content") or "").split()
    n = sent.get("n")
    choices: list[Json] = []
    for index in range(n if isinstance(n, int) else 1):
        choice: Json = {"index": index, "finish_reason": answer.finish_reason, "logprobs": None}
        if "prompt" in sent:
            choice["text"] = answer.message["content"]
            if sent.get("logprobs") is not None:
                choice["logprobs"] = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens)}
        else:
            choice["message"] = answer.message
            if sent.get("logprobs"):
                content: list[Json] = [
                    {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in tokens
                ]
                choice["logprobs"] = {"content": content or None, "refusal": None}
        choices.append(choice)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": sent["model"],
        "choices": choices,
        "usage": usage(tokens),
    }


def usage(tokens: list[str]) -> Json:
    return {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)}


def streamed_events(sent: Json, answer: Answer) -> Iterator[bytes]:
    """The same as chunks: a word each, tool calls in two pieces, usage if asked for."""
    content = str(answer.message.get("content") or "")
    words = [word + " " for word in content.split(" ")[:-1]] + content.split(" ")[-1:] if content else []
    deltas: list[Json] = [{"role": "assistant", "content": "" if words else None}]
    deltas += [{"content": word} for word in words]
    tool_calls = answer.message.get("tool_calls")
    for index, call in enumerate(tool_calls if isinstance(tool_calls, list) else []):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        opening = {"index": index, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [opening]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments[:4]}}]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments[4:]}}]})
    n = sent.get("n")
    for delta in deltas:
        for index in range(n if isinstance(n, int) else 1):
            choice: Json = {"index": index, "delta": delta, "finish_reason": None}
            if sent.get("logprobs") and delta.get("content"):
                token = {"token": delta["content"], "logprob": -0.5, "bytes": None, "top_logprobs": []}
                choice["logprobs"] = {"content": [token], "refusal": None}
            yield event({"choices": [choice]}, sent)
    for index in range(n if isinstance(n, int) else 1):
        yield event({"choices": [{"index": index, "delta": {}, "finish_reason": answer.finish_reason}]}, sent)
    options = sent.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield event({"choices": [], "usage": usage(content.split())}, sent)
    yield b"data: [DONE]\n\n"


def event(chunk: Json, sent: Json) -> bytes:
    head: Json = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": sent["model"]}
    return b"data: " + orjson.dumps(head | chunk) + b"\n\n"


class HttpPolicy:
    """The shortest policy there can be: one endpoint, no retries."""

    model_name = "served-model"

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, call: ModelCall) -> ModelReply:
        assert self._session is not None
        headers = {"Content-Type": "application/json"}
        try:
            # aiohttp warns of long bodies that are not files.
            data = call.body if len(call.body) < 2**20 else io.BytesIO(call.body)
            response = await self._session.post(self._base_url + call.path, data=data, headers=headers)
            if call.is_streamed and response.status == 200:
                return ModelReply(200, response.content_type, b"", self._chunks(response))
            async with response:
                return ModelReply(response.status, response.content_type, await response.read())
        except aiohttp.ClientError as error:
            raise PolicyUnavailable(f"no answer from {self._base_url}: {type(error).__name__}") from error

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async with response:
            try:
                async for chunk in response.content.iter_any():
                    yield chunk
            except aiohttp.ClientError as error:
                raise PolicyUnavailable("the stream broke off") from error


@dataclass
class Bench:
    """A Job Runtime with its model server, and what was reported to it."""

    runtime: JobRuntime
    model: ModelServer
    reports: list[tuple[str, Report]] = field(default_factory=list)
    _opened: int = 0

    def open(
        self, name: str = "", *, seed: int | None = None, on_report: Callable[[Report], None] | None = None
    ) -> Trajectory:
        self._opened += 1
        name = name or f"p0-r{self._opened}-a1"

        async def take(report: Report) -> None:
            if on_report is not None:
                on_report(report)
            self.reports.append((name, report))

        return self.runtime.open(name, seed=seed, on_report=take)

    def headers(self, trajectory: Trajectory) -> dict[str, str]:
        """Those by which the holder of the job's secret reaches a trajectory."""
        return {
            "Authorization": f"Bearer {self.runtime.secret}",
            "X-Amzn-SageMaker-Job-Arn": JOB_ARN,
            "X-Amzn-SageMaker-Trajectory-Id": trajectory.id,
        }


@asynccontextmanager
async def running_bench(
    rules: CallRules = NO_RULES,
    *,
    policy_url: str | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Bench]:
    """Starts a model server and a Job Runtime on free ports, and ends both."""
    model = ModelServer()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", model.handle)
    app.router.add_post("/v1/completions", model.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    policy = HttpPolicy(policy_url or f"http://127.0.0.1:{port}/v1")
    await policy.start()
    runtime = JobRuntime(
        job_arn=JOB_ARN,
        region=REGION,
        policy=policy,
        rules=rules,
        credentials=[KEY_PAIR],
        dialects=dialects,
        limits=limits,
    )
    await runtime.start()
    try:
        yield Bench(runtime, model)
    finally:
        await runtime.stop()
        await policy.stop()
        await runner.cleanup()


def published(name: str) -> ModuleType:
    """A module of the published packages `sagemaker-core` and `sagemaker-train`, as it is.

    Imported past the initialisation of the packages above it, which brings in the whole SDK and takes seconds.
    """
    above = [package for package in ("sagemaker", "sagemaker.core") if package not in sys.modules]
    for package in above:
        spec = PathFinder.find_spec(package, _package_path(package))
        assert spec is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(name)
    finally:
        for package in above:
            del sys.modules[package]


def _package_path(package: str) -> list[str] | None:
    """Where to look for a package: in the one above it."""
    parent = package.rpartition(".")[0]
    return list(sys.modules[parent].__path__) if parent else None


async def turns_of(trajectory: Trajectory, count: int) -> list[Turn]:
    """The trajectory's turns once there are this many; an agent that hangs up does not wait for its turn's record."""
    async with asyncio.timeout(5):
        while len(trajectory.turns) < count:
            await asyncio.sleep(0.005)
    return trajectory.turns
