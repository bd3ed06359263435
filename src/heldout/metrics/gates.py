"""Gates: conditions on a run's numbers. A pipeline stops when one does not hold."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from heldout.errors import MetricError, shown
from heldout.metrics.catalog import find, resolve
from heldout.metrics.comparison import Comparison
from heldout.metrics.metric import Direction
from heldout.metrics.settings import greatest_meeting, least_meeting
from heldout.metrics.summary import Summary

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda found, bound: found >= least_meeting(bound),
    "<=": lambda found, bound: found <= greatest_meeting(bound),
    ">": lambda found, bound: found > greatest_meeting(bound),
    "<": lambda found, bound: found < least_meeting(bound),
}
"""A number within a relative 1e-6 of the bound is equal to it."""
_EXPRESSION = re.compile(
    r"\s*(?:(?P<end>lower|upper)\s*\((?P<inner>\s*[^<>=\s][^<>=]*)\)|(?!\s*(?:lower|upper)\s*\()(?P<name>[^<>=\s][^<>=]*?))"
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)


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
    """Parse `METRIC >= NUMBER`, `lower(METRIC) >= NUMBER` or `upper(METRIC) <= NUMBER` (operators >=, <=, >, <).

    METRIC is a name that `heldout.metrics.catalog.resolve` understands: `pass_at_1`, `pass@1`, `mean reward`, `agent: cost`.
    Raises MetricError when the text is not of this form.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise MetricError(
            f"requirement {shown(text)} cannot be read; write METRIC >= NUMBER or lower(METRIC) >= NUMBER,"
            " such as 'lower(pass_at_1) >= 0.5'"
        )
    return Requirement(
        text=text.strip(),
        metric=(match["inner"] or match["name"]).strip(),
        end=match["end"],
        operator=match["operator"],
        value=float(match["value"]),
    )


def check_requirement(requirement: Requirement, summary: Summary) -> GateResult:
    """Check one condition on a run. A number that the run cannot give does not pass; the reason says why it cannot.

    Raises MetricError when the metric's name is none of the run's (with the nearest), or means two of them.
    """
    known = summary.metrics.keys() | summary.notes.keys()
    name = resolve(requirement.metric, known, problem="is not one of this run's")
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
    """Check that a run is not worse than its reference by more than `margin`: the whole interval of the difference must say so.

    A loss is a decrease, or an increase where lower is better. Too few prompts to show it do not pass.
    comparison: reference as base, the run as fine-tuned. metric: any name of the metric; None for the comparison's primary one.
    margin: at least 0, in the metric's unit.
    Raises MetricError for a margin below 0 or a metric that was not compared.
    """
    if not margin >= 0:
        raise MetricError(f"margin is {margin!r}; it must be at least 0: the largest loss that does not matter")
    name = comparison.primary if metric is None else resolve(metric, comparison.metrics, problem="was not compared")
    found = comparison.metrics[name]
    text = f"no regression of {name} beyond {margin:g}"
    if comparison.not_comparable:
        return GateResult(text, False, f"{name} cannot be judged: {comparison.not_comparable}")
    if found.interval is None:
        return GateResult(text, False, f"{name} cannot be judged: {found.no_interval}")
    low, high = found.interval
    described = find(name)
    is_lower_better = described is not None and described.direction is Direction.LOWER
    least_loss, most_loss = (low, high) if is_lower_better else (-high, -low)
    numbers = f"difference {found.difference:+.4g} [{low:.4g}, {high:.4g}] on {found.num_prompts} prompts"
    numbers = f"{comparison.fine_tuned} against {comparison.base}, {numbers}"
    if most_loss <= greatest_meeting(margin):
        return GateResult(text, True, f"{name}: {numbers}, so a loss of more than {margin:g} is ruled out")
    if least_loss > margin:
        return GateResult(text, False, f"{name}: {numbers}, a loss of more than {margin:g}")
    return GateResult(text, False, f"{name}: {numbers}, so a loss of more than {margin:g} cannot be ruled out")
