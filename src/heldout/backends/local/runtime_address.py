"""The addresses of a job's Job Runtime: where it listens, and where agents on other machines reach it."""

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from heldout.errors import ReferenceProblem, shown
from heldout.job.document import AgentConfig
from heldout.job.kinds.base import RuntimeReach

URL_VARIABLE = "HELDOUT_RUNTIME_URL"
LISTEN_VARIABLE = "HELDOUT_RUNTIME_LISTEN"
DEFAULT_PORT = 8700
"""The port that a tunnel or a proxy forwards to when the URL names none."""
_LOOPBACK = "127.0.0.1"
_EVERYWHERE = "0.0.0.0"
"""Safe to listen on: a caller of the Job Runtime needs a secret of the job."""


class Exposure(NamedTuple):
    """The addresses of a Job Runtime."""

    host: str
    port: int
    """0: any free port."""
    public_url: str | None
    """None: the listening address."""


def exposure_of(config: AgentConfig, environ: Mapping[str, str] = os.environ) -> Exposure:
    """Returns the Job Runtime's addresses for this agent.

    An agent in Heldout's worker processes uses the loopback interface. Other agents use the job's URL, else that of
    HELDOUT_RUNTIME_URL; an agent in AWS needs one. With a port in the URL, the runtime listens on that port of every interface.
    Without one, a tunnel or a load balancer has to forward requests to port 8700 of this machine. HELDOUT_RUNTIME_LISTEN
    overrides the listening address. Raises ReferenceProblem for an invalid or missing URL.
    """
    agent = config.agent
    url = config.runtime_url or environ.get(URL_VARIABLE) or None
    if agent.reach is RuntimeReach.LOOPBACK:
        return Exposure(_LOOPBACK, 0, None)
    if url is None:
        if agent.reach is RuntimeReach.URL_OR_LOOPBACK:
            return Exposure(_LOOPBACK, 0, None)
        raise ReferenceProblem(
            f"agent {agent.text!r} is in AWS and has to reach the Job Runtime on this machine: give its URL from there "
            f"(--runtime-url URL, runtime_url=..., or {URL_VARIABLE}), such as that of a tunnel to port {DEFAULT_PORT} or "
            f"http://<this machine's address>:{DEFAULT_PORT}; or map the agent to one on this machine in a registry"
        )
    port = check_runtime_url(url)
    listen = environ.get(LISTEN_VARIABLE)
    if listen:
        host, port = _listen(listen)
    else:
        host = _LOOPBACK if port is None else _EVERYWHERE
    return Exposure(host, DEFAULT_PORT if port is None else port, url.rstrip("/"))


def check_runtime_url(url: str) -> int | None:
    """Returns the port of the URL. Raises ReferenceProblem unless it is an http(s) address."""
    problem = (
        f"runtime URL {shown(url)} is not an address; expected https://host, http://host:port, or either with a path"
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # brackets without an IPv6 address, or an invalid port
        raise ReferenceProblem(problem) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ReferenceProblem(problem)
    return port


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ReferenceProblem(
            f"{LISTEN_VARIABLE} is {shown(text)}; expected host:port, such as 0.0.0.0:{DEFAULT_PORT}"
        )
    return host.strip("[]") or _EVERYWHERE, int(port)
