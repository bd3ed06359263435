"""The commands that judge runs that are there: compare, plan, gate, rescore."""

from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer
from rich.console import RenderableType
from rich.progress import Progress as ProgressBars

from heldout.cli.output import EXIT_FAILED, JsonOption, RunArgument, located, print_json, print_shown
from heldout.errors import InputError
from heldout.metrics.catalog import SUCCESS_RATE
from heldout.metrics.gates import GateResult, check_no_regression, check_requirement, parse_requirement
from heldout.metrics.pairing import Side, pair_sides
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
from heldout.metrics.ranking import Ranking, rank
from heldout.metrics.sample import Sample
from heldout.pipeline.evaluation import Evaluation, open_only_run
from heldout.report import comparison_tables
from heldout.report.console import plain_console
from heldout.report.rescoring_table import rescored
from heldout.rescoring.rescoring import DEFAULT_CONCURRENCY, rescore
from heldout.rescoring.scores import agreement_document
from heldout.runs.comparison import compare_runs, comparison_document, prompt_texts, side_of
from heldout.runs.results import summarize_run
from heldout.runs.run import JobStatus, Run, runs_below
from heldout.storage import is_remote


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command("compare")(compare_command)
    app.command("plan")(plan_command)
    app.command("gate")(gate_command)
    app.command("rescore")(rescore_command)


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="BASE and FINE-TUNED, or an evaluation of both; more are ranked.")],
    margin: Annotated[float | None, typer.Option(help="The largest difference that does not matter.")] = None,
    metric: Annotated[
        str | None, typer.Option(help=f"What more than two runs are ranked by; default: {SUCCESS_RATE}.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether one run is better than another, by how much, and how sure that is."""
    opened = _runs(runs)
    if len(opened) > 2:
        if margin is not None:
            raise InputError("--margin is of two runs; a ranking has none: leave it out, or compare two")
        settings = opened[-1].metric_settings
        ranked = rank([_named_side(run) for run in opened], settings, metric=metric or SUCCESS_RATE)
        _print(as_json, _ranking_document(ranked), comparison_tables.ranking(ranked))
        return
    if metric is not None:
        raise InputError("--metric is what more than two runs are ranked by; a comparison of two has every metric")
    base, fine_tuned = opened
    compared = compare_runs(base, fine_tuned, margin=margin)
    prompts = prompt_texts(compared, fine_tuned)
    _print(as_json, comparison_document(compared, prompts), comparison_tables.comparison(compared, prompts))


def plan_command(
    difference: Annotated[float, typer.Option(help="The true difference that the evaluation should show.")],
    pilot: Annotated[list[str], typer.Option(help="A finished run to judge the spread from; two, to be paired.")] = [],  # noqa: B006
    rate: Annotated[float | None, typer.Option(help="Without a pilot: the success rate to assume.")] = None,
    correlation: Annotated[float, typer.Option(help="Without a pilot: between rollouts of one prompt, 0 to 1.")] = 0.3,
    likeness: Annotated[float, typer.Option(help="How alike the two policies find prompts hard, -1 to 1.")] = 0.5,
    power: Annotated[float, typer.Option(help="Chance of showing the difference.")] = 0.8,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="How many prompts there are.")] = None,
    of_reward: Annotated[
        bool, typer.Option("--of-reward", help="Plan for the mean reward, not the success rate.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how many prompts and rollouts a difference needs, and where the next rollout is best spent."""
    if not pilot:
        if rate is None or of_reward:
            raise InputError("a plan needs --pilot RUN, or an assumed success rate: --rate 0.4 (and --correlation 0.3)")
        spread, *extremes = (
            spread_from_rates(rate, difference, correlation=correlation, likeness=one) for one in (likeness, 0.0, 1.0)
        )
        sample = None
    else:
        if rate is not None:
            raise InputError("--rate is what is assumed without a pilot; leave out one of --rate and --pilot")
        spread, sample, extremes = _pilot_spread(
            _runs(pilot) if len(pilot) > 1 else [open_only_run(located(pilot[0]))], of_reward, likeness
        )
    planned = plan(spread, difference, power=power, max_prompts=max_prompts, extremes=extremes)
    seen, following = None, None
    if sample is not None:
        group_size = round(float(sample.sizes.mean()))
        seen = smallest_difference(spread, len(sample.sizes), group_size, power=power)
        following = next_rollouts(spread, len(sample.sizes), group_size)
    _print(as_json, _plan_document(planned, seen, following), comparison_tables.plan(planned, seen, following))


def gate_command(
    run: RunArgument,
    require: Annotated[list[str], typer.Option(help="A condition, such as 'lower(pass_at_1) >= 0.5'.")] = [],  # noqa: B006
    no_regression_against: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run not to be worse than.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Of --no-regression-against: the largest loss that does not matter; default: 0."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Of --no-regression-against; default: the success rate.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the results as JUnit XML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check conditions on a run; exit with 1 if one does not hold."""
    if not require and no_regression_against is None:
        raise InputError("a gate needs a condition: --require 'lower(pass_at_1) >= 0.5' or --no-regression-against RUN")
    if no_regression_against is None and not (margin is None and metric is None):
        raise InputError("--margin and --metric are of --no-regression-against RUN; give that too, or leave them out")
    requirements = [parse_requirement(text) for text in require]
    opened = open_only_run(located(run))
    summary = summarize_run(opened)
    results = [check_requirement(requirement, summary) for requirement in requirements]
    if no_regression_against is not None:
        reference = open_only_run(located(no_regression_against))
        results.append(check_no_regression(compare_runs(reference, opened), margin or 0.0, metric))
    if opened.state.status is not JobStatus.COMPLETED:
        left = f"{summary.missing} rollouts have not been played" if summary.missing else "it has not ended"
        results.append(GateResult("the run is complete", False, f"the run is partial: {left}"))
    if junit is not None:
        _write_junit(junit, opened, results)
    document = [{"requirement": r.requirement, "passed": r.passed, "reason": r.reason} for r in results]
    if as_json:
        print_json(document)
    else:
        for result in results:
            print(f"{'pass' if result.passed else 'FAIL'}  {result.requirement}: {result.reason}")
    if not all(result.passed for result in results):
        raise typer.Exit(EXIT_FAILED)


def rescore_command(
    run: RunArgument,
    scorer: Annotated[str, typer.Option(help="file.py:function; takes a recorded trajectory, returns a number.")],
    threshold: Annotated[
        float | None, typer.Option(help="Score of a success; default: the job's success_threshold.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Async scorers at work at once.")] = DEFAULT_CONCURRENCY,
    as_json: JsonOption = False,
) -> None:
    """Score recorded trajectories again by an independent scorer, and say how that goes with the reward."""
    opened = open_only_run(located(run))
    with ProgressBars(console=plain_console(stderr=True), transient=True) as bars:
        task = bars.add_task("scoring", total=None)
        result = rescore(
            opened,
            scorer,
            threshold=threshold,
            concurrency=concurrency,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    _print(as_json, agreement_document(result), rescored(result))
    if not result.scored:
        raise typer.Exit(EXIT_FAILED)


def _runs(locations: list[str]) -> list[Run]:
    """Two runs or more; a single location may be the folder of an evaluation that has two."""
    if len(locations) == 1:
        inside = _runs_in(located(locations[0]))
        if len(inside) != 2:
            raise InputError(
                f"{locations[0]!r} holds {len(inside)} runs; give two runs, or an evaluation that compared two"
            )
        return inside
    return [open_only_run(located(location)) for location in locations]


def _runs_in(place: str) -> list[Run]:
    if is_remote(place):
        return list(Evaluation.open(place).runs().values())
    return [Run.open(folder) for folder in runs_below(Path(place))]


def _named_side(run: Run) -> Side:
    side = side_of(run)
    return Side(run.location, side.rollouts, side.prompt_keys, side.agent_metrics, side.is_partial)


def _pilot_spread(pilots: list[Run], of_reward: bool, likeness: float) -> tuple[Spread, Sample, list[Spread]]:
    """The spread, the pilot's sample, and what the spread could be if one pilot leaves the likeness to be assumed."""
    settings = pilots[-1].metric_settings
    if len(pilots) > 2:
        raise InputError(f"{len(pilots)} pilot runs; give one, or two to be paired")
    if len(pilots) == 1:
        sample = Sample.of(side_of(pilots[0]).rollouts, settings)
        spread, *extremes = (
            spread_from_run(sample, of_success=not of_reward, likeness=one) for one in (likeness, 0.0, 1.0)
        )
        return spread, sample, extremes
    pairs = pair_sides(side_of(pilots[0]), side_of(pilots[1]), settings)
    base, fine_tuned = pairs.base.sample, pairs.fine_tuned.sample
    return spread_from_pair(base, fine_tuned, of_success=not of_reward), fine_tuned, []


def _ranking_document(ranked: Ranking) -> dict[str, Any]:
    runs = [{"run": r.name, "rank": r.rank, "value": r.value, "tied_with": list(r.tied_with)} for r in ranked.runs]
    return {"metric": ranked.metric, "prompts": ranked.num_prompts, "runs": runs}


def _plan_document(planned: Plan, seen: float | None, following: NextRollouts | None) -> dict[str, Any]:
    options = [
        {"group_size": o.group_size, "prompts": o.num_prompts, "rollouts": o.num_rollouts, "power": o.power}
        for o in planned.options
    ]
    best = planned.recommended
    return {
        "difference": planned.difference,
        "power": planned.power,
        "confidence": planned.confidence,
        "options": options,
        "recommended": None if best is None else {"group_size": best.group_size, "prompts": best.num_prompts},
        "advice": planned.advice,
        "pilot_detectable": seen,
        "next": None if following is None else {"prompt_share": following.prompt_share, "advice": following.advice},
    }


def _write_junit(path: Path, run: Run, results: list[GateResult]) -> None:
    failures = sum(not result.passed for result in results)
    suite = ElementTree.Element("testsuite", name="heldout gate", tests=str(len(results)), failures=str(failures))
    for result in results:
        case = ElementTree.SubElement(suite, "testcase", classname=run.state.name, name=result.requirement)
        if not result.passed:
            ElementTree.SubElement(case, "failure", message=result.reason)
    try:
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise InputError(f"--junit {str(path)!r} cannot be written: {error.strerror}") from error


def _print(as_json: bool, document: dict[str, Any], shown: RenderableType) -> None:
    if as_json:
        print_json(document)
    else:
        print_shown(shown)
