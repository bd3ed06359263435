"""A worker process: loads the agent and serves it until the engine stops it or is gone.

Imports nothing heavy: a worker is ready when the user's own imports are done.
"""

import asyncio
import atexit
import contextlib
import gc
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

from heldout.agents.entry_point_lookup import EntryPoint, parse_entry_point
from heldout.agents.processes import die_with_parent
from heldout.agents.worker.applications import ApplicationHost
from heldout.agents.worker.functions import MAX_THREADS, FunctionHost
from heldout.agents.worker.loaded_code import loaded_code
from heldout.agents.worker.loading import LoadedAgent, LoadProblem, load, set_path
from heldout.agents.worker.output import route_output
from heldout.agents.worker.service import Service
from heldout.agents.worker_protocol import write_message
from heldout.http.server import Server

_NESTING = {"nest_asyncio", "nest_asyncio2"}
"""Libraries that run an event loop inside a running one; they can patch Python's own loop only."""
_IDLE_SECONDS = 86400.0
"""The engine keeps its connections for a minute and closes them itself."""


class Work(NamedTuple):
    """The engine's request for one worker."""

    key: str
    environment: Mapping[str, str | None]
    """Changes to the environment of the launcher; None removes a variable."""
    lifeline_fd: int
    """A pipe that closes when the engine ends."""
    output_fd: int
    """Takes the place of descriptors 1 and 2."""
    frames_fd: int


def run_worker(entry_point: EntryPoint, folder: Path, work: Work) -> NoReturn:
    """Loads the agent, with sys.path and the output streams in place, and serves it; then ends the process."""
    die_with_parent(os.getppid())
    os.setsid()
    _set_environment(work.environment)
    for fd in (1, 2):
        os.dup2(work.output_fd, fd)
    os.close(work.output_fd)
    threading.Thread(target=_watch, args=(work.lifeline_fd,), name="engine-watch", daemon=True).start()
    gc.disable()  # imports create much and drop little: searching for garbage takes a tenth of their time
    try:
        agent = load(entry_point, folder)
    except LoadProblem as problem:
        write_message(work.frames_fd, {"problem": str(problem)})
        _exit(1)
    gc.enable()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(agent, work.key, work.frames_fd))
    _exit(0)


def run_in_new_interpreter(entry_point: EntryPoint, work: Work) -> NoReturn:
    """Replaces this process by a new interpreter that runs the worker."""
    work_fd, write_fd = os.pipe()  # not an argument: other users may read those, and `work` holds secrets
    os.write(write_fd, json.dumps(work).encode())
    os.close(write_fd)
    for fd in (work_fd, work.lifeline_fd, work.output_fd, work.frames_fd):
        os.set_inheritable(fd, True)
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "heldout.agents.worker.process"]
    os.execv(sys.executable, [*command, entry_point.text, str(work_fd)])


def generators() -> list[random.Random]:
    """All seeded generators of random numbers but that of the module `random`, which Python seeds anew in each fork."""
    kinds = _kinds(random.Random) - _kinds(random.SystemRandom)
    return [thing for thing in gc.get_referrers(*kinds) if type(thing) in kinds and thing is not random._inst]


def seed_anew(found: Iterable[random.Random]) -> None:
    """Gives a fork random numbers of its own: other forks hold copies of the same generators."""
    for generator in found:
        generator.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


async def _serve(agent: LoadedAgent, key: str, frames_fd: int) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS))
    host = ApplicationHost(agent.target) if agent.is_application else FunctionHost(agent)
    try:
        await host.start()
    except LoadProblem as problem:
        write_message(frames_fd, {"problem": str(problem)})
        return
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = Server(Service(host, key).handle, idle_seconds=_IDLE_SECONDS)
    hashes: dict[str, str] = {}
    write_message(frames_fd, {"port": await server.start("127.0.0.1", 0), "loaded": loaded_code(hashes)})
    await stopped.wait()
    server.close_listener()
    write_message(frames_fd, {"loaded": loaded_code(hashes)})  # with what attempts have imported
    await host.stop()


def _exit(status: int) -> NoReturn:
    """Runs the exit handlers, then ends the process at once: the interpreter's own shutdown takes longer.

    Does not wait for threads that an attempt left behind.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # an agent may have closed or replaced it
            stream.flush()
    os._exit(status)


def _set_environment(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The fastest event loop that suits the agent's libraries."""
    if not _NESTING.isdisjoint(sys.modules):
        return asyncio.new_event_loop
    try:
        import uvloop  # not on every platform, and only faster
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _kinds(kind: type[random.Random]) -> set[type[random.Random]]:
    return {kind}.union(*(_kinds(narrower) for narrower in kind.__subclasses__()))


def _watch(lifeline_fd: int) -> None:
    while os.read(lifeline_fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # the agent's own child processes too


def main() -> None:
    """Runs a worker in a new interpreter."""
    text, work_fd = sys.argv[1:]
    del sys.argv[1:]
    with open(int(work_fd)) as pipe:  # noqa: PTH123  # a descriptor, not a path
        work = Work(*json.load(pipe))
    for fd in (work.lifeline_fd, work.output_fd, work.frames_fd):
        os.set_inheritable(fd, False)
    route_output(work.frames_fd)
    entry_point, folder = parse_entry_point(text), Path.cwd()
    set_path(entry_point, folder)
    run_worker(entry_point, folder, work)


if __name__ == "__main__":
    main()
