"""Gates: conditions on a run's numbers. A pipeline stops when one does not hold."""

import math
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
_NO_RERUN = (
    "only rewards and success rates are known there, from prompts with two rollouts or more (pass@k and pass^k: 2k)"
)
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
    flip_chance: float | None = None
    """The chance that one more run of the same prompts gives the other verdict; None where the rollouts do not show it."""

    @property
    def explanation(self) -> str:
        """The reason and, where it is known, the chance of the other verdict."""
        if self.flip_chance is None:
            return self.reason
        chance = "below 1%" if self.flip_chance < 0.01 else f"{self.flip_chance:.0%}"
        return f"{self.reason}; chance that a rerun of the same prompts changes this verdict: {chance}"


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


def check_requirement(requirement: Requirement, summary: Summary, *, fixed_prompts: bool = False) -> GateResult:
    """Check one condition on a run. A number that the run cannot give does not pass; the reason says why it cannot.

    fixed_prompts: whether `lower` and `upper` are about these very prompts, where only rollouts vary, and not about prompts like
    these. Raises MetricError when the run has no metric of this name (it gives the nearest name), or two of them.
    """
    known = summary.metrics.keys() | summary.notes.keys()
    name = resolve(requirement.metric, known, problem="is not one of this run's")
    if name not in summary.metrics:
        return GateResult(requirement.text, False, f"{name} is not known: {summary.notes[name]}")
    again = summary.rerun.get(name)
    if requirement.end is None:
        found, words = summary.metrics[name], name
    else:
        if fixed_prompts and again is None:
            return GateResult(requirement.text, False, f"{name} has no bounds on these very prompts: {_NO_RERUN}")
        if not fixed_prompts and name not in summary.intervals:
            why = summary.notes.get(name, "this metric has no interval")
            return GateResult(requirement.text, False, f"{name} has no bounds: {why}")
        low, high = again.interval if fixed_prompts and again is not None else summary.intervals[name]
        found, words = (low, f"lower end of {name}") if requirement.end == "lower" else (high, f"upper end of {name}")
        words += " on these very prompts" if fixed_prompts else ""
    passed = _COMPARE[requirement.operator](found, requirement.value)
    verb = "meets" if passed else "misses"
    return GateResult(
        requirement.text,
        passed,
        f"{words} is {found:.4g}, which {verb} {requirement.operator} {requirement.value:g}",
        None if again is None else again.flip_chance(found - requirement.value),
    )


def check_no_regression(
    comparison: Comparison,
    margin: float,
    metric: str | None = None,
    *,
    reference: Summary | None = None,
    run: Summary | None = None,
    fixed_prompts: bool = False,
) -> GateResult:
    """Check that a run is not worse than its reference by more than `margin`: the whole interval of the difference must say so.

    A loss is a decrease, or an increase where lower is better. Too few prompts to show it do not pass.
    comparison: reference as base, the run as fine-tuned. metric: any name of the metric; None for the comparison's primary one.
    margin: at least 0, in the metric's unit. reference, run: the numbers of both. They give the chance that playing the run again
    gives the other verdict and, with `fixed_prompts`, the interval on these very prompts, where only rollouts vary.
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
    if fixed_prompts:
        on_these = _difference_on_these_prompts(name, found.num_prompts, reference, run)
        if on_these is None:
            return GateResult(
                text,
                False,
                f"{name} cannot be judged on these very prompts: both runs need the same prompts, and {_NO_RERUN}",
            )
        low, high = on_these
    described = find(name)
    is_lower_better = described is not None and described.direction is Direction.LOWER
    least_loss, most_loss = (low, high) if is_lower_better else (-high, -low)
    where = f"on {found.num_prompts} prompts" if not fixed_prompts else f"on these very {found.num_prompts} prompts"
    numbers = f"difference {found.difference:+.4g} [{low:.4g}, {high:.4g}] {where}"
    numbers = f"{comparison.fine_tuned} against {comparison.base}, {numbers}"
    again = None if run is None else run.rerun.get(name)
    flip_chance = None if again is None else again.flip_chance(most_loss - margin)
    if most_loss <= greatest_meeting(margin):
        words, passed = f"so a loss of more than {margin:g} is ruled out", True
    elif least_loss > margin:
        words, passed = f"a loss of more than {margin:g}", False
    else:
        words, passed = f"so a loss of more than {margin:g} cannot be ruled out", False
    return GateResult(text, passed, f"{name}: {numbers}, {words}", flip_chance)


def _difference_on_these_prompts(
    name: str, num_prompts: int, reference: Summary | None, run: Summary | None
) -> tuple[float, float] | None:
    """The interval of run - reference on the prompts that both played, from the intervals of both; None where it is unknown.

    Source: Zou and Donner 2008, Statist. Med. 27, 1693-1702, for independent means: the runs vary independently.
    """
    if reference is None or run is None or name not in reference.rerun or name not in run.rerun:
        return None
    if not num_prompts == reference.num_prompts == run.num_prompts:
        return None
    (low_a, high_a), (low_b, high_b) = reference.rerun[name].interval, run.rerun[name].interval
    a, b = reference.metrics[name], run.metrics[name]
    return b - a - math.hypot(b - low_b, high_a - a), b - a + math.hypot(high_b - b, a - low_a)
