"""The registry in force: the file that the user names, else the one that HELDOUT_REGISTRY names."""

import os
from pathlib import Path

from pydantic import BaseModel

from heldout.errors import ReferenceProblem
from heldout.job.registry import Registry
from heldout.storage.storage import expanded

VARIABLE = "HELDOUT_REGISTRY"
_PATHS = {"models": "model", "model_packages": "model", "agents": "agent", "datasets": "path", "buckets": "folder"}
"""The field that may be a path, for the entries of each section."""


def read_registry(path: str | Path | None = None) -> Registry:
    """Reads the registry at `path`, by default the one that the environment names. Without either, the registry is empty.

    Raises ReferenceProblem when the file cannot be read or holds no registry.
    """
    named = path or os.environ.get(VARIABLE)
    if not named:
        return Registry()
    file = Path(expanded(str(named)))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        origin = "" if path else f" (named by {VARIABLE})"
        raise ReferenceProblem(f"registry {str(file)!r}{origin} cannot be read: {error}") from error
    return _expanded(Registry.parse(text, where=repr(str(file)), folder=file.absolute().parent))


def _expanded(registry: Registry) -> Registry:
    """The registry with `~` expanded in its paths."""
    sections = {
        section: {name: _expanded_entry(entry, field) for name, entry in getattr(registry, section).items()}
        for section, field in _PATHS.items()
    }
    return registry.model_copy(update=sections)


def _expanded_entry(entry: BaseModel, field: str) -> BaseModel:
    path = getattr(entry, field)
    return entry if path is None else entry.model_copy(update={field: expanded(path)})
