"""The launcher: starts workers when the engine asks, as forks of a process that has imported the agent's libraries.

Run as `python -P -m heldout.agents.worker ENTRY_POINT ENGINE_PID SOCKET HOW`. HOW is `fork`, or `exec` where forks are unsafe
(macOS): then each worker is a new interpreter that imports everything itself.

Why not the fork server of `multiprocessing`: it breaks promises to the user.

- Each of its forks holds the pipe that reports the client's death. After a `kill -9` of the engine, a worker that is stuck in C
  code lives on, and so does the server.
- The agent would run in a `multiprocessing` child, with another process name and default start method than in a script.
- Started by the engine, it also imports the user's `__main__` again (a script without an `if __name__` guard evaluates again),
  looks for modules in the current folder first, and serves all jobs of the engine with the environment of its own start. Started
  by this process it avoids that, with two processes more: the server and its resource tracker.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from heldout.agents.entry_point_lookup import EntryPoint, parse_entry_point
from heldout.agents.processes import die_with_parent, raise_descriptor_limit, share_processors
from heldout.agents.worker.known_packages import known_imports
from heldout.agents.worker.loading import set_path
from heldout.agents.worker.output import route_output
from heldout.agents.worker.process import Work, generators, run_in_new_interpreter, run_worker, seed_anew
from heldout.agents.worker_protocol import REQUEST_BYTES, REQUEST_DESCRIPTORS


class Launcher:
    """Starts a worker for each request of the engine, and reports its exit."""

    def __init__(self, channel: socket.socket, entry_point: EntryPoint, folder: Path, *, forks: bool) -> None:
        self._channel = channel
        self._entry_point = entry_point
        self._folder = folder
        self._forks = forks
        self._numbers: dict[int, int] = {}
        """The number of each worker, by process ID."""
        self._generators: list[random.Random] = []
        """Generators that libraries created, which each worker must seed anew."""
        self._frames_fd = os.open(os.devnull, os.O_WRONLY)
        """Libraries may keep the output streams of their import: a worker puts its own pipe under this number."""
        self._exit_fd, self._exit_signal_fd = os.pipe()
        """Readable when a worker has ended."""

    def run(self) -> None:
        """Imports the agent's libraries, then serves the engine until it closes its end of the socket."""
        self._send({"preloaded": self._preload() if self._forks else []})
        os.set_blocking(self._exit_fd, False)
        os.set_blocking(self._exit_signal_fd, False)
        signal.set_wakeup_fd(self._exit_signal_fd)
        signal.signal(signal.SIGCHLD, _ignore)
        poll = select.poll()
        for fd in (self._channel.fileno(), self._exit_fd):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._exit_fd:
                    self._report_exits()
                else:
                    self._start()

    def _preload(self) -> list[str]:
        """Imports what workers share; returns the packages."""
        route_output(self._frames_fd)
        gc.disable()  # imports create much and drop little: searching for garbage takes a tenth of their time
        names = ["uvloop", *known_imports(self._entry_point, self._folder)]
        for name in names:
            # Not a module, or a broken package: the agent's own import reports it.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self._generators = generators()
        gc.freeze()  # what workers share stays shared: a search for garbage would write to it
        return sorted({package for name in names if (package := name.partition(".")[0]) in sys.modules})

    def _start(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._channel, REQUEST_BYTES, REQUEST_DESCRIPTORS)
        if not message:
            os._exit(0)  # the engine closed its end; no agent ran here, so nothing is registered for the end
        request = json.loads(message)
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"worker": request["worker"], "problem": str(error)})
        else:
            if pid == 0:
                self._become_worker(Work(request["key"], request["environment"], *fds))
            self._numbers[pid] = request["worker"]
            self._send({"worker": request["worker"], "pid": pid})
        for fd in fds:
            os.close(fd)

    def _become_worker(self, work: Work) -> NoReturn:
        """Runs in the new process."""
        try:
            if not self._forks:
                run_in_new_interpreter(self._entry_point, work)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._channel.close()
            os.dup2(work.frames_fd, self._frames_fd, inheritable=False)
            for fd in (self._exit_fd, self._exit_signal_fd, work.frames_fd):
                os.close(fd)
            seed_anew(self._generators)
            run_worker(self._entry_point, self._folder, work._replace(frames_fd=self._frames_fd))
        except BaseException:  # noqa: BLE001  # the process ends here, whatever was raised
            traceback.print_exc()
        finally:
            os._exit(1)

    def _report_exits(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._exit_fd, 1 << 16)
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._send({"worker": self._numbers.pop(pid), "exit_status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, object]) -> None:
        with contextlib.suppress(ConnectionError):  # the engine is gone: the next read ends this process
            self._channel.sendall(json.dumps(message).encode() + b"\n")


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """Handles a signal only so that Python writes to the wakeup descriptor."""


def main() -> None:
    """Runs the launcher."""
    text, engine_pid, channel_fd, how = sys.argv[1:]
    del sys.argv[1:]
    die_with_parent(int(engine_pid))
    share_processors()
    raise_descriptor_limit()
    channel = socket.socket(fileno=int(channel_fd))
    channel.set_inheritable(False)
    entry_point, folder = parse_entry_point(text), Path.cwd()
    set_path(entry_point, folder)
    Launcher(channel, entry_point, folder, forks=how == "fork").run()


if __name__ == "__main__":
    main()
