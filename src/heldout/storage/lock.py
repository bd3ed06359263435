"""The lock of a folder: one process at a time works on it.

It is an `flock` on the file `lock`, so the system releases it when the process ends for any reason. The package filelock offers
`flock` too, but lacks two things that a detached evaluation needs: a child inherits the lock from its parent without a gap, and
others can find the holder without taking the lock.
"""

import fcntl
import os
import random
import time
from pathlib import Path
from typing import Self

from heldout.errors import RunError

_PATIENCE_SECONDS = 10.0
"""`holder_of` takes a shared lock for an instant. Many processes that ask can hold the lock shared for some time."""
_PAUSE_SECONDS = 0.001


class FolderLock:
    """A lock that this process holds until `release` or its end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """Of the locked file. A child process that inherits it holds the lock too."""

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Takes the lock of `folder`. Raises RunError when another process holds it."""
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not _taken(descriptor):
            pid = _pid(descriptor)
            os.close(descriptor)
            raise RunError(f"{folder} is being worked on by process {pid or 'unknown'}; stop that one first")
        os.ftruncate(descriptor, 0)
        return cls(descriptor)

    @classmethod
    def inherited(cls, descriptor: int) -> Self:
        """Adopts the lock that the parent process took for this one. This process's children do not inherit it."""
        os.set_inheritable(descriptor, False)
        return cls(descriptor)

    def sign(self) -> None:
        """Records this process as the receiver of stop signals. Call it once its signal handlers are set."""
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Releases the lock in this process. A process that inherited it keeps it."""
        os.close(self.descriptor)


def holder_of(folder: Path) -> int | None:
    """Returns the id of the process that works on `folder`: 0 if it has not recorded itself yet, None if there is none."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # A shared lock: concurrent checks do not refuse each other, so a refusal comes from the holder.
        return None if _lock(descriptor, fcntl.LOCK_SH) else _pid(descriptor)
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _lock(descriptor, fcntl.LOCK_EX):
        # Only a process that works on the folder refuses a shared lock.
        if not _lock(descriptor, fcntl.LOCK_SH) or time.monotonic() > deadline:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_PAUSE_SECONDS * random.uniform(0.0, 1.0))
    return True


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode()
    return int(text) if text.isdigit() else 0
