"""Hyperparameters in the spelling that an endpoint accepts, chosen by the JSON schema that it enforces.

Three spellings are in use (`heldout.job.hyperparameters`). The schema, from DescribeJobSchemaVersion, decides which
one an endpoint takes, and whether values are numbers or text. No value is dropped.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from heldout.errors import HyperparameterError, did_you_mean, shown
from heldout.job.hyperparameters import SPECIFICATIONS, Value

Schema = Mapping[str, Any]
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_PATH = ("EvaluationConfig", "HyperParameters")


def spelled(values: Mapping[str, Value], document_schema: Schema) -> dict[str, Any]:
    """The values, by canonical name, as the HyperParameters section of a job document with this schema.

    The nested spelling of the developer guide is tried first, then the flat one. A schema without names gets the
    SDK's form: every value as text. Raises HyperparameterError for a value that the schema does not accept.
    """
    if not values:
        return {}
    section = _at(document_schema, _PATH, document_schema)
    if section is None:
        raise HyperparameterError(
            f"the endpoint's job document has no hyperparameters, and {', '.join(map(repr, values))} are set; leave them out"
        )
    if not section.get("properties") and section.get("additionalProperties") is not False:
        return {name: _text(_plain(value)) for name, value in values.items()}
    result: dict[str, Any] = {}
    for name, value in values.items():
        path, form = _placed(name, _plain(value), section, document_schema)
        inner = result
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = form
    return result


def _placed(name: str, value: object, section: Schema, root: Schema) -> tuple[tuple[str, ...], object]:
    """The path of the value in the section, and its form."""
    places = [(path, found) for path in _paths(name) if (found := _at(section, path, root)) is not None]
    for path, schema in places:
        for form in (value, _text(value)):
            if _takes(schema, form, root):
                return path, form
    if places:
        path, schema = places[0]
        limits = {key: schema[key] for key in schema if key not in ("description", "title", "default")}
        raise HyperparameterError(
            f"hyperparameter {name!r} is {shown(value)}; the endpoint takes {'.'.join(path)} as {shown(limits, 160)}"
        )
    known = sorted(
        {".".join(path) for other in SPECIFICATIONS for path in _paths(other) if _at(section, path, root) is not None}
    )
    raise HyperparameterError(
        f"hyperparameter {name!r} is set to {shown(value)}, and the endpoint does not have it; leave it out, or run with "
        f"backend='local'.{did_you_mean(name, known) or ' It has: ' + ', '.join(known)}"
    )


def _paths(name: str) -> Iterator[tuple[str, ...]]:
    """The spellings, the nested one first."""
    spellings = (*SPECIFICATIONS[name].spellings, name)
    yield from (tuple(spelling.split(".")) for spelling in sorted(spellings, key=lambda text: "." not in text))


def _at(section: Schema, path: tuple[str, ...], root: Schema) -> Schema | None:
    """The schema at the end of a path of members."""
    found: Schema | None = section
    for part in path:
        found = None if found is None else _member(found, part, root)
    return found


def _member(schema: Schema, name: str, root: Schema) -> Schema | None:
    """The schema of a named member, in the schema itself or in one of its `allOf`, `anyOf` and `oneOf` parts."""
    schema = _resolved(schema, root)
    if name in schema.get("properties", {}):
        return _resolved(schema["properties"][name], root)
    for part in (part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ())):
        if (found := _member(part, name, root)) is not None:
            return found
    return None


def _resolved(schema: Schema, root: Schema) -> Schema:
    while isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
        target: Any = root
        for part in reference.lstrip("#/").split("/"):
            target = target.get(part.replace("~1", "/").replace("~0", "~"), {})
        schema = target
    return schema


def _takes(schema: Schema, value: object, root: Schema) -> bool:
    """Whether a value matches a schema, for the part of JSON Schema that describes hyperparameters."""
    schema = _resolved(schema, root)
    if any(not _takes(part, value, root) for part in schema.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_takes(part, value, root) for part in schema[key]):
            return False
    if not _has_type(schema.get("type"), value):
        return False
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        return False
    match value:
        case str():
            return re.search(schema.get("pattern", ""), value) is not None
        case bool():
            return True
        case int() | float():
            return _is_within(schema, value)
        case list():
            return len(value) >= schema.get("minItems", 0) and all(
                _takes(schema.get("items", {}), item, root) for item in value
            )
    return True


def _has_type(wanted: object, value: object) -> bool:
    if wanted is None:
        return True
    names = [str(name) for name in (wanted if isinstance(wanted, list) else [wanted])]
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return any(isinstance(value, _TYPES.get(name, ())) for name in names)


def _is_within(schema: Schema, value: float) -> bool:
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def _plain(value: Value) -> object:
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    """A value as the SDK's strings have it."""
    return value if isinstance(value, str) else json.dumps(value)
