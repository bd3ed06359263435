"""Judges runs: compares and ranks them, checks conditions, plans the next evaluation, scores trajectories again."""

import os
from collections.abc import Sequence
from pathlib import Path

from heldout.backends.local.evaluation_index import locate
from heldout.errors import InputError
from heldout.execution import Execution
from heldout.metrics.catalog import PLANNED, SUCCESS_RATE, resolve
from heldout.metrics.gates import GateResult, check_no_regression, check_requirement, parse_requirement
from heldout.pipeline.evaluation import Evaluation
from heldout.rescoring import rescoring
from heldout.rescoring.rescoring import DEFAULT_CONCURRENCY, OnProgress
from heldout.rescoring.scorer import ScorerFunction
from heldout.results.loading import EvaluationResults, Place, RunResults, load_run
from heldout.results.records import ComparisonResult, GateReport, PlanResult, RankingResult, RescoringResult, compared
from heldout.runs.comparison import compare_runs, rank_runs
from heldout.runs.planning import plan_from_pilots, plan_from_rates
from heldout.runs.run import Run, runs_below
from heldout.storage import is_remote

_PLACE = (str, os.PathLike, RunResults, EvaluationResults, Execution)


def compare(base: Place, fine_tuned: Place | None = None, *, margin: float | None = None) -> ComparisonResult:
    """Compares two runs on the prompts they share: is the second better, by how much, and how sure is that?

    base: a run; without `fine_tuned`, an evaluation or a folder that holds two runs. margin: the largest difference that does
    not matter; the verdict then also says whether the runs are equivalent. Raises MetricError when the runs share no prompt,
    RunError when a run holds no finished rollout. Method: docs/statistics.md.
    """
    first, second = _pair(base) if fine_tuned is None else (load_run(base).run, load_run(fine_tuned).run)
    return compared(first, second, margin=margin)


def rank(runs: Sequence[Place], *, metric: str = SUCCESS_RATE) -> RankingResult:
    """Ranks runs by a metric on the prompts that all of them share; p-values are corrected by Holm's method.

    Each run is named by its location. Raises MetricError for fewer than two runs, a run given twice, no shared prompt, or a
    metric that a run lacks.
    """
    return RankingResult.of(rank_runs([load_run(run).run for run in runs], metric=metric))


def gate(
    run: Place,
    *requirements: str,
    no_regression_against: Place | None = None,
    margin: float | None = None,
    metric: str | None = None,
    fixed_prompts: bool = False,
) -> GateReport:
    """Checks conditions on a run. The report is true when all of them hold; a partial run fails, and so
    does one in which more than `max_failed_share` of the rollouts failed.

    requirements: such as `"pass_at_1 >= 0.6"`, or `"lower(pass_at_1) >= 0.5"` for the low end of the interval.
    no_regression_against: a run that this one must be shown not to be worse than. margin: the largest loss that does not matter,
    by default 0. metric: the one that must not get worse, by default the comparison's primary metric. fixed_prompts: whether
    intervals are about these very prompts (a fixed benchmark), and not about prompts like these.
    Raises InputError without a condition, MetricError for one that cannot be read or names an unknown metric.
    """
    if not requirements and no_regression_against is None:
        raise InputError(
            "a gate needs a condition: --require 'lower(pass_at_1) >= 0.5' or --no-regression-against RUN; in Python "
            "gate(run, 'lower(pass_at_1) >= 0.5') or no_regression_against=run"
        )
    if no_regression_against is None and not (margin is None and metric is None):
        raise InputError(
            "--margin and --metric need --no-regression-against RUN (in Python no_regression_against); give it, or leave them out"
        )
    parsed = [parse_requirement(text) for text in requirements]
    opened = load_run(run)
    conditions = [check_requirement(one, opened.summary, fixed_prompts=fixed_prompts) for one in parsed]
    if no_regression_against is not None:
        reference = load_run(no_regression_against)
        comparison = compare_runs(reference.run, opened.run)
        conditions.append(
            check_no_regression(
                comparison,
                margin or 0.0,
                metric,
                reference=reference.summary,
                run=opened.summary,
                fixed_prompts=fixed_prompts,
            )
        )
    if opened.summary.is_incomplete:
        share = opened.run.metric_settings.max_failed_share
        reasons = "; ".join(map(str, opened.summary.failures)) or "no reason is known"
        total = opened.summary.scored + opened.summary.failed
        found = f"{opened.summary.failed:,} of {total:,} failed: {reasons}"
        conditions.append(GateResult(f"at most {share:.4g} of the rollouts failed", False, found))
    if opened.is_partial:
        missing = opened.summary.missing
        left = f"{missing} rollouts have not been played" if missing else "it has not ended"
        conditions.append(GateResult("the run is complete", False, f"the run is partial: {left}"))
    return GateReport(opened.evaluation_name, tuple(conditions))


