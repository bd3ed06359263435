"""The worker process: `python -P -m heldout.agents.worker`, started by `heldout.agents.worker_process` and by nobody else.

Its arguments: the entry point, the engine's process ID, and the socket on which the engine asks for workers. Nothing heavy is
imported here: a worker is ready when the user's own imports are.
"""

import asyncio
import atexit
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from heldout.agents.entry_point_lookup import parse_entry_point
from heldout.agents.scheduling import run_on
from heldout.agents.worker.applications import ApplicationHost
from heldout.agents.worker.forking import ForkServer, die_with_parent, may_fork
from heldout.agents.worker.functions import FunctionHost
from heldout.agents.worker.generators import Generators
from heldout.agents.worker.loading import LoadedAgent, LoadProblem, load, set_path
from heldout.agents.worker.output import route_output
from heldout.agents.worker.preloading import Preloading, variables_read
from heldout.agents.worker.service import Service
from heldout.agents.worker.threads import MAX_THREADS
from heldout.agents.worker_protocol import write_word
from heldout.http.server import Server

_NESTING = {"nest_asyncio", "nest_asyncio2"}
"""Libraries by which agents run a loop inside a running one; they can change none but Python's own."""

_IDLE_SECONDS = 86400.0
"""The engine keeps its connections for a minute and closes them itself."""


def main() -> None:
    """Becomes a worker when the engine asks for one, loads the agent and serves it until the engine says to stop, or is gone."""
    text, engine_pid, channel_fd = sys.argv[1:]
    del sys.argv[1:]
    die_with_parent(int(engine_pid))
    run_on()
    channel = socket.socket(fileno=int(channel_fd))
    channel.set_inheritable(False)
    frames_fd = os.open(os.devnull, os.O_WRONLY)  # what is imported ahead may hold on to the streams, so to this number
    route_output(frames_fd)
    entry_point, folder = parse_entry_point(text), Path.cwd()
    set_path(entry_point, folder)
    gc.disable()  # imports make much and drop little: looking for garbage meanwhile takes a tenth of their time
    new_loop = _fastest_loop()
    generators = Generators()
    with variables_read() as read, generators.watched():
        can_fork = may_fork() and Preloading(generators).run(entry_point, folder)
    work = ForkServer(channel).wait(can_fork=can_fork, read=read)
    if can_fork:
        generators.seed_anew()
    for name, value in work.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for fd, others in ((work.output_fd, (1, 2)), (work.frames_fd, (frames_fd,))):
        for other in others:
            os.dup2(fd, other, inheritable=other <= 2)
        os.close(fd)
    threading.Thread(target=_watch, args=(work.lifeline_fd,), name="engine-watch", daemon=True).start()
    try:
        agent = load(entry_point, folder)
    except LoadProblem as problem:
        write_word(frames_fd, {"problem": str(problem)})
        sys.exit(1)
    gc.enable()
    if not _NESTING.isdisjoint(sys.modules):
        new_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(agent, work.key, frames_fd))
    _exit()


async def _serve(agent: LoadedAgent, key: str, frames_fd: int) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS))
    host = ApplicationHost(agent.target) if agent.is_application else FunctionHost(agent)
    try:
        await host.start()
    except LoadProblem as problem:
        write_word(frames_fd, {"problem": str(problem)})
        return
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = Server(Service(host, key).handle, idle_seconds=_IDLE_SECONDS)
    write_word(frames_fd, {"port": await server.start("127.0.0.1", 0)})
    await stopped.wait()
    server.close_listener()
    await host.stop()


def _exit() -> NoReturn:
    """Ends the process when what is registered for its end is done, and before Python takes itself apart: that takes longer.

    Threads that an attempt left behind are not waited for.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # an agent may have closed or replaced it
            stream.flush()
    os._exit(0)


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # not on every platform, and only faster
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _watch(lifeline_fd: int) -> None:
    while os.read(lifeline_fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # the agent's own child processes too


if __name__ == "__main__":
    main()
