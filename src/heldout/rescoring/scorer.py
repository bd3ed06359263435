"""Loads a user's scorer, calls it with one recorded trajectory at a time, and checks the score that it returns.

A scorer is a function that takes a `RecordedTrajectory` and returns a number, `(number, {"name": number})` or
`{"score": number, "metrics": {"name": number}}`; it may be async. An exception in it is recorded as the
trajectory's error.
"""

import asyncio
import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from heldout.agents.entry_point_lookup import check_entry_point, parse_entry_point
from heldout.agents.worker.loading import LoadProblem, describe, load, set_path
from heldout.errors import ReferenceProblem, shown
from heldout.job.json_values import clean_text
from heldout.runs.recordings import RecordedTrajectory

ScorerFunction = Callable[[RecordedTrajectory], Any]
"""A scorer as a Python function, async or not."""


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's result for one trajectory."""

    value: float
    """NaN when there is an error."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    """The exception in the scorer, or the returned value that is not a score; None if there is a score."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer that is ready to be called."""

    name: str
    """File or module and function, as used in file names: `judge-strict` for `judge.py:strict`."""
    is_async: bool
    _function: ScorerFunction
    _folder: Path

    @classmethod
    def load(cls, entry_point: str, *, working_directory: Path | None = None) -> Self:
        """Loads `file.py:function` or `package.module:function`, relative to the current folder by default.

        Raises ReferenceProblem when there is no such file or function, or when it cannot be imported or called with one
        argument.
        """
        folder = working_directory or Path.cwd()
        check_entry_point(entry_point, working_directory=folder, role="scorer")
        parsed = parse_entry_point(entry_point, role="scorer")
        try:
            set_path(parsed, folder)
            loaded = load(parsed, folder)
        except LoadProblem as problem:
            raise ReferenceProblem(str(problem)) from problem
        function: Any = loaded.target
        _check_signature(repr(entry_point), function)
        stem = Path(parsed.source).stem if parsed.is_file else parsed.source.rpartition(".")[2]
        return cls(f"{stem}-{parsed.name}", _is_async(function), function, loaded.folder)

    @classmethod
    def of(cls, function: ScorerFunction) -> Self:
        """Takes a function of the calling program. Raises ReferenceProblem when it cannot be called with one argument."""
        if not callable(function):
            raise ReferenceProblem(f"scorer {shown(function)} is not a function; give one, or 'file.py:function'")
        name: str = getattr(function, "__qualname__", type(function).__qualname__)
        _check_signature(repr(name), function)
        module: str = getattr(function, "__module__", type(function).__module__) or "scorer"
        named = re.sub(r"[^A-Za-z0-9_.-]+", "", f"{module.rpartition('.')[2].strip('_')}-{name.rpartition('.')[2]}")
        return cls(named, _is_async(function), function, Path.cwd())

    async def score(self, trajectory: RecordedTrajectory) -> Score:
        """Scores one trajectory. A function that is not async runs in a thread, so that the event loop stays free."""
        try:
            if self.is_async:
                given = await self._function(trajectory)
            else:
                given = await asyncio.to_thread(self._function, trajectory)
                if inspect.isawaitable(given):
                    given = await given
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the rescoring itself was cancelled
            # The scorer waited for a task that was cancelled.
            return Score(math.nan, error=": ".join(describe(error, self._folder)))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything; it is data
            return Score(math.nan, error=": ".join(describe(error, self._folder)))
        return parsed_score(given)


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    if not _takes_one(function):
        raise ReferenceProblem(
            f"scorer {name} takes {inspect.signature(function)}; it is called with one argument, the trajectory"
        )


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an instance whose call is async
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether the function can be called with one argument; True where its signature is unknown."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a function written in C may have no signature
        return True
    return True


def parsed_score(given: object) -> Score:
    """Converts what a scorer returned; the Score has an error when the value is no finite number."""
    value, metrics = _parts(given)
    number = None if value is _NO_SCORE else _finite(value)
    if number is None:
        return Score(
            math.nan, error=f"it returned {shown(given)}, but a score is a finite number, alone or with metrics"
        )
    named = {str(name): _finite(metric) for name, metric in metrics.items()}
    unnamed = [name for name in named if not name.strip() or clean_text(name) != name]
    if unnamed:
        return Score(
            math.nan, error=f"its metric {unnamed[0]!r} has a name that cannot be kept; give it one in plain text"
        )
    bad = [name for name, metric in named.items() if metric is None]
    if bad:
        return Score(math.nan, error=f"its metric {bad[0]!r} is {shown(metrics[bad[0]])}, which is no finite number")
    return Score(number, {name: metric for name, metric in named.items() if metric is not None})


_NO_SCORE = object()
"""Stands for the score where none is given."""


def _parts(given: object) -> tuple[object, Mapping[str, object]]:
    match given:
        case {"score": value, **rest}:
            metrics = rest.get("metrics")
        case (value, (Mapping() | None) as metrics):
            pass
        case list() | tuple():
            value, metrics = _NO_SCORE, None
        case _:
            value, metrics = given, None
    return value, metrics if isinstance(metrics, Mapping) else {}


def _finite(value: object) -> float | None:
    """Converts a number of any kind, numpy's included; None when it is not finite or no number."""
    if not isinstance(value, numbers.Real) and not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
