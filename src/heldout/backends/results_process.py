"""The results process: tables, statistics, reports and MLflow run in one process of their own.

They take time to load, and memory that grows with the run. In their own process they delay no model call and do not grow the
engine; if the system kills that process for its memory, the engine lives on and says so.

The process starts with the first call, serves the later ones too, and ends with the process that started it, also when that one
is killed. A call runs in the working folder, the environment and the module path that its caller has at that moment.

It is a `multiprocessing.Process` and a pipe. A `ProcessPoolExecutor` would be shorter, but at exit Python waits for its running
call, so that Ctrl-C took as long as the report being written. A daemon process ends at once.
"""

import asyncio
import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from heldout.errors import HeldoutError, JobFailed

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def in_results_process(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """Call `function` in the results process and return its result. Calls run one at a time, in the order they are made.

    function, arguments and result must pickle.
    Raises whatever `function` raises, JobFailed when the process is killed during the call.
    """
    return await asyncio.to_thread(lambda: _call(function, *arguments, **options))


def warm_up(function: Callable[_Arguments, object], *arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
    """Call `function` in the results process in the background, to load its imports. Errors surface on the next call."""

    def call() -> None:
        with contextlib.suppress(HeldoutError):
            _call(function, *arguments, **options)

    threading.Thread(target=call, daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[object, ...]
    options: Mapping[str, object]
    environment: Mapping[str, str]
    folder: str
    path: list[str]
    """The module search path."""


@dataclass(frozen=True, slots=True)
class _Reply:
    result: Any = None
    error: Exception | None = None
    traceback: str = ""
    """Of the error, in the results process."""


class _ResultsProcess:
    """The parent's side of the process. Starts it again after it was killed."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: SpawnProcess | None = None
        self._pipe: connection.Connection | None = None

    def call(self, call: _Call) -> _Reply:
        with self._turn:
            try:
                if self._pipe is None:
                    self._pipe = self._start()
                self._pipe.send(call)
                reply = self._pipe.recv()
            except (OSError, EOFError) as error:
                raise JobFailed(
                    f"the process that writes the results ended with status {self._end()}; what was played is kept: resume to"
                    " write them"
                ) from error
        assert isinstance(reply, _Reply)
        return reply

    def _start(self) -> connection.Connection:
        # Not a fork: it would copy the engine's memory, and its locks in whatever state its threads left them.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return ours

    def _end(self) -> int | None:
        """Forget the process once it has ended. Returns its exit status."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return None
        process.join()
        return process.exitcode


_process = _ResultsProcess()


def _call(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    call = _Call(function, arguments, options, dict(os.environ), str(Path.cwd()), sys.path)
    reply = _process.call(call)
    if reply.error is None:
        result: _Result = reply.result
        return result
    if not isinstance(reply.error, HeldoutError):
        reply.error.add_note(reply.traceback)
    raise reply.error


def _serve(calls: connection.Connection) -> None:
    """Runs the parent's calls, in the new process, until the parent ends."""
    if sys.platform != "win32":
        os.setsid()  # the parent handles Ctrl-C
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        calls.send(_reply_to(calls.recv()))


def _reply_to(call: _Call) -> _Reply:
    try:
        os.environ.clear()
        os.environ.update(call.environment)
        os.chdir(call.folder)
        sys.path[:] = call.path
        return _Reply(result=call.function(*call.arguments, **call.options))
    except Exception as error:  # noqa: BLE001  # the boundary: the parent raises it
        return _Reply(error=error, traceback=traceback.format_exc())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    # At once, even in the middle of a call: each file appears whole or not at all, so a half-done call leaves nothing.
    os._exit(0)
