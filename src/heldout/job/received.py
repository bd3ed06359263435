"""Checks of values that agents and model servers give, before anything is recorded: rewards, metrics, counts. Pure.

An answer and a report to the Job Runtime pass the same checks. What passes fits into the journal and into Arrow's columns.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from heldout.errors import shown
from heldout.job.json_values import clean_text, stored_json
from heldout.job.records import total_reward

log = logging.getLogger(__name__)

MOST_TOKENS = 2**40
"""No call has more tokens. The sum over the turns of a rollout stays within 64 bits, and exact in a float."""
MOST_METRIC_NAMES = 1_000
"""A job's results take time and memory for each name, whatever the number of rollouts that report it."""
RETURNED_BYTES = 64 * 1024
"""The most bytes of an agent's answer that are kept with the rollout, without reward and metrics."""


def finite_number(value: object) -> float | None:
    """Returns a JSON number as a float; None for any other value (booleans too), or one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def token_count(value: object) -> int | None:
    """Returns a count of tokens, from 0 to `MOST_TOKENS`; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MOST_TOKENS and value == int(value) else None


def reward_values(value: object) -> tuple[float, ...] | None:
    """Returns one or several finite numbers with a finite sum; None for anything else. true and false are 1 and 0."""
    values = value if isinstance(value, list) else [value]
    rewards = [float(one) if isinstance(one, bool) else finite_number(one) for one in values]
    finite = tuple(one for one in rewards if one is not None)
    return finite if finite and len(finite) == len(rewards) and math.isfinite(total_reward(finite)) else None


@dataclass(frozen=True, slots=True)
class GivenMetrics:
    """An agent's metrics, checked."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """Finite; true and false are 1 and 0."""
    labels: Mapping[str, object] = field(default_factory=dict)
    """Values that are not numbers, such as a category: texts, lists and objects."""
    problems: tuple[str, ...] = ()
    """The reason, in one line, for each metric that cannot be kept."""


def given_metrics(value: object) -> GivenMetrics:
    """Sorts an agent's metrics into numbers, labels and problems. null, alone or as a metric's value, stands for no value."""
    if value is None:
        return GivenMetrics()
    if not isinstance(value, Mapping):
        return GivenMetrics(problems=(f"Metrics is {shown(value)}; it must be an object of values by name",))
    numbers: dict[str, float] = {}
    labels: dict[str, object] = {}
    problems = []
    for name, given in value.items():
        number = float(given) if isinstance(given, bool) else finite_number(given)
        if not isinstance(name, str) or not name.strip():
            problems.append(f"Metrics[{name!r}] has no name; every metric needs one")
        elif clean_text(name) != name:
            problems.append(f"Metrics[{name!r}] has half of a surrogate pair in its name, which UTF-8 cannot carry")
        elif number is not None:
            numbers[name] = number
        elif isinstance(given, int | float):
            problems.append(f"Metrics[{name!r}] is {shown(given)}; a number must be finite")
        elif given is not None:
            labels[name] = given
    return GivenMetrics(numbers, labels, tuple(problems))


def stored_object(fields: Mapping[str, object], room: int = RETURNED_BYTES) -> tuple[bytes, bool]:
    """Encodes the fields as a JSON object of at most `room` bytes, in order, and says whether all of them had room.

    Returns no bytes without fields. A field that is nested too deeply has no room.
    """
    parts: list[bytes] = []
    size, is_whole = 2, True
    for name, value in fields.items():
        try:
            part = stored_json(name) + b":" + stored_json(value)
        except TypeError:
            is_whole = False
            continue
        if size + len(part) + 1 > room:
            is_whole = False
            continue
        parts.append(part)
        size += len(part) + 1
    return (b"{" + b",".join(parts) + b"}" if parts else b""), is_whole


class MetricNames:
    """The names of one job's metrics. Each is a column and has a mean with an interval, so their number is limited."""

    def __init__(self, most: int = MOST_METRIC_NAMES) -> None:
        self._most = most
        self._names: set[str] = set()
        self._has_warned = False

    def accepted(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics whose names the job has, or has room for."""
        accepted = {}
        for name, number in numbers.items():
            if name not in self._names:
                if len(self._names) >= self._most:
                    self._warn(name)
                    continue
                self._names.add(name)
            accepted[name] = number
        return accepted

    def _warn(self, name: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the metric %s is not kept: the job has %d names of metrics, the most there may be. Give a metric the "
                "same name in every rollout, and put what differs into its value",
                shown(name),
                self._most,
            )
