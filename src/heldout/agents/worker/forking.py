"""Waits until the engine wants a worker, and becomes it: a fork of this process where that is safe, else the process itself.

The engine sends a line of JSON and three descriptors for each worker: `heldout.agents.worker_protocol`.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from typing import NamedTuple

from heldout.agents.worker_protocol import REQUEST_BYTES, REQUEST_DESCRIPTORS

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: have the kernel send a signal when the parent dies, even to a process stuck in C."""


class Work(NamedTuple):
    """What a worker is to be."""

    key: str
    environment: dict[str, str | None]
    """What to change in this process's; None: the variable goes."""
    lifeline_fd: int
    """Reads nothing, and ends with the engine."""
    output_fd: int
    """For descriptors 1 and 2."""
    frames_fd: int


class ForkServer:
    """Answers the engine's requests for workers."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: dict[int, tuple[int, int]] = {}
        """Number of the worker and process ID, by a descriptor that is ready when the process has ended."""

    def wait(self, *, can_fork: bool, read: Iterable[str]) -> Work:
        """Returns in each process that is to be a worker: forks, or, when it cannot fork, this one. Ends with the engine.

        read: the environment variables that what was imported so far has read.
        """
        self._tell({"can_fork": can_fork, "has_httpx": "httpx" in sys.modules, "read": sorted(read)})
        if can_fork:
            gc.freeze()  # what all workers share stays shared: looking for garbage would write to it
        while True:
            for fd in self._ready():
                if fd != self._channel.fileno():
                    self._bury(fd)
                elif (work := self._take(can_fork=can_fork)) is not None:
                    return work

    def _ready(self) -> list[int]:
        poll = select.poll()
        for fd in (self._channel.fileno(), *self._children):
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll()]

    def _take(self, *, can_fork: bool) -> Work | None:
        """One request: the work in the process that is to do it, None in the one that goes on waiting."""
        message, fds, _, _ = socket.recv_fds(self._channel, REQUEST_BYTES, REQUEST_DESCRIPTORS)
        if not message:
            os._exit(0)  # the engine closed its end; nobody's clean-up is due, no agent ran here
        request = json.loads(message)
        work = Work(request["key"], request["environment"], *fds)
        if can_fork:
            here = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:
                _close(fds)
                self._tell({"worker": request["worker"], "problem": str(error)})
                return None
            if pid:
                _close(fds)
                self._children[os.pidfd_open(pid)] = request["worker"], pid
                return None
            die_with_parent(here)
            os.setsid()
            _close(self._children)
        self._tell({"worker": request["worker"], "pid": os.getpid()})
        self._channel.close()
        return work

    def _bury(self, fd: int) -> None:
        worker, pid = self._children.pop(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        self._tell({"worker": worker, "exit_status": os.waitstatus_to_exitcode(status)})

    def _tell(self, word: dict[str, object]) -> None:
        with contextlib.suppress(ConnectionError):  # the engine is gone: the next request says so
            self._channel.sendall(json.dumps(word).encode() + b"\n")


def may_fork() -> bool:
    """Whether this system can tell what a fork needs told."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.stat("/proc/self/task")  # noqa: PTH116  # pathlib would do no better
    except OSError:
        return False
    return True


def die_with_parent(parent_pid: int) -> None:
    """Has the system end this process when its parent ends, however it does and whatever this one is doing; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)  # it died before we asked


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
