"""Plays attempts with a Python function: sync or async, plain or generator, taking (payload) or (payload, context)."""

import asyncio
import contextvars
import functools
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

from heldout.agents.worker.harness_failures import harness_failure
from heldout.agents.worker.loading import LoadedAgent, LoadProblem, describe, print_error
from heldout.agents.worker.reply import Reply
from heldout.http.exchange import Request

MAX_THREADS = 4096
"""The most threads of an agent. A thread is created only when all others are busy, so a high limit costs nothing, and no attempt
waits for a thread of another, as it would with asyncio's default of a few per core."""
_CUSTOM_HEADERS = "x-amzn-bedrock-agentcore-runtime-custom-"


@dataclass(frozen=True, slots=True)
class AgentContext:
    """The second argument of an agent that takes `(payload, context)`, with the names of bedrock-agentcore's RequestContext."""

    session_id: str
    request_headers: dict[str, str] | None = None
    request: None = None


class FunctionHost:
    """Answers `POST /invocations` by calling the user's function."""

    def __init__(self, agent: LoadedAgent) -> None:
        assert callable(agent.target)  # `load` has checked it for the user
        self._entry_point = agent.entry_point
        self._function: Callable[..., object] = agent.target
        self._folder = agent.folder
        self._is_async = _is_async(agent.target)
        self._takes_context = _takes_context(agent.target)
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="attempt")
        self._apps = [value for value in vars(agent.module).values() if hasattr(type(value), "get_current_ping_status")]

    async def start(self) -> None:
        """Checks the function's parameters. Raises LoadProblem unless it takes a payload and nothing else but a context."""
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):
            return  # usually written in C: the call itself will show
        try:
            signature.bind(*[None] * (2 if self._takes_context else 1))
        except TypeError as error:
            name = self._entry_point.name
            raise LoadProblem(
                f"agent {self._entry_point.text!r} cannot be called with a payload: it is {name}{signature} ({error}); define it "
                f"as {name}(payload) or {name}(payload, context)"
            ) from error

    async def stop(self) -> None:
        """Releases idle threads; a stuck thread ends with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def is_busy(self) -> bool:
        """Whether a BedrockAgentCoreApp in the agent's module reports a running task."""
        return any(str(getattr(app.get_current_ping_status(), "value", "")) == "HealthyBusy" for app in self._apps)

    async def play(
        self, session: str, request: Request, body: bytes, reply: Reply, running: list[Future[object]]
    ) -> None:
        """Plays one attempt and answers. Adds the attempt's threads to `running`: cancelling cannot end a thread."""
        try:
            payload = json.loads(body)
            result = await self._call(session, payload, request, running)
            if inspect.isasyncgen(result):
                await _stream(result, reply)
            elif inspect.isgenerator(result):
                await _stream(self._in_threads(result, running), reply)
            else:
                reply.whole(200, "application/json", _encode(result))
        except BaseException as error:  # the user's code may raise anything; it is the answer
            if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                raise  # ours: the attempt was cancelled
            print_error(error, self._folder)
            await self._answer_error(error, reply)

    async def _call(self, session: str, payload: object, request: Request, running: list[Future[object]]) -> object:
        arguments: tuple[object, ...] = (payload,)
        if self._takes_context:
            arguments = (payload, AgentContext(session, _custom_headers(request)))
        if self._is_async:
            result = self._function(*arguments)
        else:
            result = await self._in_thread(running, self._function, *arguments)
        return await result if inspect.isawaitable(result) else result

    async def _in_thread(
        self, running: list[Future[object]], call: Callable[..., object], *arguments: object
    ) -> object:
        future = self._threads.submit(contextvars.copy_context().run, _StopSafe(call), *arguments)
        running.append(future)
        return await asyncio.wrap_future(future)

    async def _in_threads(self, results: Iterator[object], running: list[Future[object]]) -> AsyncIterator[object]:
        end = object()
        while (value := await self._in_thread(running, next, results, end)) is not end:
            yield value

    async def _answer_error(self, error: BaseException, reply: Reply) -> None:
        body = error_body(*describe(error, self._folder), harness_failure=harness_failure(error))
        if reply.is_started:
            await reply.send(b"data: " + body + b"\n\n")
        else:
            reply.whole(500, "application/json", body)


def error_body(kind: str, text: str, *, harness_failure: str | None = None) -> bytes:
    """The JSON of an error answer, as `heldout.agents.agentcore_contract` reads it."""
    harness = {} if harness_failure is None else {"harness_failure": harness_failure}
    return json.dumps({"error": text, "error_type": kind, **harness}).encode()


class _StopSafe:
    """Turns a call's StopIteration into a RuntimeError: a future cannot hold a StopIteration, and would never end.

    A process that the agent forked ends with the call, as with a script; it would otherwise wait for calls like its parent.
    """

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        pid = os.getpid()
        try:
            return self._call(*arguments)
        except StopIteration as error:
            raise RuntimeError("the agent raised StopIteration") from error
        finally:
            if os.getpid() != pid:
                _end_process(sys.exc_info()[1])


def _end_process(error: BaseException | None) -> NoReturn:
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    os._exit(code if isinstance(code, int) else int(code is not None))


async def _stream(values: AsyncIterator[object], reply: Reply) -> None:
    """Server-sent events, one a value; the last is the answer."""
    async for value in values:
        event = b"data: " + _encode(value) + b"\n\n"
        if not reply.is_started:
            await reply.start(200, {"Content-Type": "text/event-stream"})
        await reply.send(event)
    if not reply.is_started:
        reply.whole(200, "text/event-stream", b"")


def _encode(value: object) -> bytes:
    """JSON that keeps NaN and Infinity, so that the engine can refuse them by name; numpy's and Decimal's numbers are numbers."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
    except TypeError as error:
        raise error.with_traceback(None) from None  # lines inside json do not help


def _plain(value: object) -> object:
    """Returns the JSON form of a value that JSON lacks: numbers and arrays of numpy, torch and their like, Decimal, dates.

    Raises TypeError for any other.
    """
    if callable(listed := getattr(value, "tolist", None)):
        return listed()
    if hasattr(value, "__float__"):
        return float(value)
    if callable(dated := getattr(value, "isoformat", None)):
        return dated()
    raise TypeError(f"the agent returned a value of type {type(value).__name__}, which is not JSON")


def _unwrapped(target: object) -> object:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _is_async(target: object) -> bool:
    """Whether a call returns an awaitable or an async generator at once, and so needs no thread."""
    target = _unwrapped(target)
    return any(
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        for function in (target, getattr(target, "__call__", None))  # noqa: B004  # not a test: we want the method
    )


def _takes_context(target: Callable[..., object]) -> bool:
    """The rule of bedrock-agentcore 1.x: a second parameter named `context`."""
    try:
        parameters = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return False
    return parameters[1:2] == ["context"]


def _custom_headers(request: Request) -> dict[str, str] | None:
    """The headers that AgentCore forwards to agents: those of its custom prefix."""
    headers = {name: value for name, value in request.headers.items() if name.startswith(_CUSTOM_HEADERS)}
    return headers or None
