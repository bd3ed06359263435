"""Parses and checks a pipeline definition: its steps, in an order in which they can run."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from heldout.errors import InputError, did_you_mean, shown
from heldout.job.document import JobConfigDocument
from heldout.pipeline.definition import JOB_CATEGORY, VERSION
from heldout.pipeline.expressions import steps_read_by

_STEP_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The service's rule. A step's run is stored in a folder of this name."""

LINEAGE_NAMES = {"Actions": "ActionName", "Contexts": "ContextName", "Artifacts": "ArtifactName"}
"""The field that names an entry, by section of a lineage step. Associations have no names."""


@dataclass(frozen=True, slots=True)
class LineageStep:
    """A step that records lineage."""

    name: str
    arguments: dict[str, Any]
    """Actions, Contexts, Artifacts and Associations, with unresolved expressions."""


@dataclass(frozen=True, slots=True)
class JobStep:
    """A step that plays one job."""

    name: str
    document: JobConfigDocument
    tags: tuple[tuple[str, str], ...]


Step = LineageStep | JobStep


@dataclass(frozen=True, slots=True)
class Definition:
    """A pipeline. Each step comes after the steps that it depends on."""

    steps: tuple[Step, ...]
    parameters: dict[str, Any]
    """Default value by name; None where there is none."""


def parse_definition(definition: str | Mapping[str, Any]) -> Definition:
    """Parse a definition from its JSON text or object.

    Raises InputError for an invalid definition, a step type other than Job and Lineage, another job category, an invalid job
    document, and steps that depend on each other or on a missing step.
    """
    value = _loaded(definition)
    if value.get("Version") != VERSION:
        raise InputError(f"pipeline definition: Version is {shown(value.get('Version'))}; it must be {VERSION!r}")
    raw = value.get("Steps")
    if not isinstance(raw, list) or not raw:
        raise InputError(f"pipeline definition: Steps is {shown(raw)}; it must be a list of steps")
    by_name = {_name(step): step for step in raw}
    if len(by_name) < len(raw):
        raise InputError("pipeline definition: two steps have the same Name")
    steps = tuple(_step(name, by_name[name]) for name in _ordered(by_name))
    return Definition(steps, _parameters(value.get("Parameters", [])))


def _loaded(definition: str | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        value = json.loads(definition) if isinstance(definition, str) else definition
    except ValueError as error:
        raise InputError(f"pipeline definition is not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise InputError(f"pipeline definition is {shown(value)}; it must be a JSON object")
    return value


def _parameters(raw: object) -> dict[str, Any]:
    if not isinstance(raw, list) or not all(isinstance(parameter, Mapping) for parameter in raw):
        raise InputError(f"pipeline definition: Parameters is {shown(raw)}; it must be a list of objects")
    return {str(parameter.get("Name")): parameter.get("DefaultValue") for parameter in raw}


def _name(step: object) -> str:
    name = step.get("Name") if isinstance(step, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"pipeline definition: step {shown(step)} has no Name")
    if not _STEP_NAME.fullmatch(name):
        raise InputError(
            f"pipeline definition: step Name {shown(name)} is not one; it must be up to 64 letters, digits, - and _"
        )
    return name


def _ordered(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Order the names as written, except that a step follows the steps it needs."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for name, step in steps.items():
        after = step.get("DependsOn", [])
        if not isinstance(after, list) or not all(isinstance(other, str) for other in after):
            raise InputError(f"pipeline step {name!r}: DependsOn is {shown(after)}; it must be a list of steps' names")
        needed = {*after, *steps_read_by(step.get("Arguments", {}))}
        for other in needed:
            if other not in steps:
                raise InputError(
                    f"pipeline definition: step {name!r} depends on {other!r}, which is no step.{did_you_mean(other, steps)}"
                )
        order.add(name, *needed)
    try:
        order.prepare()
    except CycleError as error:
        raise InputError(f"pipeline definition: steps depend on each other: {' -> '.join(error.args[1])}") from error
    position = {name: number for number, name in enumerate(steps)}
    ready: list[str] = []
    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=position.__getitem__)
        yield (first := ready.pop(0))
        order.done(first)


def _step(name: str, step: Mapping[str, Any]) -> Step:
    kind, arguments = step.get("Type"), step.get("Arguments")
    if not isinstance(arguments, Mapping):
        raise InputError(f"pipeline step {name!r}: Arguments is {shown(arguments)}; it must be an object")
    if kind == "Lineage":
        return LineageStep(name, _lineage(name, arguments))
    if kind != "Job":
        raise InputError(f"pipeline step {name!r}: Type is {shown(kind)}; there are 'Job' and 'Lineage'")
    return _job_step(name, arguments)


def _lineage(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    for section, entries in arguments.items():
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InputError(f"pipeline step {name!r}: {section} is {shown(entries)}; it must be a list of objects")
        if section in LINEAGE_NAMES and any(LINEAGE_NAMES[section] not in entry for entry in entries):
            raise InputError(f"pipeline step {name!r}: one of {section} has no {LINEAGE_NAMES[section]}")
    return dict(arguments)


def _job_step(name: str, arguments: Mapping[str, Any]) -> JobStep:
    if (category := arguments.get("JobCategory")) != JOB_CATEGORY:
        raise InputError(f"pipeline step {name!r}: JobCategory is {shown(category)}; it must be {JOB_CATEGORY!r}")
    text = arguments.get("JobConfigDocument")
    if not isinstance(text, str):
        raise InputError(f"pipeline step {name!r}: JobConfigDocument is {shown(text)}; it must be a JSON string")
    try:
        document = JobConfigDocument.parse(text)
    except InputError as error:
        raise InputError(f"pipeline step {name!r}: {error}") from error
    return JobStep(name, document, tuple((tag["Key"], tag["Value"]) for tag in _tags(name, arguments.get("Tags", []))))


def _tags(name: str, raw: object) -> list[dict[str, str]]:
    if not isinstance(raw, list) or not all(_is_tag(tag) for tag in raw):
        raise InputError(
            f"pipeline step {name!r}: Tags is {shown(raw)}; it must be a list of objects with Key and Value"
        )
    return raw


def _is_tag(tag: object) -> bool:
    return isinstance(tag, Mapping) and isinstance(tag.get("Key"), str) and isinstance(tag.get("Value"), str)
