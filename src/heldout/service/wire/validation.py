"""Validation of a request's parameters by the service's model: required members, lengths, ranges, patterns, enums.

The messages are those of the services, because clients match on them. Pure functions.
"""

import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from botocore.model import OperationModel

from heldout.errors import shown
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.shapes import Shape

_UNICODE_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{M}": r"\w",
    r"\p{N}": r"\d",
    r"\p{Z}": " \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000",
    r"\p{Alnum}": "a-zA-Z0-9",
}
"""Java's character classes in Python's syntax, inside a set. `\\w` also matches digits, which no model's pattern depends on."""
_LENGTHS = ("string", "blob", "list", "map")
_NUMBERS = ("integer", "long", "float", "double")


def check_request(operation: OperationModel, params: dict[str, Any]) -> None:
    """Raises ServiceError that lists every member which breaks its constraints."""
    if operation.input_shape is None:
        return
    check_value(operation.input_shape, params, "", _code(operation))


def check_value(shape: Shape, value: Any, where: str, code: str = "ValidationException") -> None:
    """Checks one value. where: its path, for messages. Raises ServiceError with this code."""
    found = list(_problems(shape, value, where))
    if found:
        count = f"{len(found)} validation error{'s' if len(found) > 1 else ''} detected: "
        raise ServiceError(code, count + "; ".join(found), reason="FieldValidationFailed")


def _code(operation: OperationModel) -> str:
    """The error code for invalid parameters of the operation's service."""
    if operation.service_model.metadata["protocol"] == "query":
        return "ValidationError"
    named = {shape.name for shape in operation.error_shapes}
    return "InvalidParameterException" if "InvalidParameterException" in named else "ValidationException"


def _problems(shape: Shape, value: Any, where: str) -> Iterator[str]:
    match shape.type_name:
        case "structure" if not getattr(shape, "is_document_type", False):
            for name in shape.required_members:
                if value.get(name) is None:
                    yield _failed("null", _below(where, name), "Member must not be null")
            for name, inner in value.items():
                yield from _problems(shape.members[name], inner, _below(where, name))
        case "list":
            yield from _own_problems(shape, value, where)
            for number, item in enumerate(value, 1):
                yield from _problems(shape.member, item, f"{where}.{number}.member")
        case "map":
            yield from _own_problems(shape, value, where)
            for key, item in value.items():
                yield from _problems(shape.key, key, where)
                yield from _problems(shape.value, item, f"{where}.{key}.member")
        case _:
            yield from _own_problems(shape, value, where)


def _own_problems(shape: Shape, value: Any, where: str) -> Iterator[str]:
    limits, kind = shape.metadata, shape.type_name
    text = f"'{value}'" if isinstance(value, str) and len(value) < 200 else shown(value)
    if kind in _LENGTHS:
        if "min" in limits and len(value) < limits["min"]:
            yield _failed(text, where, f"Member must have length greater than or equal to {limits['min']}")
        if "max" in limits and len(value) > limits["max"]:
            yield _failed(text, where, f"Member must have length less than or equal to {limits['max']}")
            return  # do not match a pattern against a text of unbounded length
    elif kind in _NUMBERS:
        if "min" in limits and value < limits["min"]:
            yield _failed(text, where, f"Member must have value greater than or equal to {limits['min']}")
        if "max" in limits and value > limits["max"]:
            yield _failed(text, where, f"Member must have value less than or equal to {limits['max']}")
    if kind == "string":
        if limits.get("enum") and value not in limits["enum"]:
            yield _failed(text, where, f"Member must satisfy enum value set: [{', '.join(limits['enum'])}]")
        pattern = limits.get("pattern")
        if pattern and (compiled := _compiled(pattern)) and not compiled.fullmatch(value):
            yield _failed(text, where, f"Member must satisfy regular expression pattern: {pattern}")


def _failed(value: str, where: str, constraint: str) -> str:
    return f"Value {value} at '{where}' failed to satisfy constraint: {constraint}"


def _below(where: str, name: str) -> str:
    member = name[:1].lower() + name[1:]
    return f"{where}.{member}" if where else member


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The compiled pattern; None for the few patterns in models that are not valid regular expressions."""
    for java, python in _UNICODE_CLASSES.items():
        pattern = pattern.replace(java, python)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(pattern)
    except re.error:
        return None
