"""The registry that is in force: the file a user names, or else the one HELDOUT_REGISTRY names."""

import os
from pathlib import Path

from heldout.errors import ReferenceProblem
from heldout.job.registry import Registry

VARIABLE = "HELDOUT_REGISTRY"


def read_registry(path: str | Path | None = None) -> Registry:
    """The registry in the file at `path`, by default the one the environment names; an empty one when neither does.

    Raises ReferenceProblem when there is no such file, or it is no registry.
    """
    named = path or os.environ.get(VARIABLE)
    if not named:
        return Registry()
    file = Path(named)
    try:
        file = file.expanduser()
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last: the home of a user that there is not
        origin = "" if path else f" (named by {VARIABLE})"
        raise ReferenceProblem(f"registry {str(file)!r}{origin} cannot be read: {error}") from error
    return Registry.parse(text, where=repr(str(file)), folder=file.absolute().parent)
