"""The `Retry-After` header."""

from datetime import UTC
from email.utils import parsedate_to_datetime


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Returns the seconds that a Retry-After header asks to wait, at least 0; None without a readable header.

    now: Unix time, seconds. Source: RFC 9110, section 10.2.3 (seconds, or an HTTP date); fractions of seconds, which
    some servers send, are accepted too.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return _seconds_until(header, now)
    return seconds if 0 <= seconds < float("inf") else None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)
