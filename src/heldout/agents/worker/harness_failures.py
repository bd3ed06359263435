"""Recognizes errors of an agent that the machine or the Job Runtime's own connection caused."""

import os
import re
import traceback
from urllib.parse import urlsplit

from heldout.exhaustion import chain_of, exhausted_resource

_ENDPOINT_VARIABLE = "RFT_RUNTIME_ENDPOINT"
"""Holds the Job Runtime's address in every worker."""
_CONNECTION_ERRORS = frozenset({"ConnectError", "ConnectTimeout", "ReadError", "WriteError", "RemoteProtocolError"})
"""Names of connection errors in httpx and httpcore, which are not subclasses of the built-in ConnectionError."""


def harness_failure(error: BaseException) -> str | None:
    """Returns `exhausted` if the machine ran out of something, `disconnected` if the connection to the Job Runtime was refused
    or broke, and None for an error of the agent's own."""
    if exhausted_resource(error) is not None:
        return "exhausted"
    chain = list(chain_of(error))
    is_of_connection = any(
        isinstance(one, ConnectionError) or type(one).__name__ in _CONNECTION_ERRORS for one in chain
    )
    return "disconnected" if is_of_connection and any(_names_runtime(one) for one in chain) else None


def _names_runtime(error: BaseException) -> bool:
    """Whether an error is about the Job Runtime's address: by its request, its text, or the connection that raised it."""
    address = urlsplit(os.environ.get(_ENDPOINT_VARIABLE, ""))
    if address.hostname is None or address.port is None:
        return False
    host, port = address.hostname, address.port
    if re.search(rf"{re.escape(host)}\W+(port=)?{port}\b", f"{_requested_url(error)} {error}"):
        return True
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any((getattr(one, "host", None), getattr(one, "port", None)) == (host, port) for one in frames)


def _requested_url(error: BaseException) -> str:
    """The URL of the request that an error of httpx, openai or requests holds; empty without one."""
    try:
        return str(getattr(getattr(error, "request", None), "url", ""))
    except RuntimeError:  # httpx raises it for an error without a request
        return ""
