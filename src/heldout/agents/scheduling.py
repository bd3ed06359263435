"""How the processes of an evaluation share the processors."""

import contextlib
import os


def run_on() -> None:
    """Has this process, and those it starts, wait for a processor rather than interrupt who has one; on Linux.

    A model call wakes four processes in turn. Each that interrupts another the moment it wakes does little before it sleeps
    again; each that waits finds the calls of many rollouts to work on at once. See sched(7), SCHED_BATCH.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # any other is the user's choice
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
