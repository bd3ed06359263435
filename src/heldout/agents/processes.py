"""Operating-system settings of an evaluation's processes: how they share processors, and how they end together."""

import contextlib
import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the kernel sends a signal when the parent dies, even to a process that is stuck in C code."""

_MOST_DESCRIPTORS = 1 << 20
"""More than any job needs. Some containers allow a billion, and programs that close every possible descriptor then hang."""


def share_processors() -> None:
    """Makes this process, and those it starts, wait for a processor instead of interrupting another process; on Linux.

    A model call wakes four processes in turn. A process that interrupts another on waking does little before it sleeps again;
    a process that waits finds the calls of many rollouts to work on at once. See sched(7), SCHED_BATCH.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # any other policy is the user's choice
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def raise_descriptor_limit() -> int:
    """Raises the soft limit on open files, of this process and those it starts, to the hard one. Returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent ends, even in the middle of a system call; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)  # the parent died before the call


def kill_group(pid: int) -> None:
    """Kills all processes of the group that process `pid` leads, or led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(pid, signal.SIGKILL)


def kill_leader(pid: int) -> None:
    """Kills a running process and its group; the process alone while it leads no group yet."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    kill_group(pid)


def shown_exit(status: int) -> str:
    """An exit status in words: `ended with exit status 3`, `was killed by SIGSEGV`."""
    if status >= 0:
        return f"ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
