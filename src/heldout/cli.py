"""The command line: parse, call one function, print."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from heldout.agents.lookup import check_entry_point
from heldout.backends.local import Played, run_job
from heldout.errors import HeldoutError, InputError
from heldout.job.document import (
    DEFAULT_RUNTIME_SECONDS,
    AgentConfig,
    DataSource,
    InputChannel,
    JobConfigDocument,
    OutputDataConfig,
    StoppingCondition,
    evaluation_config_for,
)
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import EmbeddedModel, EntryPoint, ModelPackage, ModelReference, parse_agent, parse_model
from heldout.policies.embedded import EMBEDDED_MODELS
from heldout.report import live
from heldout.report.findings import find
from heldout.report.terminal import results
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.rollouts.mirror import has_run, new_folder, open_run
from heldout.rollouts.progress import Progress
from heldout.rollouts.results import metrics_document, summarize_run
from heldout.rollouts.run import BASE_RUN, FINE_TUNED_RUN, JobStatus, Run, runs_below

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Evaluate multi-turn RL agents on prompts they have not seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
RunArgument = Annotated[str, typer.Argument(help="A run's folder, or its s3:// URI.", metavar="RUN")]


def main() -> None:
    """The `heldout` command. Errors a person can act on are one line and exit code 2 (bad input) or 1 (the job failed)."""
    try:
        app()
    except InputError as error:
        _complain(error)
        sys.exit(EXIT_BAD_INPUT)
    except HeldoutError as error:
        _complain(error)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option(help="http://host:port/v1#served-name, an embedded model or .gguf[+adapter.gguf].")
    ],
    agent: Annotated[str, typer.Option(help="file.py:function, package.module:function or http://host:port.")],
    dataset: Annotated[
        str, typer.Option(help="Held-out prompts: .parquet, .jsonl, .json, .csv; a file or folder; s3://.")
    ],
    output: Annotated[str, typer.Option(help="Where the run goes.")] = "runs",
    name: Annotated[str | None, typer.Option(help="The evaluation's name; default: agent and time.")] = None,
    hyperparameter: Annotated[list[str], typer.Option("-H", metavar="NAME=VALUE", help="Set a hyperparameter.")] = [],  # noqa: B006
    max_runtime: Annotated[
        int, typer.Option(help="Seconds after which nothing new is started.")
    ] = DEFAULT_RUNTIME_SECONDS,
    limit: Annotated[int | None, typer.Option(min=1, help="Play only so many prompts.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Play prompts in an order drawn from this seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of this name if there is one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Play an agent on held-out prompts and say how good its policy is."""
    policy = parse_model(model, frozenset(EMBEDDED_MODELS))
    document = _document(policy, agent, dataset, output, hyperparameter, max_runtime, limit, shuffle_seed)
    name = name or _default_name(agent)
    location = f"{output.rstrip('/')}/{name}/{_run_name(policy)}"
    if resume and has_run(location):
        run = open_run(location)
    else:
        run = Run.create(
            new_folder(location), name=name, run_name=_run_name(policy), region=_region(), document=document
        )
    with _removed_if_never_begun(run):
        _play(run, as_json=as_json)


@app.command()
def resume(run: RunArgument, as_json: JsonOption = False) -> None:
    """Go on with a run that was interrupted, stopped or failed; what is finished stays."""
    opened = open_run(run)
    if opened.state.status is JobStatus.COMPLETED:
        _show(opened, as_json=as_json)
    else:
        _play(opened, as_json=as_json)


@app.command()
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run's numbers, computed again from its files."""
    _show(open_run(run), as_json=as_json)


@app.command("list")
def list_runs(
    output: Annotated[Path, typer.Argument(help="The output folder.")] = Path("runs"), as_json: JsonOption = False
) -> None:
    """List the runs in an output folder."""
    if not output.is_dir():
        raise InputError(f"no folder {str(output)!r}; give the --output of an evaluation")
    runs = [Run.open(folder) for folder in runs_below(output)]
    if as_json:
        _print_json(
            [{"path": str(run.folder), **run.state.model_dump(mode="json", exclude={"document"})} for run in runs]
        )
        return
    for run in runs:
        state = run.state
        status = "Interrupted" if state.status is JobStatus.IN_PROGRESS and not run.is_running() else state.status
        started = datetime.fromtimestamp(state.created_at).isoformat(" ", "seconds")
        print(f"{started}  {status:<12} {run.folder}")


