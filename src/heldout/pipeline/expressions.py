"""The expressions of a pipeline definition: `Get` and `Std:Join`, as SageMaker Pipelines has them. Pure functions."""

from collections.abc import Iterator, Mapping
from typing import Any

from heldout.errors import InputError, did_you_mean


def resolve(value: Any, scope: Mapping[str, Any]) -> Any:
    """Replace every expression in `value` by its value.

    scope: the nested objects that `Get` reads from, such as {"Execution": {...}, "Steps": {...}}. A null
    reads as None. Raises InputError for a path that does not exist.
    """
    match value:
        case {"Get": str(path)} if len(value) == 1:
            return _get(path, scope)
        case {"Std:Join": {"On": str(on), "Values": list(values)}} if len(value) == 1:
            return on.join(str(resolve(part, scope)) for part in values)
        case dict():
            return {name: resolve(part, scope) for name, part in value.items()}
        case list():
            return [resolve(part, scope) for part in value]
        case _:
            return value


def steps_read_by(value: Any) -> Iterator[str]:
    """Find the steps whose outcome an expression in `value` reads."""
    match value:
        case {"Get": str(path)} if len(value) == 1:
            if path.startswith("Steps."):
                yield path.split(".")[1]
        case dict():
            for part in value.values():
                yield from steps_read_by(part)
        case list():
            for part in value:
                yield from steps_read_by(part)


def _get(path: str, scope: Mapping[str, Any]) -> Any:
    found: Any = scope
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            names = found if isinstance(found, Mapping) else ()
            raise InputError(
                f"pipeline definition: nothing to get at {path!r}: no {part!r} there.{did_you_mean(part, names)}"
            )
        found = found[part]
    return found
