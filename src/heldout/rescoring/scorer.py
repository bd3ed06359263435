"""A user's scorer: found, run on one recorded trajectory at a time, and what it returns made into a score.

A scorer is a function that takes a `RecordedTrajectory` and returns a number, `(number, {"name": number})` or
`{"score": number, "metrics": {"name": number}}`; it may be async. What it raises is data.
"""

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from heldout.agents.entry_point_lookup import check_entry_point, parse_entry_point
from heldout.agents.worker.loading import LoadProblem, describe, load, set_path
from heldout.errors import ReferenceProblem, shown
from heldout.runs.recordings import RecordedTrajectory


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer says of one trajectory."""

    value: float
    """NaN when there is an error."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    """Why there is no score: what the scorer raised, or what it returned that is no score."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer, loaded."""

    name: str
    """Of the file or module and the function, fit for a file's name: `judge-strict` for `judge.py:strict`."""
    is_async: bool
    _function: Callable[[RecordedTrajectory], Any]
    _folder: Path

    @classmethod
    def load(cls, entry_point: str, *, working_directory: Path | None = None) -> Self:
        """Loads `file.py:function` or `package.module:function`, relative to the current folder by default.

        Raises ReferenceProblem when there is no such file or function, when it cannot be imported, or called with one argument.
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
        if not _takes_one(function):
            raise ReferenceProblem(
                f"scorer {entry_point!r} takes {inspect.signature(function)}; it is called with one argument, the trajectory"
            )
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an instance whose call is async
        )
        stem = Path(parsed.source).stem if parsed.is_file else parsed.source.rpartition(".")[2]
        return cls(f"{stem}-{parsed.name}", is_async, function, loaded.folder)

    async def score(self, trajectory: RecordedTrajectory) -> Score:
        """What the scorer says. A function that is not async runs in a thread, so that the loop stays free."""
        try:
            if self.is_async:
                given = await self._function(trajectory)
            else:
                given = await asyncio.to_thread(self._function, trajectory)
                if inspect.isawaitable(given):
                    given = await given
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything; it is data
            return Score(math.nan, error=": ".join(describe(error, self._folder)))
        return parsed_score(given)


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether it can be called with one argument, as far as can be seen."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # nothing is known of it: it is written in C
        return True
    return True


def parsed_score(given: object) -> Score:
    """What a scorer returned as a Score; one with an error when it is not a score."""
    value, metrics = _parts(given)
    number = _finite(value)
    if number is None:
        return Score(math.nan, error=f"it returned {shown(given)}, which is no finite number, alone or with metrics")
    named = {str(name): _finite(metric) for name, metric in metrics.items()}
    bad = [name for name, metric in named.items() if metric is None]
    if bad:
        return Score(math.nan, error=f"its metric {bad[0]!r} is {shown(metrics[bad[0]])}, which is no finite number")
    return Score(number, {name: metric for name, metric in named.items() if metric is not None})


def _parts(given: object) -> tuple[object, Mapping[str, object]]:
    match given:
        case {"score": value, **rest}:
            metrics = rest.get("metrics")
        case (value, metrics):
            pass
        case _:
            value, metrics = given, None
    return value, metrics if isinstance(metrics, Mapping) else {}


def _finite(value: object) -> float | None:
    """Any kind of number, numpy's too, as a float; None for what is not a finite one."""
    if not isinstance(value, numbers.Real) and not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
