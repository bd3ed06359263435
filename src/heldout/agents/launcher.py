"""Starts the worker processes of an agent, as the engine sees it.

One process for each agent, the launcher (`heldout.agents.worker`), starts the workers when the engine asks. It imports the
agent's libraries once for all of them. `heldout.agents.worker_protocol` describes the messages.
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
from typing import Any

from heldout.agents.prestart import FORKS, StartedLauncher, start_launcher, take_early
from heldout.agents.processes import kill_group, kill_leader
from heldout.agents.worker_protocol import Tail, read_pipe
from heldout.exhaustion import exhausted_resource_in

_WORDS_BYTES = 1 << 16


class WorkerProblem(Exception):
    """A worker process could not start; the message is one line.

    may_pass: whether the reason lies outside the agent (the process was killed, the system refused one): a later start may work.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass or exhausted_resource_in(message) is not None


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of an agent starts with."""

    entry_point: str
    environment: Mapping[str, str]
    """The whole environment, not additions to one."""
    working_directory: Path
    forks: bool = FORKS
    """Whether workers are forks of the launcher and share its imports, or new interpreters."""


@dataclass(slots=True, eq=False)
class Child:
    """A worker process that the launcher was asked for. `on_exit` is called once, with the exit status, negative for a signal."""

    launcher: "Launcher"
    on_exit: Callable[[int], None]
    pid: int | None = None
    """Also its process group; None until it runs."""
    problem: str = ""
    """Why it could not start; set before `on_exit` is called."""
    is_unwanted: bool = False

    def terminate(self) -> None:
        """Asks the process to end."""
        if self.pid is None:
            self.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and its own children, at once or as soon as it runs."""
        self.is_unwanted = True
        if self.pid is not None:
            kill_leader(self.pid)
        elif not self.launcher.has_launched:
            self.launcher.kill()


class WorkerStarter:
    """Starts the worker processes of one agent; replaces a launcher that died."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._launcher: Launcher | None = None
        self._launchers: set[Launcher] = set()

    @property
    def preloads_httpx(self) -> bool:
        """Whether a worker that has started got the httpx library from the launcher."""
        return self._launcher is not None and "httpx" in self._launcher.preloaded

    def start(self, key: str, fds: Sequence[int], on_exit: Callable[[int], None]) -> Child:
        """Starts a worker whose requests must show `key`.

        fds: the worker's ends of its pipes, see `worker_protocol`; the caller still closes them.
        Raises WorkerProblem when the launcher cannot start or has just ended.
        """
        if self._launcher is None or self._launcher.exited.done():
            self._launcher = self._new_launcher()
        return self._launcher.ask(key, fds, on_exit)

    async def close(self) -> None:
        """Ends the launcher and every worker that still runs."""
        await asyncio.gather(*(launcher.close() for launcher in list(self._launchers)))

    def _new_launcher(self) -> "Launcher":
        settings = self._settings
        try:
            started = take_early(settings.entry_point, settings.working_directory) or start_launcher(
                settings.entry_point, settings.environment, settings.working_directory, forks=settings.forks
            )
        except OSError as error:
            raise WorkerProblem(f"a worker process cannot be started: {error}", may_pass=True) from error
        launcher = Launcher(settings, started)
        self._launchers.add(launcher)
        launcher.exited.add_done_callback(lambda _: self._launchers.discard(launcher))
        return launcher


class Launcher:
    """One launcher process."""

    def __init__(self, settings: WorkerSettings, started: StartedLauncher) -> None:
        loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._children: dict[int, Child] = {}
        self._received = b""
        self.printed = Tail()
        """What it printed while it imported libraries."""
        self.exited: asyncio.Future[int] = loop.create_future()
        """Resolves to the exit status, negative for a signal."""
        self.has_launched = False
        """Whether a worker of it has run: its imports are over."""
        self.preloaded: frozenset[str] = frozenset()
        """Packages that it imports for all workers; known once a worker has run."""
        self._process, self._channel, environment = started
        self._changes = _changes(environment, settings.environment)
        assert self._process.stdout is not None
        self._channel.setblocking(False)
        os.set_blocking(self._process.stdout.fileno(), False)
        loop.add_reader(self._channel.fileno(), self._read_messages)
        loop.add_reader(self._process.stdout.fileno(), self._read_printed)
        threading.Thread(target=self._wait, args=(loop,), name="launcher-exit", daemon=True).start()

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
            raise WorkerProblem(f"a worker process cannot be started: {error}", may_pass=True) from error
        return child

    def kill(self) -> None:
        """Ends the launcher at once, and so all its workers."""
        if not self.exited.done():
            kill_group(self._process.pid)

    async def close(self) -> None:
        """Ends the launcher and waits for its exit."""
        self.kill()
        await asyncio.wait({self.exited})

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the engine's loop is closed: there is no one to notify
            loop.call_soon_threadsafe(self._on_exit, status)

    def _on_exit(self, status: int) -> None:
        assert self._process.stdout is not None
        kill_group(self._process.pid)  # the children that it left
        self._read_messages()
        self._read_printed()
        for fd in (self._channel.fileno(), self._process.stdout.fileno()):
            asyncio.get_running_loop().remove_reader(fd)
        self._channel.close()
        self._process.stdout.close()
        self.exited.set_result(status)
        for number, child in list(self._children.items()):
            if child.pid is not None:
                kill_leader(child.pid)
            self._on_child_exit(number, status if child.pid is None else -signal.SIGKILL)

    def _on_child_exit(self, number: int, status: int) -> None:
        child = self._children.pop(number)
        if child.pid is not None:
            kill_group(child.pid)  # the children that it left
        child.on_exit(status)

    def _read_messages(self) -> None:
        try:
            while data := self._channel.recv(_WORDS_BYTES):
                self._received += data
        except BlockingIOError:
            pass
        except ConnectionError:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
        else:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._handle(json.loads(line))

    def _handle(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"preloaded": names}:
                self.preloaded = frozenset(names)
            case {"worker": number, "pid": pid}:
                self.has_launched = True
                self._children[number].pid = pid
                if self._children[number].is_unwanted:
                    kill_leader(pid)
            case {"worker": number, "problem": problem}:
                self._children[number].problem = problem
                self._on_child_exit(number, 1)
            case {"worker": number, "exit_status": status}:
                self._on_child_exit(number, status)

    def _read_printed(self) -> None:
        assert self._process.stdout is not None
        self.printed.add(read_pipe(self._process.stdout.fileno()))


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that turn environment `before` into `after`; None removes one."""
    return {name: after.get(name) for name in {**before, **after} if before.get(name) != after.get(name)}
