"""JSON from outside: how it is read, stored and read back. One policy for datasets, model calls, answers and reports.

- Reading takes all that Python's own parser takes: `NaN`, `Infinity`, numbers too large for a float (`1e400` is infinity),
  integers of any length, halves of surrogate pairs.
- What is stored is valid JSON (RFC 8259) in UTF-8. Integers keep every digit. Infinity is written `1e999`, a number that
  every parser takes for infinity; NaN, which no JSON number can express, is the string `"NaN"`, as in protobuf's JSON mapping.
  Half of a surrogate pair, which UTF-8 cannot carry, becomes U+FFFD.
- What is read back equals what was read, apart from NaN and halves of surrogate pairs.
"""

import json
import math
from collections.abc import Callable

import orjson

_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else 0 for byte in range(256))
_LONG_INTEGER = b"0" * 19
"""The digits of 2**63: orjson reads a longer integer as a float."""
_INFINITY = b"1e999"
_NAN = "NaN"


def read_json(text: bytes | str, *, is_exact: bool = True) -> object:
    """Parses JSON. Raises ValueError for anything else, and RecursionError if it is nested too deeply.

    is_exact: keep every digit of integers beyond 64 bits; looking for them takes six times as long as parsing. Else they are
    floats.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not is_exact or _LONG_INTEGER not in data.translate(_DIGITS):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            pass  # NaN, an infinity, half of a surrogate pair; or no JSON, which Python's parser reports too
    return json.loads(data)


def stored_json(value: object, *, nan: str | None = _NAN, default: Callable[[object], object] | None = None) -> bytes:
    """Encodes a JSON value for storage. Raises TypeError for a value that JSON lacks, or nested more than 250 levels deep.

    nan: what NaN becomes. default: returns the JSON value for one of a type that JSON lacks.
    """
    try:
        text = orjson.dumps(value, default=default)
    except orjson.JSONEncodeError:
        return orjson.dumps(_storable(value, nan), default=default)
    # orjson writes null for NaN and infinity.
    return orjson.dumps(_storable(value, nan), default=default) if b"null" in text and _has_non_finite(value) else text


def sent_json(value: object) -> bytes:
    """Encodes JSON that passes through, as it was written: NaN, infinities and halves of surrogate pairs stay what they were.

    Raises TypeError for a value nested more than 250 levels deep.
    """
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError:
        _storable(value)  # raises if the depth is the reason
    else:
        if b"null" not in text or not _has_non_finite(value):
            return text
    return json.dumps(value, separators=(",", ":")).encode()


def clean_text(text: str) -> str:
    """Replaces halves of surrogate pairs, which UTF-8 cannot carry, by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _storable(value: object, nan: str | None = _NAN, levels: int = 250) -> object:
    if levels == 0:
        raise TypeError("the value is nested more than 250 levels deep")
    match value:
        case str():
            return clean_text(value)
        case bool() | None:
            return value
        case int():
            return orjson.Fragment(str(value).encode())
        case float():
            return _storable_float(value, nan)
        case dict():
            return {
                clean_text(key) if isinstance(key, str) else key: _storable(item, nan, levels - 1)
                for key, item in value.items()
            }
        case list() | tuple():
            return [_storable(item, nan, levels - 1) for item in value]
    return value


def _storable_float(value: float, nan: str | None) -> object:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return nan
    return orjson.Fragment(_INFINITY if value > 0 else b"-" + _INFINITY)


def _has_non_finite(value: object) -> bool:
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(_has_non_finite(item) for item in value.values())
        case list() | tuple():
            return any(_has_non_finite(item) for item in value)
    return False
