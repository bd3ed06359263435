"""The commands for started evaluations, on this machine or in AWS: show, stop, list."""

import sys
from datetime import datetime
from typing import Annotated

import typer

from heldout import results
from heldout.backends.local.evaluation_index import locate
from heldout.cli.output import JsonOption, PlaceArgument, Result, print_json, print_result, print_shown
from heldout.errors import InputError
from heldout.execution import Execution
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.listing import Listed, Unreadable, listed, run_numbers
from heldout.pipeline.state import ExecutionState
from heldout.report.card_rows import card_tables
from heldout.report.numbers import number


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command("show")(show_command)
    app.command("stop")(stop_command)
    app.command("list")(list_command)


def show_command(
    run: PlaceArgument,
    trajectory: Annotated[
        str | None,
        typer.Option(metavar="ID", help="One rollout of a run, turn by turn: 12.3 is rollout 3 of prompt 12."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--slice", metavar="COLUMN", help="A run's results for each value of a dataset column."),
    ] = None,
    training: Annotated[
        str | None, typer.Option(metavar="FILE", help="Training prompts, to look for among a run's held-out ones.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Versions and hashes of everything that took part.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show an evaluation's or a run's numbers, computed from its files."""
    options = {"--trajectory": trajectory, "--slice": by, "--training": training, "--card": card or None}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} cannot be combined; give one of them")
    place = locate(run)
    if place.startswith("arn:") and given:
        raise InputError(
            f"{given[0]} needs a run's folder, and {run} is an evaluation in AWS; give the folder "
            "or the s3:// URI of a run that it left in its output"
        )
    if card:
        _show_cards(results.load(place), as_json=as_json)
    elif by is not None:
        _show_slices(results.load_run(place).slices(by), as_json=as_json)
    else:
        found = _opened(place, trajectory, training)
        if place.startswith("arn:") and isinstance(found, results.EvaluationResults) and not as_json:
            print(f"{found.name}: {found.status}")
        print_result(found, as_json=as_json)


def stop_command(run: PlaceArgument) -> None:
    """Ask an evaluation to stop. On this machine it first finishes the rollouts in flight; ask again to stop at once."""
    execution = Execution.get(_evaluation_of(locate(run)))
    status = execution.status.overall_status
    if status not in ("Executing", "Stopping"):
        print(f"{execution.name} is {status}: there is nothing to stop")
        return
    execution.stop()
    print(f"{execution.name} was asked to stop; what is finished is kept")


def _evaluation_of(place: str) -> str:
    """Returns the evaluation's folder for the folder of one of its runs, and any other place as it is."""
    if place.startswith("arn:") or not place or Evaluation.is_known(place):
        return place
    above = place.rstrip("/").rpartition("/")[0]
    return above if above and Evaluation.is_known(above) else place


def list_command(
    output: Annotated[str, typer.Argument(help="The output folder, or its s3:// URI.")] = "runs",
    as_json: JsonOption = False,
) -> None:
    """List the evaluations in an output folder, and their runs."""
    found = list(listed(locate(output)))
    if as_json:
        print_json([_entry(one) for one in found])
        return
    readable = [(one.location, one.state.created_at, one.status) for one in found if isinstance(one, Listed)]
    for location, created_at, status in sorted(readable):
        started = datetime.fromtimestamp(created_at).isoformat(" ", "seconds")
        print(f"{started}  {status:<12} {location}{_results(location)}")
    for one in found:
        if isinstance(one, Unreadable):
            print(f"! {one.location}: {one.problem}", file=sys.stderr)


def _results(location: str) -> str:
    """The model, the score and the failures of a run, for the end of its line; empty for an evaluation."""
    numbers = run_numbers(location)
    if numbers is None:
        return ""
    if numbers.rollouts is None:
        return f"  {numbers.model}"
    rate = "no score" if numbers.success_rate is None else f"pass@1 {number(numbers.success_rate)}"
    return f"  {numbers.model}  {rate}  {numbers.failed} of {numbers.rollouts} failed"


def _opened(place: str, trajectory: str | None, training: str | None) -> Result:
    if trajectory is not None:
        return results.load_run(place).trajectory(trajectory)
    if training is not None:
        return results.load_run(place, training=training)
    return results.load(place)


def _show_cards(found: results.RunResults | results.EvaluationResults, *, as_json: bool) -> None:
    runs = [found] if isinstance(found, results.RunResults) else list(found.runs.values())
    cards = {f"{run.evaluation_name}/{run.name}": run.card for run in runs}
    known = {name: card for name, card in cards.items() if card is not None}
    if as_json:
        print_json({name: None if card is None else card.model_dump(mode="json") for name, card in cards.items()})
        return
    print_shown(card_tables(known))
    for name in cards.keys() - known.keys():
        print(f"! {name} has no card: it has not begun to play, or an older version played it", file=sys.stderr)


def _show_slices(table: results.SliceTable, *, as_json: bool) -> None:
    if as_json:
        print_json(table.to_dict()["slices"])
    else:
        print_result(table, as_json=False)


def _entry(one: Listed | Unreadable) -> dict[str, object]:
    if isinstance(one, Unreadable):
        return {"path": one.location, "problem": one.problem}
    if isinstance(one.state, ExecutionState):
        kept = {"name", "arn", "failure_reason", "created_at", "ended_at"}
        entry = {"kind": "evaluation", "path": one.location, **one.state.model_dump(mode="json", include=kept)}
        return entry | {"status": one.status}
    numbers = run_numbers(one.location)
    results = (
        {}
        if numbers is None
        else {
            "model": numbers.model,
            "success_rate": numbers.success_rate,
            "failed_rollouts": numbers.failed,
            "ended_rollouts": numbers.rollouts,
        }
    )
    state = one.state.model_dump(mode="json", exclude={"document"})
    return {"kind": "run", "path": one.location, **results, **state}
