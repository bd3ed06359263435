"""Names of candidates: what a user calls the models of an evaluation. A candidate's run lies in a folder of its name."""

import re
from typing import NamedTuple

from heldout.errors import ReferenceProblem, shown
from heldout.job.kinds.base import ModelReference

_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,61}\w)?", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_CHARACTERS = 63
_UNNAMED = "model"
"""The name of a model that has none of its own, such as the only one of an endpoint."""
_BASELINE = "baseline"
"""The name of a baseline whose own name is the evaluated model's too."""
_TAKEN = frozenset(
    {
        *("comparison.json", "concluded", "execution.json", "lineage.json", "lock", "mlflow.db", "progress.json"),
        *("remote.json", "report.html", "runner.log"),
    }
)
"""Files of an evaluation's folder, which holds the runs' folders too."""


class NamedModel(NamedTuple):
    """A model as a user gives it: `tuned=http://host:port/v1#served-name`, or without a name."""

    name: str | None
    text: str
    """The model without its name."""


class CandidateNames(NamedTuple):
    """The names of an evaluation's candidates."""

    evaluated: str
    baseline: str


def split_name(text: str) -> NamedModel:
    """Splits `NAME=MODEL`. Text without a name is returned whole: `http://a/v1?key-variable=KEY` has none.

    Raises ReferenceProblem for a name that cannot be one.
    """
    name, equals, model = text.partition("=")
    if not equals or any(mark in name for mark in "/:?#"):
        return NamedModel(None, text)
    if not _NAME.fullmatch(name) or name.casefold() in _TAKEN:
        raise ReferenceProblem(
            f"candidate name {shown(name)} of model {shown(text)} is not one; expected up to {_MOST_CHARACTERS} letters, digits, "
            "`.`, `_` and `-`, such as tuned or step_240, but not the name of one of an evaluation's files (report.html); a path "
            "with `=` is written ./PATH"
        )
    return NamedModel(name, model)


def candidate_names(
    evaluated: ModelReference, baseline: ModelReference | None, *, given: tuple[str | None, str | None]
) -> CandidateNames:
    """Names the candidates: as given, else by the models' own names.

    given: names of the evaluated model and of the baseline. Raises ReferenceProblem when one name is given to both.
    """
    own, other = given
    first = own or own_name(evaluated)
    if baseline is None:
        return CandidateNames(first, other or _BASELINE)
    second = other or own_name(baseline)
    # Names that differ in case alone are one folder on some systems.
    if first.casefold() == second.casefold():
        if own is not None and other is not None:
            raise ReferenceProblem(f"candidate name {first!r} is given to both models; give each a name of its own")
        if other is not None:
            first = _UNNAMED if other.casefold() != _UNNAMED else "candidate"
        else:
            second = _BASELINE if first.casefold() != _BASELINE else "reference"
    return CandidateNames(first, second)


def own_name(model: ModelReference) -> str:
    """The name of a model that the user did not name: the last part of its label, in characters of a name."""
    label = re.sub(r"(:model-package/[^/]+|:hub-content/.+)/[\d.]+$", r"\1", model.label)
    if label.startswith(("http://", "https://")):
        return _UNNAMED
    last = re.split(r"[/:]", label.rstrip("/"))[-1]
    name = _NOT_IN_NAMES.sub("-", last).strip("-.")[:_MOST_CHARACTERS].strip("-.")
    return _UNNAMED if not name or name.casefold() in _TAKEN else name
