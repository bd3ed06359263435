"""The commands that judge finished runs: compare, plan, gate, rescore."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as ProgressBars

from heldout import results
from heldout.cli.output import EXIT_FAILED, JsonOption, RunArgument, print_json, print_result
from heldout.errors import InputError
from heldout.metrics.catalog import MEAN_REWARD, SUCCESS_RATE
from heldout.report.console import plain_console
from heldout.rescoring.rescoring import DEFAULT_CONCURRENCY


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command("compare")(compare_command)
    app.command("plan")(plan_command)
    app.command("gate")(gate_command)
    app.command("rescore")(rescore_command)


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="BASELINE and RUN, or an evaluation of both; more are ranked.")],
    margin: Annotated[float | None, typer.Option(help="The largest difference that does not matter.")] = None,
    metric: Annotated[
        str | None, typer.Option(help=f"Ranks more than two runs by this metric; default: {SUCCESS_RATE}.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: which is better, by how much, and how sure is that? Rank more than two.

    Exits with 1 when the runs are not comparable, such as after too many failures.
    """
    if len(runs) > 2:
        if margin is not None:
            raise InputError("--margin belongs to a comparison of two runs; leave it out to rank more")
        ranked = results.rank(runs, metric=metric or SUCCESS_RATE)
        print_result(ranked, as_json=as_json)
        if len(ranked.runs) < len(runs):
            raise typer.Exit(EXIT_FAILED)
        return
    if metric is not None:
        raise InputError("--metric ranks more than two runs; leave it out: a comparison of two shows every metric")
    compared = results.compare(*runs, margin=margin)
    print_result(compared, as_json=as_json)
    if not compared.is_comparable:
        raise typer.Exit(EXIT_FAILED)


def plan_command(
    difference: Annotated[float, typer.Option(help="The true difference that the evaluation should show.")],
    pilot: Annotated[
        list[str], typer.Option(help="A finished run to estimate the spread from; give two to pair them.")
    ] = [],  # noqa: B006
    rate: Annotated[float | None, typer.Option(help="Without a pilot: the success rate to assume.")] = None,
    correlation: Annotated[float, typer.Option(help="Without a pilot: between rollouts of one prompt, 0 to 1.")] = 0.3,
    likeness: Annotated[
        float, typer.Option(help="Correlation of prompt difficulty between the policies, -1 to 1.")
    ] = 0.5,
    power: Annotated[float, typer.Option(help="Chance of showing the difference.")] = 0.8,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="How many prompts there are.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Plan for 'pass@1', which is the default, or for 'mean reward'.")
    ] = None,
    pass_k: Annotated[
        int | None,
        typer.Option(min=1, help="The largest k of pass@k and pass^k that groups must give; default: the pilot's."),
    ] = None,
    of_reward: Annotated[bool, typer.Option("--of-reward", help="The same as --metric 'mean reward'.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan how many prompts and rollouts show a difference, and whether more prompts or larger groups help most."""
    if of_reward and metric is not None:
        raise InputError("--of-reward is --metric 'mean reward'; give one of the two")
    planned = results.plan(
        difference,
        pilot=pilot,
        rate=rate,
        correlation=correlation,
        likeness=likeness,
        power=power,
        max_prompts=max_prompts,
        metric=metric or (MEAN_REWARD if of_reward else SUCCESS_RATE),
        pass_k=pass_k,
    )
    print_result(planned, as_json=as_json)


def gate_command(
    run: RunArgument,
    require: Annotated[list[str], typer.Option(help="A condition, such as 'lower(pass_at_1) >= 0.5'.")] = [],  # noqa: B006
    no_regression_against: Annotated[
        str | None, typer.Option(metavar="RUN", help="The run that this one must not be worse than.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="With --no-regression-against: the largest loss that does not matter; default: 0."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="With --no-regression-against: the metric that must not get worse; default: the primary metric."
        ),
    ] = None,
    fixed_prompts: Annotated[
        bool,
        typer.Option("--fixed-prompts", help="Intervals are about these very prompts, not about prompts like these."),
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write the results as JUnit XML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check conditions on a run; exit with 1 if one does not hold."""
    report = results.gate(
        run,
        *require,
        no_regression_against=no_regression_against,
        margin=margin,
        metric=metric,
        fixed_prompts=fixed_prompts,
    )
    if junit is not None:
        report.write_junit(junit)
    if as_json:
        print_json(report.to_dict()["conditions"])
    else:
        print(report)
    if not report:
        raise typer.Exit(EXIT_FAILED)


def rescore_command(
    run: RunArgument,
    scorer: Annotated[str, typer.Option(help="file.py:function; takes a recorded trajectory, returns a number.")],
    threshold: Annotated[
        float | None, typer.Option(help="Score of a success; default: the job's success_threshold.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls of an async scorer at once.")] = DEFAULT_CONCURRENCY,
    as_json: JsonOption = False,
) -> None:
    """Score recorded trajectories again with an independent scorer, and compare the scores with the rewards."""
    with ProgressBars(console=plain_console(stderr=True), transient=True) as bars:
        task = bars.add_task("scoring", total=None)
        result = results.rescore(
            run,
            scorer,
            threshold=threshold,
            concurrency=concurrency,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    print_result(result, as_json=as_json)
    if not result.scored:
        raise typer.Exit(EXIT_FAILED)