def plan(
    difference: float,
    *,
    pilot: Place | Sequence[Place] = (),
    rate: float | None = None,
    correlation: float = 0.3,
    likeness: float = 0.5,
    power: float = 0.8,
    max_prompts: int | None = None,
    metric: str = SUCCESS_RATE,
    pass_k: int | None = None,
) -> PlanResult:
    """Plans how many prompts and rollouts an evaluation needs to show a true difference.

    pilot: a finished run to estimate the spread from; two runs of the same prompts are paired. rate: without a pilot, the
    success rate to assume. correlation: without a pilot, that of rollouts of one prompt, from 0 to 1. likeness: how alike the
    two policies find prompts hard, from -1 to 1; two pilots show it themselves. power: the chance of showing the difference.
    max_prompts: how many prompts there are. metric: the success rate or the mean reward, by any of their names. pass_k: the
    largest k of pass@k and pass^k that the evaluation has to give; by default the largest that the pilot's job sets, or 1.
    Raises InputError without pilot and rate or with both, MetricError for values out of range. Method: docs/statistics.md.
    """
    pilots = [pilot] if isinstance(pilot, _PLACE) else list(pilot)
    if not pilots:
        if rate is None or resolve(metric, PLANNED, problem="cannot be planned for") != SUCCESS_RATE:
            raise InputError(
                "a plan needs --pilot RUN, or an assumed success rate: --rate 0.4 (and --correlation 0.3); in Python "
                "pilot=run or rate=0.4"
            )
        return PlanResult.of(
            plan_from_rates(
                difference,
                rate,
                correlation=correlation,
                likeness=likeness,
                power=power,
                max_prompts=max_prompts,
                pass_k=pass_k,
            )
        )
    if rate is not None:
        raise InputError("--rate is assumed only without a pilot; leave out one of --rate and --pilot")
    runs = [load_run(one).run for one in pilots]
    return PlanResult.of(
        plan_from_pilots(
            difference, runs, likeness=likeness, power=power, max_prompts=max_prompts, metric=metric, pass_k=pass_k
        )
    )


def rescore(
    run: Place,
    scorer: str | ScorerFunction,
    *,
    threshold: float | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_progress: OnProgress | None = None,
) -> RescoringResult:
    """Scores a run's recorded trajectories with an independent scorer, and compares the scores with the rewards.

    scorer: a function, async or not, or `"file.py:function"`. It takes a `RecordedTrajectory` and returns a number,
    `(number, {"name": number})` or `{"score": number, "metrics": {...}}`. threshold: the score of a success; by default the job's
    success threshold. concurrency: calls of an async scorer at once. on_progress: called with the number of rollouts scored and
    the number to score. Writes `scores-<scorer>.parquet` and `agreement-<scorer>.json` into the run's folder.
    Raises ReferenceProblem when the scorer cannot be loaded, RunError when the run holds no finished rollout.
    """
    rescored = rescoring.rescore(
        load_run(run).run, scorer, threshold=threshold, concurrency=concurrency, on_progress=on_progress
    )
    return RescoringResult.of(rescored)


def _pair(place: Place) -> tuple[Run, Run]:
    """Returns the two runs of an evaluation, or of a local folder that holds two runs."""
    runs = _runs_in(place)
    if len(runs) != 2:
        named = repr(os.fspath(place)) if isinstance(place, str | os.PathLike) else repr(place)
        raise InputError(f"{named} holds {len(runs)} runs; give two runs, or an evaluation that compared two")
    return runs[0], runs[1]


def _runs_in(place: Place) -> list[Run]:
    if isinstance(place, RunResults):
        return [place.run]
    if isinstance(place, EvaluationResults):
        return [run.run for run in place.runs.values()]
    if isinstance(place, Execution):
        return list(place.runs().values())
    location = locate(place)
    if is_remote(location) or location.startswith("arn:"):
        return list(Execution.get(location).runs().values())
    if Evaluation.is_at(location):
        return list(Evaluation.open(location).runs().values())  # the baseline first, whatever it is called
    return [Run.open(folder) for folder in runs_below(Path(location))]
