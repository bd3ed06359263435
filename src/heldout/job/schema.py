"""The JSON Schema of the JobConfigDocument, generated from the models that read documents."""

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from heldout.job.document import JobConfigDocument
from heldout.job.hyperparameters import SPECIFICATIONS, Specification
from heldout.job.kinds.base import Reference
from heldout.job.references import agent_kinds, model_kinds

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_CHOICES = {
    "DataSource": ("S3DataSource", "DatasetSource", "FileDataSource"),
    "OutputDataConfig": ("S3OutputPath", "LocalOutputPath"),
}
"""Members of which exactly one must be set. Model code checks this, so pydantic cannot put it into the schema."""


def document_schema() -> dict[str, Any]:
    """Returns the schema of the document, version 1.0.0, with all spellings of hyperparameters and all kinds of references."""
    schema: dict[str, Any] = copy.deepcopy(JobConfigDocument.model_json_schema(by_alias=True))
    sections = schema["$defs"]
    kinds = {
        "AgentConfig": tuple(agent_kinds()),
        "EvaluationConfig": tuple(kind for kind in model_kinds() if not kind.needs_base),
    }
    for section, stored in kinds.items():
        for kind in stored:
            sections[section]["properties"][kind.section] = _member(kind, sections)
    choices = _CHOICES | {section: tuple(kind.section for kind in stored) for section, stored in kinds.items()}
    for section, names in choices.items():
        sections[section]["oneOf"] = [
            {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names
        ]
    sections["EvaluationConfig"]["properties"]["HyperParameters"] = _hyperparameters()
    return {"$schema": _DIALECT, **_plain(schema)}


def _member(kind: type[Reference], sections: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of the member that stores a kind of reference. Adds the definitions it refers to to `sections`."""
    stored = TypeAdapter(kind.stored).json_schema(by_alias=True)
    sections |= stored.pop("$defs", {})
    if stored.get("type") == "object":
        sections[stored["title"]] = stored
        stored = {"$ref": f"#/$defs/{stored['title']}"}
    return {"anyOf": [stored, {"type": "null"}], "default": None}


def _hyperparameters() -> dict[str, Any]:
    """Returns the schema with flat and nested names: a value may have any of its names."""
    flat: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for specification in SPECIFICATIONS.values():
        for name in (specification.name, *specification.spellings):
            section, dot, inner = name.rpartition(".")
            (sections.setdefault(section, {}) if dot else flat)[inner] = _value(specification)
    nested = {name: _object(members) for name, members in sections.items()}
    return _object(nested | flat)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value(specification: Specification) -> dict[str, Any]:
    default = specification.default
    described = {"description": specification.meaning, "default": default}
    if specification.choices:
        return described | {"enum": list(specification.choices)}
    if isinstance(default, bool):
        return described | {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false", "True", "False"]}]}
    if isinstance(default, tuple):
        count = {"type": "integer", "minimum": 1}
        array = {"type": "array", "items": count, "minItems": 1}
        return described | {"default": list(default), "anyOf": [array, count, {"type": "string"}]}
    kind = "integer" if isinstance(default, int) else "number"
    # Accepts text too: the SDK sends every value as text. The range still applies.
    return described | {"anyOf": [{"type": kind, **dict(_limits(specification))}, {"type": "string"}]}


def _limits(specification: Specification) -> Iterator[tuple[str, float]]:
    if specification.low is not None:
        yield "exclusiveMinimum" if specification.is_low_excluded else "minimum", specification.low
    if specification.high is not None:
        yield "maximum", specification.high


def _plain(value: Any) -> Any:
    """Removes titles, which only repeat the names."""
    if isinstance(value, dict):
        is_named = isinstance(value.get("title"), str)
        return {name: _plain(inner) for name, inner in value.items() if not (is_named and name == "title")}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
