"""The worker process: `python -P -m heldout.agents.worker`, started by `heldout.agents.process` and by nobody else.

stdin brings one line, the settings, and then stays open for as long as the engine lives. Nothing heavy is imported here: a
worker is ready when the user's own imports are.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from heldout.agents.lookup import parse_entry_point
from heldout.agents.wire import write_word
from heldout.agents.worker.applications import ApplicationHost
from heldout.agents.worker.functions import FunctionHost
from heldout.agents.worker.http import serve
from heldout.agents.worker.loading import LoadedAgent, LoadProblem, load
from heldout.agents.worker.output import route_output
from heldout.agents.worker.service import Service
from heldout.agents.worker.threads import MAX_THREADS

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: have the kernel send a signal when the parent dies, even to a process stuck in C."""


def main() -> None:
    """Loads the agent and serves it until the engine says to stop, or is gone."""
    settings = json.loads(_read_line(0))
    _die_with_engine(settings["engine_pid"])
    frames_fd = settings["frames_fd"]
    os.set_inheritable(frames_fd, False)
    route_output(frames_fd)
    gc.disable()  # imports make much and drop little: looking for garbage meanwhile takes a tenth of their time
    try:
        agent = load(parse_entry_point(settings["entry_point"]), Path.cwd())
    except LoadProblem as problem:
        write_word(frames_fd, {"problem": str(problem)})
        sys.exit(1)
    gc.enable()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(agent, settings["key"], frames_fd))


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
    server = await serve(Service(host, key).handle)
    write_word(frames_fd, {"port": server.sockets[0].getsockname()[1]})
    await stopped.wait()
    server.close()
    await host.stop()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # not on every platform, and only faster
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _read_line(fd: int) -> bytes:
    """One line from `fd`, and not a byte more: what follows is for the watcher."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 1)
        if not piece:
            sys.exit(1)
        line += piece
    return line


def _die_with_engine(engine_pid: int) -> None:
    """Ends this process when the engine's does, however it dies and whatever this one is doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != engine_pid:
            os._exit(1)  # it died before we asked
    engine_fd = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # the user's code must not read our line to the engine
    os.close(null)
    threading.Thread(target=_watch, args=(engine_fd,), name="engine-watch", daemon=True).start()


def _watch(engine_fd: int) -> None:
    while os.read(engine_fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # the agent's own child processes too


if __name__ == "__main__":
    main()
