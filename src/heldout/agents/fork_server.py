"""Where worker processes come from, as the engine sees it: forks of one process that has imported what the agent imports first.

Where forking is not safe (`heldout.agents.worker.preloading` decides) such a process becomes a worker itself, and each worker
needs one. The wire between them: `heldout.agents.worker_protocol`.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from heldout.agents.agentcore_contract import one_line
from heldout.agents.pipes import Tail, read_pipe
from heldout.agents.prestart import Opened, open_process, taken
from heldout.agents.worker_protocol import ALL_VARIABLES

START_SECONDS = 300.0
"""Importing an agent may load a model; an import that takes longer hangs."""
_WORDS_BYTES = 1 << 16


class WorkerProblem(Exception):
    """A worker process could not start; the message is one line."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of an agent is started with."""

    entry_point: str
    environment: Mapping[str, str]
    """All of it, not what to add."""
    working_directory: Path


class Imported(NamedTuple):
    """What has come of importing ahead."""

    can_fork: bool
    """Whether workers are forks, of which each costs little."""
    has_httpx: bool
    """Whether that library is among what was imported."""


@dataclass(slots=True, eq=False)
class Child:
    """The process of a worker that was asked for. `on_exit` is called once, with its exit status, negative for a signal."""

    server: "ForkServer"
    on_exit: Callable[[int], None]
    pid: int | None = None
    """Its process group's too; None as long as it is not there."""
    problem: str = ""
    """Why there will be none; `on_exit` is called after it is said."""
    is_unwanted: bool = False

    def terminate(self) -> None:
        """Asks it to end."""
        if self.pid is None:
            self.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and its own children at once, or, when it is not there yet, as soon as it is."""
        self.is_unwanted = True
        if self.pid is not None:
            _kill_group(self.pid)
        elif not self.server.is_ready:
            self.server.kill()


class WorkerStarter:
    """Starts the worker processes of one agent."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._server: ForkServer | None = None
        self._servers: set[ForkServer] = set()

    async def start(self, key: str, fds: Sequence[int], on_exit: Callable[[int], None]) -> Child:
        """Has a process become a worker that engine's requests show `key` to. fds: see `worker_protocol`; they stay ours.

        Raises WorkerProblem when there is no process to become one.
        """
        server, imported = await self._ready_server()
        if not imported.can_fork:
            if server.is_taken:
                server = self._new_server()
            server.is_taken = True
        return server.ask(key, fds, on_exit)

    async def imported(self) -> Imported:
        """What workers begin with. Raises WorkerProblem as `start` does."""
        _, imported = await self._ready_server()
        return imported

    async def close(self) -> None:
        """Ends the processes that workers are made from, and with them every worker that still runs."""
        await asyncio.gather(*(server.close() for server in list(self._servers)))

    async def _ready_server(self) -> "tuple[ForkServer, Imported]":
        """A process that has imported what it can."""
        while True:
            if self._server is None or self._server.exited.done():
                self._server = self._new_server(taken(self._settings.entry_point, self._settings.working_directory))
            server = self._server
            imported = await server.imported()
            if not server.misread:
                return server, imported
            if self._server is server:
                self._server = self._new_server()
            await server.close()

    def _new_server(self, opened: Opened | None = None) -> "ForkServer":
        if opened is None:
            settings = self._settings
            try:
                opened = open_process(settings.entry_point, settings.environment, settings.working_directory)
            except OSError as error:
                raise WorkerProblem(f"a worker process cannot be started: {error}") from error
        server = ForkServer(self._settings, opened)
        self._servers.add(server)
        server.exited.add_done_callback(lambda _: self._servers.discard(server))
        return server


