"""The commands about evaluations that were started, on this machine or in AWS: show, stop, list."""

import sys
from dataclasses import asdict, fields
from datetime import datetime
from typing import Annotated, Any

import typer

from heldout.backends.local.evaluation_index import find_evaluation, is_known
from heldout.backends.results import evaluation_document, evaluation_results, run_document, run_results
from heldout.cli import sagemaker as cli_sagemaker
from heldout.cli.output import JsonOption, PlaceArgument, located, print_json, print_shown
from heldout.errors import InputError
from heldout.execution import Execution
from heldout.pipeline.evaluation import Evaluation, open_only_run
from heldout.pipeline.listing import Listed, Unreadable, listed
from heldout.pipeline.state import ExecutionState
from heldout.report.rollout_rows import RolloutRows
from heldout.report.slices import slices
from heldout.report.terminal import slice_table
from heldout.report.trajectory import trajectory
from heldout.runs.recordings import RecordedTrajectory, open_recordings, open_tables
from heldout.runs.run import Run


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command("show")(show_command)
    app.command("stop")(stop_command)
    app.command("list")(list_command)


def show_command(
    run: PlaceArgument,
    trajectory: Annotated[str | None, typer.Option(metavar="ID", help="One rollout of a run, turn by turn.")] = None,
    by: Annotated[
        str | None,
        typer.Option("--slice", metavar="COLUMN", help="A run's results for each value of a dataset column."),
    ] = None,
    training: Annotated[
        str | None, typer.Option(metavar="FILE", help="Training prompts, to look for among a run's held-out ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show an evaluation's or a run's numbers, computed again from its files."""
    options = {"--trajectory": trajectory, "--slice": by, "--training": training}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} show something else each; give one of them")
    place = find_evaluation(run).location if is_known(run) else located(run)
    if place.startswith("arn:"):
        if given:
            raise InputError(
                f"--trajectory, --slice and --training are of a run's folder, and {run} is an evaluation in AWS; give the folder "
                "or the s3:// URI of a run that it left in its output"
            )
        cli_sagemaker.show(Execution.get(place), as_json=as_json)
    elif trajectory is not None:
        _show_trajectory(open_only_run(place), trajectory, as_json=as_json)
    elif by is not None:
        _show_slices(open_only_run(place), by, as_json=as_json)
    elif Evaluation.is_at(place) and training is None:
        _show_evaluation(Evaluation.open(place), as_json=as_json)
    else:
        _show_run(open_only_run(place), as_json=as_json, training=training)


def stop_command(run: PlaceArgument) -> None:
    """Ask an evaluation to stop; on this machine what is in flight is finished first, unless it is asked again."""
    execution = Execution.get(_evaluation_of(located(run)))
    status = execution.status.overall_status
    if status not in ("Executing", "Stopping"):
        print(f"{execution.name} is {status}: there is nothing to stop")
        return
    execution.stop()
    print(f"{execution.name} was asked to stop; what is finished is kept")


def _evaluation_of(place: str) -> str:
    """The folder of the evaluation whose run is in this one; any other place as it is."""
    if place.startswith("arn:") or not place or Evaluation.is_at(place):
        return place
    above = place.rstrip("/").rpartition("/")[0]
    return above if above and Evaluation.is_at(above) else place


def list_command(
    output: Annotated[str, typer.Argument(help="The output folder, or its s3:// URI.")] = "runs",
    as_json: JsonOption = False,
) -> None:
    """List the evaluations in an output folder, and their runs."""
    found = list(listed(located(output)))
    if as_json:
        print_json([_entry(one) for one in found])
        return
    readable = [(one.location, one.state.created_at, one.status) for one in found if isinstance(one, Listed)]
    for location, created_at, status in sorted(readable):
        started = datetime.fromtimestamp(created_at).isoformat(" ", "seconds")
        print(f"{started}  {status:<12} {location}")
    for one in found:
        if isinstance(one, Unreadable):
            print(f"! {one.location}: {one.problem}", file=sys.stderr)


def _show_evaluation(evaluation: Evaluation, *, as_json: bool) -> None:
    if as_json:
        print_json(evaluation_document(evaluation))
    else:
        print_shown(evaluation_results(evaluation))


def _show_run(run: Run, *, as_json: bool, training: str | None) -> None:
    if as_json:
        print_json(run_document(run, training=training))
    else:
        print_shown(run_results(run, training=training))


def _show_trajectory(run: Run, trajectory_id: str, *, as_json: bool) -> None:
    with open_recordings(run) as recordings:
        played = recordings.read([trajectory_id])[0]
    if as_json:
        print_json(_trajectory_document(played))
    else:
        print_shown(trajectory(played))


def _show_slices(run: Run, column: str, *, as_json: bool) -> None:
    with open_tables(run) as folder:
        found = slices(run.prompts_path, RolloutRows.read(folder), column, run.metric_settings)
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        print_shown(slice_table(found, column, run.metric_settings.confidence))


def _trajectory_document(played: RecordedTrajectory) -> dict[str, Any]:
    turns = [{**asdict(turn), "conversation": played.conversation(turn.index)} for turn in played.turns]
    rest = {f.name: getattr(played, f.name) for f in fields(played) if f.name not in ("turns", "recorded_turns")}
    return {**rest, "turns": turns}


def _entry(one: Listed | Unreadable) -> dict[str, object]:
    if isinstance(one, Unreadable):
        return {"path": one.location, "problem": one.problem}
    if isinstance(one.state, ExecutionState):
        told = {"name", "arn", "failure_reason", "created_at", "ended_at"}
        entry = {"kind": "evaluation", "path": one.location, **one.state.model_dump(mode="json", include=told)}
        return entry | {"status": one.status}
    return {"kind": "run", "path": one.location, **one.state.model_dump(mode="json", exclude={"document"})}
