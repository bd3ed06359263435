"""Recognizes that the machine ran out of something: descriptors, ports, memory, threads, processes or disk.

Such an error says nothing about the agent or the model that met it. Imports only what every worker process has anyway.
"""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

_BY_ERRNO = {
    errno.EMFILE: "file descriptors",
    errno.ENFILE: "file descriptors",
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "memory",
    errno.ENOSPC: "disk space",
    errno.EDQUOT: "disk space",
    errno.EAGAIN: "processes",
    errno.EADDRNOTAVAIL: "ports",
}
_IN_TEXT = re.compile(
    rf"\[Errno ({errno.EMFILE}|{errno.ENFILE}|{errno.ENOMEM}|{errno.ENOBUFS}|{errno.ENOSPC}|{errno.EDQUOT})\]"
    r"|(?P<memory>\bMemoryError\b)|(?P<threads>can't start new thread)"
)
_THREADS = "can't start new thread"
"""The message of the RuntimeError that CPython raises."""
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_SCARCE = 0.5
"""With this share of local ports in use, a connection may find none free: the kernel first searches only half of them."""


def exhausted_resource(error: BaseException) -> str | None:
    """Names what the machine ran out of, if that is why `error` was raised; None otherwise.

    Looks at the errors that led to it, too: clients hide the system's error behind one of their own.
    """
    return next((found for one in chain_of(error) if (found := _resource(one)) is not None), None)


def exhausted_resource_in(message: str) -> str | None:
    """Names what the machine ran out of according to the text of an error; None if it says nothing of the kind."""
    found = _IN_TEXT.search(message)
    if found is None:
        return None
    return _BY_ERRNO[int(found[1])] if found[1] else found.lastgroup


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, its causes, and the members of groups among them, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _resource(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError) and _THREADS in str(error):
        return "threads"
    if not isinstance(error, OSError):
        return None
    found = None if error.errno is None else _BY_ERRNO.get(error.errno)
    # The kernel says the same of an address that is not this machine's.
    return None if found == "ports" and not _ports_are_scarce() else found


def _ports_are_scarce() -> bool:
    """Whether half of the local ports are in use; True where the system does not say."""
    try:
        low, high = map(int, _PORTS.read_text().split())
        used = sum(path.read_bytes().count(b"\n") - 1 for path in _SOCKETS if path.exists())
    except (OSError, ValueError):
        return True
    return used >= _SCARCE * (high - low + 1)
