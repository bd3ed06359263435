"""The number of rollouts that one process can play at once on this machine, limited by descriptors and local ports."""

import os
from pathlib import Path
from typing import NamedTuple

_PER_ROLLOUT = 3
"""Descriptors: the engine's connection to the agent, the agent's to the Job Runtime, and the call's to the model server."""
_MODEL_CONNECTIONS = 1024
"""The most connections to one model server, whatever the concurrency."""
_RESERVED = 64
"""Descriptors for files, the loop, and libraries that open some later."""
_PER_WORKER = 4
"""Descriptors: the pipes of one worker process."""
_WORKERS_PER_CORE = 4
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED_PORTS = 2048
"""Local ports for the connections that are not between an agent and the Job Runtime, and for closed ones that linger."""


class Capacity(NamedTuple):
    """The most rollouts that fit."""

    rollouts: int
    limit: str
    """What sets this number."""


def capacity(descriptor_limit: int) -> Capacity:
    """Returns how many rollouts fit. descriptor_limit: the most open files of this process."""
    fitting = [Capacity(_by_descriptors(descriptor_limit), f"{descriptor_limit:,} open files (ulimit -n)")]
    if (ports := _num_ports()) is not None:
        fitting.append(
            Capacity(max(1, ports - _RESERVED_PORTS), f"{ports:,} local ports (net.ipv4.ip_local_port_range)")
        )
    return min(fitting)


def _by_descriptors(limit: int) -> int:
    reserved = _num_open() + _RESERVED + _PER_WORKER * _WORKERS_PER_CORE * (os.cpu_count() or 1)
    room = limit - min(reserved, limit // 2)
    with_own = room // _PER_ROLLOUT
    return max(1, with_own if with_own <= _MODEL_CONNECTIONS else (room - _MODEL_CONNECTIONS) // (_PER_ROLLOUT - 1))


def _num_open() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        return 16


def _num_ports() -> int | None:
    """The size of the range of local ports; None where the system does not say."""
    try:
        low, high = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return None
    return high - low + 1