class ForkServer:
    """One process that imports ahead, and then forks workers or becomes one."""

    def __init__(self, settings: WorkerSettings, opened: Opened) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._numbers = itertools.count()
        self._children: dict[int, Child] = {}
        self._words = b""
        self._printed = Tail()
        self._imported: asyncio.Future[Imported] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        """Resolves to the exit status, negative for a signal."""
        self.is_taken = False
        """Whether it becomes, or became, a worker itself."""
        self.misread: set[str] = set()
        """Variables that what it imported has read, and that workers will find otherwise."""
        self._process, self._channel, environment = opened
        self._changes = _changes(environment, settings.environment)
        assert self._process.stdout is not None
        self._channel.setblocking(False)
        os.set_blocking(self._process.stdout.fileno(), False)
        loop.add_reader(self._channel.fileno(), self._read_words)
        loop.add_reader(self._process.stdout.fileno(), self._read_printed)
        threading.Thread(target=self._wait, args=(loop,), name="worker-exit", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether it has imported what it can, and answers."""
        return self._imported.done() and not self.exited.done()

    async def imported(self) -> Imported:
        """Returns once it has imported what it can. Raises WorkerProblem if it ends before, or hangs."""
        either: set[asyncio.Future[Imported] | asyncio.Future[int]] = {self._imported, self.exited}
        await asyncio.wait(either, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if self._imported.done():
            return self._imported.result()
        if not self.exited.done():
            self.kill()
            raise WorkerProblem(took_too_long(self._settings))
        raise WorkerProblem(died_while_starting(self._settings, self.exited.result(), self._printed))

    def ask(self, key: str, fds: Sequence[int], on_exit: Callable[[int], None]) -> Child:
        """Asks for a worker: see `WorkerStarter.start`."""
        child = Child(self, on_exit)
        number = next(self._numbers)
        self._children[number] = child
        request = json.dumps({"worker": number, "key": key, "environment": self._changes}).encode()
        try:
            socket.send_fds(self._channel, [request], fds)
        except OSError as error:  # it has just ended
            del self._children[number]
            raise WorkerProblem(f"a worker process cannot be started: {error}") from error
        return child

    def kill(self) -> None:
        """Ends the process at once, and so all its forks."""
        if not self.exited.done():
            _kill_group(self._process.pid)

    async def close(self) -> None:
        """Ends it, and waits until it has."""
        self.kill()
        await asyncio.wait({self.exited})

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the engine's loop is closed: nobody wants to know
            loop.call_soon_threadsafe(self._on_exit, status)

    def _on_exit(self, status: int) -> None:
        assert self._process.stdout is not None
        _kill_group(self._process.pid)  # children it left behind
        self._read_words()
        self._read_printed()
        for fd in (self._channel.fileno(), self._process.stdout.fileno()):
            asyncio.get_running_loop().remove_reader(fd)
        self._channel.close()
        self._process.stdout.close()
        self.exited.set_result(status)
        for number, child in list(self._children.items()):
            if child.pid is not None:
                _kill_group(child.pid)  # a fork does not outlive it
            self._on_child_exit(number, status if child.pid in (None, self._process.pid) else -signal.SIGKILL)

    def _on_child_exit(self, number: int, status: int) -> None:
        child = self._children.pop(number)
        if child.pid is not None:
            _kill_group(child.pid)  # children it left behind
        child.on_exit(status)

    def _read_words(self) -> None:
        try:
            while data := self._channel.recv(_WORDS_BYTES):
                self._words += data
        except BlockingIOError:
            pass
        else:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
        *lines, self._words = self._words.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, word: Mapping[str, Any]) -> None:
        match word:
            case {"can_fork": can_fork, "has_httpx": has_httpx, "read": names}:
                self.misread = set(self._changes) if ALL_VARIABLES in names else set(self._changes) & set(names)
                self._imported.set_result(Imported(can_fork, has_httpx))
            case {"worker": number, "pid": pid}:
                self._children[number].pid = pid
                if self._children[number].is_unwanted:
                    _kill_group(pid)
            case {"worker": number, "problem": problem}:
                self._children[number].problem = problem
                self._on_child_exit(number, 1)
            case {"worker": number, "exit_status": status}:
                self._on_child_exit(number, status)

    def _read_printed(self) -> None:
        assert self._process.stdout is not None
        self._printed.add(read_pipe(self._process.stdout.fileno()))


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """What makes one environment of another; None: the variable goes."""
    return {name: after.get(name) for name in {**before, **after} if before.get(name) != after.get(name)}


def took_too_long(settings: WorkerSettings) -> str:
    """What there is to say of an import that was given up."""
    return f"agent {settings.entry_point!r} took over {START_SECONDS:.0f} s to import"


def died_while_starting(settings: WorkerSettings, status: int, printed: Tail) -> str:
    """What there is to say of a process that ended before it was a worker."""
    reason = f"its process {shown_exit(status)} while starting"
    last_line = printed.last_line()
    told = one_line(reason + (f": {last_line}" if last_line else ""))
    return f"agent {settings.entry_point!r} cannot be imported: {told}"


def shown_exit(status: int) -> str:
    """An exit status in words: `ended with exit status 3`, `was killed by SIGSEGV`."""
    if status >= 0:
        return f"ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(pid, signal.SIGKILL)
