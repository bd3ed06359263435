"""Reads the headers `Retry-After` and `Content-Encoding`."""

import zlib
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


_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""zlib's own detection of the two formats by their headers."""


class Decoder:
    """Decodes one body. Its pieces may be cut anywhere."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)

    def feed(self, data: bytes) -> bytes:
        """Returns what the next piece decodes to; empty if more is needed. Raises ValueError if the body is damaged."""
        try:
            return self._stream.decompress(data)
        except zlib.error as error:
            raise ValueError(f"a compressed body cannot be decoded ({error})") from error


def decoder(content_encoding: str | None) -> Decoder | None:
    """Returns a decoder for the value of a Content-Encoding header; None for plain bytes. Raises ValueError for any other."""
    match (content_encoding or "").strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return Decoder()
    raise ValueError(f"Content-Encoding is {content_encoding!r}; it must be identity, gzip or deflate")
