"""The index of evaluations started on this machine: one line each in the user's state folder, only ever appended.

It holds ARN and location; an evaluation's state is in its folder. A line that cannot be read, or whose evaluation is gone, is
skipped.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from heldout.backends.registry_file import read_registry
from heldout.errors import HeldoutError, ReferenceProblem, RunError, did_you_mean
from heldout.pipeline.evaluation import Evaluation
from heldout.runs.remote_mirror import state_folder
from heldout.storage.storage import expanded


def remember(evaluation: Evaluation) -> None:
    """Adds an evaluation to the index."""
    line = json.dumps({"arn": evaluation.state.arn, "location": _absolute(evaluation.location)}) + "\n"
    path = _index()
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write to a file opened for appending: lines of two processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def known_evaluations() -> Iterator[Evaluation]:
    """Yields the evaluations that still exist, the last started first."""
    for location in reversed(list(_locations().values())):
        try:
            yield Evaluation.open(location)
        except HeldoutError:
            continue


def is_known(arn: str) -> bool:
    """Whether an evaluation with this execution ARN was started on this machine."""
    return arn in _locations()


def locate(place: str | os.PathLike[str]) -> str:
    """Returns where a place lies: for an ARN of this machine the evaluation's folder or URI, for an `s3://` URI the folder that
    the registry file maps its bucket to. Any other place is returned as it is, `~` expanded.

    Raises ReferenceProblem when HELDOUT_REGISTRY names no registry, RunError when the evaluation of the ARN is gone.
    """
    given = os.fspath(place)
    if is_known(given):
        return find_evaluation(given).location
    return read_registry().location(expanded(given))


def known_arns() -> list[str]:
    """The ARNs of all evaluations that were started on this machine."""
    return list(_locations())


def find_evaluation(arn_or_path: str | Path) -> Evaluation:
    """Opens the evaluation with this execution ARN, or at this path or `s3://` URI.

    Raises ReferenceProblem for an ARN that was not started on this machine, RunError when the evaluation does not exist any more.
    """
    given = str(arn_or_path)
    if not given:
        raise ReferenceProblem("the evaluation is ''; give its folder, its s3:// URI or its ARN")
    if not given.startswith("arn:"):
        return Evaluation.open(given)
    locations = _locations()
    if given not in locations:
        raise ReferenceProblem(
            f"no evaluation {given!r} was started on this machine; give the folder it is in.{did_you_mean(given, locations)}"
        )
    try:
        return Evaluation.open(locations[given])
    except RunError as error:
        raise RunError(
            f"evaluation {given} is no longer in {locations[given]}; give the folder that it was moved to, if it was"
        ) from error


def _locations() -> dict[str, str]:
    """Returns locations by ARN, in the order in which the evaluations were started."""
    found: dict[str, str] = {}
    path = _index()
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found[entry["arn"]] = entry["location"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())


def _index() -> Path:
    return state_folder() / "evaluations.jsonl"
