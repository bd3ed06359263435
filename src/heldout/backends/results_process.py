"""Work on results, in a process beside this one.

Tables, statistics, reports and MLflow take time to load and memory that depends on what was played. Here they cost neither the
engine's first model call nor its memory, and if the system kills them for theirs, the engine is there to say so.

    python -m heldout.backends.results_process

It is started when the first work is given, kept for the next, and ends with its parent.

A piece of work is a function of a module and its arguments, pickled; it is done in the environment and folder of who asks.
"""

import asyncio
import atexit
import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from heldout.errors import HeldoutError, JobFailed

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def apart(
    work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """What `work` returns, done by the process beside this one; one piece at a time, in the order they are asked.

    Raises the HeldoutError that it raised, JobFailed when the process was killed meanwhile.
    """
    return await asyncio.to_thread(lambda: _beside.do(work, *arguments, **options))


def prepare(work: Callable[_Arguments, object], *arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
    """Has `work` done without waiting for it: what it imports is there when it is needed. What goes wrong shows then."""

    def quietly() -> None:
        with contextlib.suppress(HeldoutError, RuntimeError):
            _beside.do(work, *arguments, **options)

    threading.Thread(target=quietly, daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Request:
    work: bytes
    """The function, its arguments and its options, pickled on their own: what is wrong with them is this request's error."""
    environment: Mapping[str, str]
    folder: str
    path: list[str]
    """Where modules are looked for."""


@dataclass(frozen=True, slots=True)
class _Reply:
    result: object = None
    error: HeldoutError | None = None
    bug: str | None = None
    """The traceback of anything but a HeldoutError."""


class _Beside:
    """The process, as its parent sees it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def do(self, work: Callable[..., _Result], *arguments: object, **options: object) -> _Result:
        pickled = pickle.dumps((work, arguments, options))
        request = pickle.dumps(_Request(pickled, dict(os.environ), str(Path.cwd()), sys.path))
        with self._turn:
            reply = self._ask(request)
        if reply.error is not None:
            raise reply.error
        if reply.bug is not None:
            raise RuntimeError(f"{work.__name__} failed:\n{reply.bug}")
        return reply.result  # type: ignore[return-value]

    def _ask(self, request: bytes) -> _Reply:
        if self._process is not None and self._process.poll() is not None:
            self.end()
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:  # the last: it ended in the middle of its reply
            status = self.end()
            raise JobFailed(
                f"the process that writes the results ended with status {status}; what was played is kept: resume to write them"
            ) from error
        assert isinstance(reply, _Reply)
        return reply

    def end(self) -> int:
        """Ends it if it has not ended; returns its exit status, 0 if there is none."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "heldout.backends.results_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal is its parent's to handle
    )


_beside = _Beside()
atexit.register(_beside.end)


def main() -> None:
    """Does the work that comes on standard input until that ends, which it does with the parent."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get between the replies
    requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        pickle.dump(_answer(requests.get()), replies)
        replies.flush()


def _listen(stream: IO[bytes], requests: "queue.SimpleQueue[_Request]") -> None:
    while True:
        try:
            requests.put(pickle.load(stream))
        except EOFError:
            # At once, also from the middle of work: nobody wants it, and every file appears whole or not at all.
            os._exit(0)


def _answer(request: _Request) -> _Reply:
    os.environ.clear()
    os.environ.update(request.environment)
    sys.path[:] = request.path
    try:
        os.chdir(request.folder)
        work, arguments, options = pickle.loads(request.work)
        return _Reply(result=work(*arguments, **options))
    except HeldoutError as error:
        return _Reply(error=error)
    except Exception:  # noqa: BLE001  # the boundary: the parent raises it
        return _Reply(bug=traceback.format_exc())


if __name__ == "__main__":
    # Under its own name, so that the classes of requests and replies are the same on both sides.
    from heldout.backends.results_process import main as serve

    serve()
