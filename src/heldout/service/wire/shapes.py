"""Conversion between Python values and their form on the wire, by botocore's shapes. Pure functions.

In Python, timestamps are aware datetimes, blobs are bytes, structures and maps are dicts. Members have the model's names.
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from botocore.utils import parse_timestamp

from heldout.errors import shown
from heldout.service.wire.faults import ServiceError

Shape = Any
"""A `botocore.model.Shape`. Its type stubs do not distinguish structures, lists and maps."""

_WHOLE = ("integer", "long")
_FRACTIONS = ("float", "double")


def wire_name(shape: Shape, name: str) -> str:
    """The wire name of a structure's member. shape: the member's."""
    return str(shape.serialization.get("name", name))


def from_json(shape: Shape, value: Any, where: str = "the request") -> Any:
    """Converts parsed JSON by its shape. Null members and members that the shape does not have are left out.

    where: the value's path, for messages. Raises ServiceError (SerializationException) for a value of another type.
    """
    match shape.type_name:
        case "structure" if getattr(shape, "is_document_type", False):
            return value
        case "structure":
            given = expect(value, dict, where)
            return {
                name: from_json(member, given[key], _below(where, key))
                for name, member in shape.members.items()
                if given.get(key := wire_name(member, name)) is not None
            }
        case "list":
            return [
                from_json(shape.member, item, f"{where}.{number}")
                for number, item in enumerate(expect(value, list, where), 1)
                if item is not None
            ]
        case "map":
            given = expect(value, dict, where)
            return {key: from_json(shape.value, item, _below(where, key)) for key, item in given.items()}
        case _:
            return _scalar_from_json(shape, value, where)


def to_json(shape: Shape, value: Any) -> Any:
    """Converts a value to JSON. None members are left out; timestamps are Unix seconds by default."""
    match shape.type_name:
        case "structure" if getattr(shape, "is_document_type", False):
            return value
        case "structure":
            return {
                wire_name(member, name): to_json(member, value[name])
                for name, member in shape.members.items()
                if value.get(name) is not None
            }
        case "list":
            return [to_json(shape.member, item) for item in value]
        case "map":
            return {key: to_json(shape.value, item) for key, item in value.items()}
        case "timestamp":
            form = shape.serialization.get("timestampFormat", "unixTimestamp")
            return value.timestamp() if form == "unixTimestamp" else to_text(shape, value, form)
        case "blob":
            return base64.b64encode(value).decode()
        case _:
            return value


def from_text(shape: Shape, text: str, where: str) -> Any:
    """Parses a scalar of a header, a query string, a path or a form. Raises ServiceError (SerializationException)."""
    try:
        match shape.type_name:
            case "boolean":
                return {"true": True, "false": False}[text.lower()]
            case kind if kind in _WHOLE:
                return int(text)
            case kind if kind in _FRACTIONS:
                return float(text)
    except (KeyError, ValueError):
        raise _unexpected(where, text, shape.type_name) from None
    return _scalar_from_json(shape, text, where)


def to_text(shape: Shape, value: Any, timestamp_format: str) -> str:
    """Renders a scalar for a header or an XML element. timestamp_format: unless the shape has another."""
    match shape.type_name:
        case "boolean":
            return "true" if value else "false"
        case "blob":
            return base64.b64encode(value).decode()
        case "timestamp":
            moment: datetime = value.astimezone(UTC)
            match shape.serialization.get("timestampFormat", timestamp_format):
                case "iso8601":
                    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
                case "rfc822":
                    return format_datetime(moment, usegmt=True)
                case _:
                    return str(moment.timestamp())
        case _:
            return str(value)


def expect(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """Checks the type of the value at `where` and returns it. Raises ServiceError (SerializationException) for another type."""
    if not isinstance(value, kind):
        raise _unexpected(where, value, _NAMES[kind if isinstance(kind, type) else kind[-1]])
    return value


def _scalar_from_json(shape: Shape, value: Any, where: str) -> Any:
    kind = shape.type_name
    if kind == "timestamp":
        return _timestamp(value, where)
    if kind == "blob":
        return _blob(value, where)
    if kind == "boolean":
        return expect(value, bool, where)
    if isinstance(value, bool):
        raise _unexpected(where, value, kind)
    if kind in _WHOLE:
        return expect(value, int, where)
    if kind in _FRACTIONS:
        return float(expect(value, (int, float), where))
    return expect(value, str, where)


def _timestamp(value: Any, where: str) -> datetime:
    try:
        return parse_timestamp(value).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, OSError, RuntimeError):
        raise _unexpected(where, value, "timestamp") from None


def _blob(value: Any, where: str) -> bytes:
    try:
        return base64.b64decode(expect(value, str, where), validate=True)
    except binascii.Error:
        raise _unexpected(where, value, "blob") from None


_NAMES: Mapping[type, str] = {
    dict: "structure",
    list: "list",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "float",
}


def _unexpected(where: str, value: Any, kind: str) -> ServiceError:
    return ServiceError("SerializationException", f"{where} is {shown(value)}; expected a value of type {kind}")


def _below(where: str, name: str) -> str:
    return name if where == "the request" else f"{where}.{name}"
