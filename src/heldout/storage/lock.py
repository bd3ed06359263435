"""The lock of a folder: one process at a time works on it. It goes with the process, however that ends."""

import fcntl
import os
import time
from pathlib import Path
from typing import Self

from heldout.errors import RunError

_TRIES = 5
_PAUSE_SECONDS = 0.01
"""Whoever asks `holder_of` holds the lock for an instant, so one refusal proves nothing."""


class FolderLock:
    """A lock that is held, until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """Of the locked file; a child process that inherits it holds the lock too."""

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Raises RunError when another process has it."""
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not _taken(descriptor):
            pid = _pid(descriptor)
            os.close(descriptor)
            raise RunError(f"{folder} is being worked on by process {pid or 'unknown'}; stop that one first")
        os.ftruncate(descriptor, 0)
        return cls(descriptor)

    @classmethod
    def inherited(cls, descriptor: int) -> Self:
        """The lock that the parent process took for this one. Children of this process do not inherit it further."""
        os.set_inheritable(descriptor, False)
        return cls(descriptor)

    def sign(self) -> None:
        """Puts down this process as the one to be told to stop. Only for one that hears it."""
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Lets go in this process; one that inherited the lock keeps it."""
        os.close(self.descriptor)


def holder_of(folder: Path) -> int | None:
    """The process that works on the folder; 0 for one that has not signed yet, None when none does."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that those who ask refuse nothing to each other: a refusal is the holder's, and is believed at once.
        return None if _lock(descriptor, fcntl.LOCK_SH) else _pid(descriptor)
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    for _ in range(_TRIES):
        if _lock(descriptor, fcntl.LOCK_EX):
            return True
        time.sleep(_PAUSE_SECONDS)
    return False


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode()
    return int(text) if text.isdigit() else 0
