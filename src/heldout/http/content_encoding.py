"""Decodes compressed bodies: `Content-Encoding` gzip and deflate (RFC 9110, section 8.4.1), whole or piece by piece."""

import zlib

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
