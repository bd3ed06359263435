"""What the HTTP server says of requests that come to nothing: one line for what is no HTTP, nothing for who went away."""

import logging

from aiohttp.http_exceptions import HttpProcessingError


def http_log() -> logging.Logger:
    """For aiohttp's server, which would print a traceback of each."""
    log = logging.getLogger(__name__)
    log.addFilter(_in_one_line)
    return log


def _in_one_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError):
        return False  # the client has gone: nobody waits for an answer, and nothing is wrong here
    if isinstance(error, HttpProcessingError):
        record.exc_info = None
        record.msg = f"{record.getMessage()}: {' '.join(error.message.split())[:200]}"
        record.args = ()
    return True
