"""Plans an evaluation from pilot runs, or from an assumed success rate."""

from collections.abc import Sequence
from dataclasses import dataclass

from heldout.errors import InputError
from heldout.metrics.catalog import PLANNED, SUCCESS_RATE, resolve
from heldout.metrics.pairing import pair_sides
from heldout.metrics.planning import (
    NextRollouts,
    Plan,
    Spread,
    next_rollouts,
    plan,
    smallest_difference,
    spread_from_pair,
    spread_from_rates,
    spread_from_run,
)
from heldout.metrics.sample import Sample
from heldout.runs.comparison import side_of
from heldout.runs.run import Run

_LIKENESS_ENDS = (0.0, 1.0)
"""The advice names the prompts that a plan needs at both ends of an assumed likeness."""


@dataclass(frozen=True, slots=True)
class PilotPlan:
    """A plan, with estimates from its pilot run."""

    plan: Plan
    pilot_detectable: float | None = None
    """The smallest true difference that an evaluation of the pilot's size shows with the requested power; None without a
    pilot or with too few prompts."""
    next_rollouts: NextRollouts | None = None
    """What more prompts or larger groups would gain over the pilot; None without one."""


def plan_from_rates(
    difference: float,
    rate: float,
    *,
    correlation: float,
    likeness: float,
    power: float,
    max_prompts: int | None,
    pass_k: int | None = None,
) -> PilotPlan:
    """Plans for a difference between assumed success rates; see `heldout.metrics.planning.spread_from_rates`.

    pass_k: the largest k of pass@k and pass^k that the evaluation has to give; None: 1.
    """
    spread, *extremes = (
        spread_from_rates(rate, difference, correlation=correlation, likeness=one)
        for one in (likeness, *_LIKENESS_ENDS)
    )
    return PilotPlan(
        plan(
            spread,
            difference,
            power=power,
            max_prompts=max_prompts,
            pass_k=1 if pass_k is None else pass_k,
            extremes=extremes,
        )
    )


def plan_from_pilots(
    difference: float,
    pilots: Sequence[Run],
    *,
    likeness: float,
    power: float,
    max_prompts: int | None,
    metric: str,
    pass_k: int | None = None,
) -> PilotPlan:
    """Plans from the spread of one pilot run, or of two that are paired by prompt.

    likeness: the correlation of prompt difficulty between the two policies, from -1 to 1; measured if there are two pilots.
    metric: any name of the success rate or of the mean reward. pass_k: the largest k of pass@k and pass^k that the evaluation has
    to give; None: the largest that the job of the last pilot sets in `pass_k_values`, or 1.
    Raises InputError for more than two pilots; MetricError for another metric, for a pilot too small to estimate a spread, or
    when no plan is possible.
    """
    if len(pilots) > 2:
        raise InputError(f"{len(pilots)} pilot runs; give one, or two to be paired")
    of_success = resolve(metric, PLANNED, problem="cannot be planned for") == SUCCESS_RATE
    if len(pilots) == 1:
        spread, sample, extremes = _spread_of_one(pilots[0], of_success=of_success, likeness=likeness)
    else:
        spread, sample = _spread_of_pair(pilots[0], pilots[1], of_success=of_success)
        extremes = []
    group_size = round(float(sample.sizes.mean()))
    return PilotPlan(
        plan=plan(
            spread,
            difference,
            power=power,
            max_prompts=max_prompts,
            pass_k=_asked_for(pilots[-1]) if pass_k is None else pass_k,
            extremes=extremes,
        ),
        pilot_detectable=smallest_difference(spread, len(sample.sizes), group_size, power=power),
        next_rollouts=next_rollouts(spread, len(sample.sizes), group_size),
    )


def _asked_for(pilot: Run) -> int:
    """The largest k that the pilot's job sets. The default of `pass_k_values` asks for each k that the groups can give."""
    parameters = pilot.document.hyperparameters
    return max(parameters.pass_k_values) if "pass_k_values" in parameters.set_values() else 1


def _spread_of_one(pilot: Run, *, of_success: bool, likeness: float) -> tuple[Spread, Sample, list[Spread]]:
    """Returns the spread, the pilot's sample, and the spreads at both ends of the likeness."""
    sample = Sample.of(side_of(pilot).rollouts, pilot.metric_settings)
    spread, *extremes = (
        spread_from_run(sample, of_success=of_success, likeness=one) for one in (likeness, *_LIKENESS_ENDS)
    )
    return spread, sample, extremes


def _spread_of_pair(base: Run, fine_tuned: Run, *, of_success: bool) -> tuple[Spread, Sample]:
    pairs = pair_sides(side_of(base), side_of(fine_tuned), fine_tuned.metric_settings)
    spread = spread_from_pair(pairs.base.sample, pairs.fine_tuned.sample, of_success=of_success)
    return spread, pairs.fine_tuned.sample
