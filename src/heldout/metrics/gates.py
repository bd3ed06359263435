"""Gates: conditions on a run's numbers, for pipelines that must stop when one does not hold."""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from heldout.errors import MetricError, did_you_mean, shown
from heldout.metrics.comparison import Comparison
from heldout.metrics.summary import Summary

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_EXPRESSION = re.compile(
    r"\s*(?:(?P<end>lower|upper)\s*\(\s*(?P<inner>[\w/.\-]+)\s*\)|(?P<name>[\w/.\-]+))"
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)
_PREFIXES = ("", "eval/reward/", "eval/turns/", "eval/tokens/", "eval/logprob/", "eval/", "agent/", "timing_s/")
"""Where a short name is looked for, in this order: `pass_at_1`, `turns/mean`, `completed`."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A parsed condition such as `lower(pass_at_1) >= 0.5`."""

    text: str
    metric: str
    """As the user wrote it."""
    end: str | None
    """`lower` or `upper` end of the interval; None for the value itself."""
    operator: str
    value: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether one condition holds, and one line that says why."""

    requirement: str
    passed: bool
    reason: str


def parse_requirement(text: str) -> Requirement:
    """Reads `METRIC >= NUMBER`, `lower(METRIC) >= NUMBER` or `upper(METRIC) <= NUMBER` (operators >=, <=, >, <).

    Raises MetricError, an InputError, when the text is not of this form.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise MetricError(
            f"requirement {shown(text)} cannot be read; write METRIC >= NUMBER or lower(METRIC) >= NUMBER,"
            " such as 'lower(pass_at_1) >= 0.5'"
        )
    return Requirement(
        text=text.strip(),
        metric=match["inner"] or match["name"],
        end=match["end"],
        operator=match["operator"],
        value=float(match["value"]),
    )


def check_requirement(requirement: Requirement, summary: Summary) -> GateResult:
    """Holds the condition against a run. A number that the run cannot give does not pass; the reason says why it cannot.

    Raises MetricError when the metric's name is not one of the run's.
    """
    name = _full_name(requirement.metric, summary)
    if name not in summary.metrics:
        return GateResult(requirement.text, False, f"{name} is not known: {summary.notes[name]}")
    if requirement.end is None:
        found, words = summary.metrics[name], name
    else:
        if name not in summary.intervals:
            why = summary.notes.get(name, "this metric has no interval")
            return GateResult(requirement.text, False, f"{name} has no bounds: {why}")
        low, high = summary.intervals[name]
        found, words = (low, f"lower end of {name}") if requirement.end == "lower" else (high, f"upper end of {name}")
    passed = _COMPARE[requirement.operator](found, requirement.value)
    verb = "meets" if passed else "misses"
    return GateResult(
        requirement.text, passed, f"{words} is {found:.4g}, which {verb} {requirement.operator} {requirement.value:g}"
    )


def check_no_regression(comparison: Comparison, margin: float, metric: str | None = None) -> GateResult:
    """Passes when the run is shown not to be worse than the reference by more than `margin`: the whole interval of the
    difference lies above -margin. Too few prompts to show it do not pass.

    comparison: reference as base, the run as fine-tuned. metric: the comparison's primary one when None. margin >= 0.
    Raises MetricError for a margin below 0 or a metric that was not compared.
    """
    if not margin >= 0:
        raise MetricError(f"margin is {margin!r}; it must be at least 0: the largest loss that does not matter")
    name = comparison.primary if metric is None else _compared_name(metric, comparison)
    found = comparison.metrics[name]
    text = f"no regression of {name} beyond {margin:g}"
    if found.interval is None:
        return GateResult(text, False, f"{name} cannot be judged: {found.verdict}")
    low, high = found.interval
    numbers = f"difference {found.difference:+.4g} [{low:.4g}, {high:.4g}] on {found.num_prompts} prompts"
    if low >= -margin:
        return GateResult(text, True, f"{name}: {numbers}, so a loss of more than {margin:g} is ruled out")
    if high < -margin:
        return GateResult(text, False, f"{name}: {numbers}, a loss of more than {margin:g}")
    return GateResult(text, False, f"{name}: {numbers}, so a loss of more than {margin:g} cannot be ruled out")


def _full_name(metric: str, summary: Summary) -> str:
    known = summary.metrics.keys() | summary.notes.keys()
    for prefix in _PREFIXES:
        if prefix + metric in known:
            return prefix + metric
    raise MetricError(f"metric {shown(metric)} is not one of this run's.{_nearest(metric, known)}")


def _compared_name(metric: str, comparison: Comparison) -> str:
    for prefix in _PREFIXES:
        if prefix + metric in comparison.metrics:
            return prefix + metric
    raise MetricError(f"metric {shown(metric)} was not compared.{_nearest(metric, comparison.metrics.keys())}")


def _nearest(metric: str, known: Iterable[str]) -> str:
    names = sorted(known)
    short = [name.removeprefix(prefix) for prefix in _PREFIXES for name in names if name.startswith(prefix)]
    return did_you_mean(metric, short) or f" It has {', '.join(names)}"