def _document(
    model: ModelReference,
    agent: str,
    dataset: str,
    output: str,
    hyperparameter: list[str],
    max_runtime: int,
    limit: int | None,
    shuffle_seed: int | None,
) -> JobConfigDocument:
    played_by = parse_agent(agent)
    if isinstance(played_by, EntryPoint):
        check_entry_point(played_by.entry_point)
    return JobConfigDocument(
        agent_config=AgentConfig.of(played_by),
        input_data_config=(
            InputChannel(data_source=DataSource.of(_absolute(dataset)), limit=limit, shuffle_seed=shuffle_seed),
        ),
        output_data_config=OutputDataConfig.at(_absolute(output)),
        evaluation_config=evaluation_config_for(model, Hyperparameters(_settings(hyperparameter)), accept_eula=True),
        stopping_condition=_stopping_condition(max_runtime),
    )


def _settings(given: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"-H {text!r} is not NAME=VALUE; write for example -H eval_group_size=4")
        settings[name.strip()] = value
    return settings


def _stopping_condition(seconds: int) -> StoppingCondition:
    try:
        return StoppingCondition(max_runtime_in_seconds=seconds)
    except ValueError as error:
        raise InputError(f"--max-runtime is {seconds}; it must be from 1 to 259200 seconds (72 hours)") from error


def _absolute(path: str) -> str:
    return path if "://" in path or path.startswith("arn:") else str(Path(path).absolute())


def _default_name(agent: str) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", re.sub(r"\.py:", "-", agent.rpartition("/")[2])).strip("-")
    return f"{words[:40].strip('-') or 'agent'}-{time.strftime('%Y%m%d-%H%M%S')}"


def _run_name(model: ModelReference) -> str:
    tuned = isinstance(model, ModelPackage) or (isinstance(model, EmbeddedModel) and model.adapter is not None)
    return FINE_TUNED_RUN if tuned else BASE_RUN


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-west-2"


@contextmanager
def _removed_if_never_begun(run: Run) -> Iterator[None]:
    """Bad input found while starting leaves no folder behind."""
    try:
        yield
    except InputError:
        run.remove_if_never_begun()
        raise


def _play(run: Run, *, as_json: bool) -> None:
    console = Console(stderr=True)
    played = _run_async(run, console)
    _show(run, as_json=as_json)
    if played.ending is Ending.STOPPED:
        console.print(f"stopped; go on with: heldout resume {run.location}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    if played.ending is Ending.OUT_OF_TIME:
        console.print(
            f"the maximum runtime is over; go on with: heldout resume {run.location}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(EXIT_FAILED)


def _run_async(run: Run, console: Console) -> Played:
    if sys.platform == "win32":
        return asyncio.run(_play_job(run, console))
    import uvloop

    return uvloop.run(_play_job(run, console))


async def _play_job(run: Run, console: Console) -> Played:
    switch = StopSwitch()
    with _stopped_by_signals(switch, console):
        async with AsyncExitStack() as display:
            started: list[Progress] = []

            def on_start(progress: Progress) -> None:
                started.append(progress)
                shown.set()

            shown = asyncio.Event()
            playing = asyncio.create_task(run_job(run, switch, on_start))
            waiting = asyncio.create_task(shown.wait())
            await asyncio.wait({playing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if started:
                await display.enter_async_context(
                    live.shown(started[0], console, f"{run.state.name}/{run.state.run_name}")
                )
            return await playing


@contextmanager
def _stopped_by_signals(switch: StopSwitch, console: Console) -> Iterator[None]:
    def stop() -> None:
        again = switch.is_draining
        switch.stop()
        told = "stopping at once" if again else "finishing what is in flight; Ctrl-C again stops at once"
        console.print(told, highlight=False)

    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _show(run: Run, *, as_json: bool) -> None:
    summary = summarize_run(run)
    is_partial = run.state.status is not JobStatus.COMPLETED
    findings = find(run.folder, run.document.hyperparameters) if run.rollouts_path.exists() else []
    if as_json:
        _print_json(
            {"run": run.location, "status": run.state.status, **metrics_document(summary, is_partial=is_partial)}
        )
        return
    title = f"{run.state.name}/{run.state.run_name}"
    Console().print(results(summary, findings, title=title, where=run.location, is_partial=is_partial))


def _print_json(value: object) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def _complain(error: HeldoutError) -> None:
    print(f"heldout: {error}", file=sys.stderr)
