"""The command line, and its commands that play: evaluate, resume; models. Each parses, calls one function, prints."""

import asyncio
import contextlib
import dataclasses
import errno
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated

import typer

from heldout.backends.base import Backend, Prepared
from heldout.backends.local.backend import LocalBackend, folder_backend
from heldout.backends.local.evaluation import run_to_end, stopped_by_signals
from heldout.backends.local.evaluation_index import is_known, locate
from heldout.backends.local.job import play_job
from heldout.backends.registry_file import read_registry
from heldout.backends.results import has_verdict, rendered_results, results_document
from heldout.backends.selection import select_backend
from heldout.cli.output import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    JsonOption,
    PlaceArgument,
    output_console,
    print_definition,
    print_json,
)
from heldout.errors import HeldoutError, InputError, NothingScored, StorageError, shown
from heldout.job.document import DEFAULT_RUNTIME_SECONDS, MAX_RUNTIME_SECONDS
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import AGENT_KINDS, MODEL_KINDS, forms_of, named_models
from heldout.job.registry import Registry
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.request import NO_TRACKING, EvaluationRequest, TrackingSettings, evaluation_request
from heldout.pipeline.runner import check_resumable
from heldout.report import live
from heldout.report.console import plain_console
from heldout.rollouts.card import accept_changes, check_unchanged
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending
from heldout.runs.progress import Progress
from heldout.runs.remote_mirror import open_run
from heldout.runs.run import JobStatus, Run
from heldout.version import __version__

app = typer.Typer(
    help="Evaluate multi-turn RL agents on prompts they have not seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
RegistryOption = Annotated[
    Path | None, typer.Option(help="TOML file that maps AWS names to local things. [env: HELDOUT_REGISTRY]")
]

AllowChangesOption = Annotated[
    bool,
    typer.Option(
        "--allow-changes", help="Resume although the agent or the dataset has changed since, and mark the run."
    ),
]


def run_command() -> None:
    """Runs the command line. An error that the user can act on is one line; exit code 2 is bad input, 1 a failed job."""
    try:
        _add_further_commands()
        app()
    except InputError as error:
        _complain(error)
        sys.exit(EXIT_BAD_INPUT)
    except HeldoutError as error:
        _complain(error)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        # The system may refuse any file that the user names: another user's file, a name that is too long.
        if error.filename is not None:
            _complain(InputError(f"cannot use {str(error.filename)!r}: {error.strerror}"))
            sys.exit(EXIT_BAD_INPUT)
        if error.errno != errno.ENOSPC:
            raise
        _complain(StorageError("what was to be printed finds no space where standard output goes"))
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"heldout {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # its callback prints it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Option(metavar="[NAME=]MODEL", help=f"The model to evaluate: {forms_of(MODEL_KINDS)}."),
    ],
    agent: Annotated[str, typer.Option(help=f"The agent that plays: {forms_of(AGENT_KINDS)}.")],
    dataset: Annotated[
        str, typer.Option(help="Held-out prompts: .parquet, .jsonl, .json, .csv; a file or folder; s3://.")
    ],
    output: Annotated[str, typer.Option(help="Where the evaluation goes: a folder or s3:// URI.")] = "runs",
    name: Annotated[str | None, typer.Option(help="The evaluation's name; default: agent and time.")] = None,
    compare_with: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME=]MODEL", help="Also evaluate this model, such as what MODEL was tuned from, and compare."
        ),
    ] = None,
    hyperparameter: Annotated[list[str], typer.Option("-H", metavar="NAME=VALUE", help="Set a hyperparameter.")] = [],  # noqa: B006
    max_runtime: Annotated[
        int, typer.Option(help="Seconds after which a job starts nothing new.")
    ] = DEFAULT_RUNTIME_SECONDS,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="The most prompts to play: the first rows, or random ones with --shuffle-seed."),
    ] = None,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the random order of play and of --limit's choice; by default --limit takes the first rows."
        ),
    ] = None,
    registry: RegistryOption = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Where it runs: local, sagemaker; default: in AWS when model and agent are there and no registry maps them."
        ),
    ] = None,
    runtime_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Where an agent in AWS reaches the Job Runtime here. [env: HELDOUT_RUNTIME_URL]"
        ),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Where runs are logged, or off; default: SQLite in the output.")
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The runs' experiment in MLflow; default: AGENT on DATASET."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the evaluation of this name if there is one.")
    ] = False,
    allow_changes: AllowChangesOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, start nothing, print the pipeline definition.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Play an agent on held-out prompts and measure how good its policy is; with a base, whether it is better."""
    if dry_run and resume:
        raise InputError("--dry-run is for a new evaluation and --resume for an existing one; leave one of them out")
    if experiment is not None and mlflow == NO_TRACKING:
        raise InputError(
            f"--experiment {shown(experiment)} names an experiment in MLflow, where --mlflow {NO_TRACKING} logs nothing; "
            "leave one of them out"
        )
    request = evaluation_request(
        model=model,
        agent=agent,
        dataset=dataset,
        output=output,
        registry=read_registry(registry),
        base_model=compare_with,
        evaluate_base_model=compare_with is not None,
        name=name or _default_name(agent),
        base_name=name,
        hyperparameters=Hyperparameters(_settings(hyperparameter)),
        max_runtime_seconds=_checked_runtime(max_runtime),
        tracking=TrackingSettings(mlflow, experiment),
        limit=limit,
        shuffle_seed=shuffle_seed,
        runtime_url=runtime_url,
    )
    chosen = select_backend(backend, request)
    if dry_run:
        prepared = chosen.prepare(request)
        print_definition(lambda: prepared.summary.print_dry_run(prepared.definition, prepared.notes), as_json=as_json)
    elif not isinstance(chosen, LocalBackend):
        _follow(_prepared_anew(chosen, request, is_resumed=resume), as_json=as_json)
    else:
        existing = chosen.find(request) if resume else None
        if existing is not None:
            check_resumable(existing, allow_changes=allow_changes)
        with _evaluation_for(chosen, request, existing) as evaluation, _resume_hint(evaluation.location):
            ending = run_to_end(chosen.play(evaluation, _terminal_context(request.max_runtime_seconds)))
        _conclude(evaluation, ending, as_json=as_json)


@app.command()
def resume(
    run: PlaceArgument,
    max_runtime: Annotated[
        int | None, typer.Option(help="Seconds after which this start begins nothing new; default: as evaluated.")
    ] = None,
    allow_changes: AllowChangesOption = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Also replay rollouts that failed because of a machine or a server."),
    ] = False,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Drop damaged journal lines and play their rollouts again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Resume an evaluation that was interrupted, stopped or failed. Finished rollouts are kept."""
    seconds = None if max_runtime is None else _checked_runtime(max_runtime)
    if run.startswith("arn:") and not is_known(run):
        raise InputError(
            f"evaluation {run} was not started on this machine, and managed jobs cannot be resumed, only started again"
        )
    place = locate(run)
    context = dataclasses.replace(_terminal_context(seconds), drop_damaged=drop_damaged, retry_failed=retry_failed)
    resumed: Evaluation | Run
    if Evaluation.is_known(place):
        resumed = evaluation = Evaluation.open(place)
        check_resumable(evaluation, allow_changes=allow_changes)
        playing = folder_backend(evaluation.state.backend).play(evaluation, context)
    else:
        resumed = run_of_its_own = open_run(place)
        _check_run(run_of_its_own, context, allow_changes=allow_changes)
        playing = _play_run(run_of_its_own, context)
    with _resume_hint(resumed.location):
        ending = run_to_end(playing)
    _conclude(resumed, ending, as_json=as_json)


def _check_run(run: Run, context: PlayContext, *, allow_changes: bool) -> None:
    if run.state.status is JobStatus.COMPLETED:
        return
    if allow_changes:
        accept_changes([run])
    for warning in check_unchanged([run]):
        context.note(warning)


@app.command()
def models(registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """List the models that can be evaluated by name: the embedded ones, and those a registry maps."""
    found = [*_named_entries(), *_registered_entries(read_registry(registry))]
    if as_json:
        print_json(found)
        return
    width = max(len(entry["name"]) for entry in found)
    for entry in found:
        print(f"{entry['name']:<{width}}  {entry['where']}")


@contextlib.contextmanager
def _evaluation_for(
    backend: LocalBackend, request: EvaluationRequest, existing: Evaluation | None
) -> Iterator[Evaluation]:
    """The evaluation to play: `existing` if it is to be resumed, else a new one.

    An InputError inside removes a new evaluation without a begun rollout.
    """
    evaluation = existing or backend.prepare(request).create()
    try:
        yield evaluation
    except InputError:
        if existing is None:
            evaluation.remove_if_never_begun()
        raise


def _prepared_anew(backend: Backend, request: EvaluationRequest, *, is_resumed: bool) -> Prepared:
    if is_resumed:
        raise InputError("--resume is for evaluations on this machine; managed jobs can only be started again")
    return backend.prepare(request)


def _follow(prepared: Prepared, *, as_json: bool) -> None:
    # Its imports would delay the first model call of a job that this process plays.
    from heldout.cli import remote

    remote.evaluate(prepared, as_json=as_json)


def _add_further_commands() -> None:
    """Adds the commands that start no job, unless the command line starts one: statistics and AWS protocols take a
    second to load, which would delay its first model call."""
    if sys.argv[1:2] in (["evaluate"], ["resume"]):
        return
    add_commands(has_serve=sys.argv[1:2] in ([], ["--help"], ["serve"]))


def add_commands(*, has_serve: bool) -> None:
    """Adds the commands that start no job to `app`; `serve` loads the AWS protocols, which are slow to import."""
    from heldout.cli import hyperparameters, judge, metrics, show

    for group in (show, judge, metrics, hyperparameters):
        group.add_to(app)
    if has_serve:
        from heldout.cli import serve

        serve.add_to(app)


async def _play_run(run: Run, context: PlayContext) -> Ending:
    with stopped_by_signals(context.switch, context.on_stop):
        return await play_job(run, context)


def _terminal_context(max_runtime_seconds: int | None) -> PlayContext:
    """Shows progress and messages on standard error. Ctrl-C stops the job."""
    console = plain_console(stderr=True)

    playing: list[Progress] = []

    def display(run: Run, progress: Progress) -> AbstractAsyncContextManager[None]:
        playing[:] = [progress]
        return live.shown(progress, console, f"{run.state.name}/{run.state.run_name}")

    def announce_stop(again: bool) -> None:
        waiting = playing[0].stopping_line if playing else "stopping"
        text = (
            "stopping at once"
            if again
            else f"{waiting}; Ctrl-C again stops at once, and resuming plays rollouts in flight again"
        )
        console.print(text, highlight=False, soft_wrap=True)

    return PlayContext(
        display=display,
        note=lambda text: console.print(f"! {text}", highlight=False, soft_wrap=True),
        say=lambda text: console.print(text, style="dim", highlight=False, soft_wrap=True),
        on_stop=announce_stop,
        max_runtime_seconds=max_runtime_seconds,
    )


@contextlib.contextmanager
def _resume_hint(location: str) -> Iterator[None]:
    """Adds the command that resumes to an error that ends a job early, for example a full disk."""
    try:
        yield
    except NothingScored as error:
        if error.retryable:
            causes = f"{error.retryable:,} failures are of a machine or a server"
            error.add_note(f"{causes}; when it works, play them again: heldout resume {location} --retry-failed")
        else:
            error.add_note("all rollouts are played, so resume repeats none: repair the cause and evaluate anew")
        raise
    except HeldoutError as error:
        if not isinstance(error, InputError):
            error.add_note(f"finished rollouts are kept; continue with: heldout resume {location}")
        raise


def _conclude(place: Evaluation | Run, ending: Ending, *, as_json: bool) -> None:
    """Prints the results. For an unfinished job it also prints the command that resumes, and exits with 130 or 1.

    Exits with 1 after a comparison without a verdict, such as after too many failures.
    """
    if as_json:
        print_json(asyncio.run(results_document(place)))
    else:
        sys.stdout.write(asyncio.run(rendered_results(place, output_console())))
    reason, code = {
        Ending.FINISHED: ("", 0),
        Ending.STOPPED: ("stopped", EXIT_INTERRUPTED),
        Ending.OUT_OF_TIME: ("the maximum runtime is over", EXIT_FAILED),
    }[ending]
    if code:
        more = " --max-runtime SECONDS" if ending is Ending.OUT_OF_TIME else ""
        hint = f"{reason}; continue with: heldout resume {place.location}{more}"
        plain_console(stderr=True).print(hint, highlight=False, soft_wrap=True)
        raise typer.Exit(code)
    if isinstance(place, Evaluation) and not has_verdict(place):
        raise typer.Exit(EXIT_FAILED)


def _named_entries() -> list[dict[str, str]]:
    return [{"name": name, "where": description} for name, description in named_models().items()]


def _registered_entries(registry: Registry) -> list[dict[str, str]]:
    found = {name: registry.model(name) for name in (*registry.models, *registry.model_packages)}
    return [{"name": name, "where": model.text} for name, model in found.items() if model is not None]


def _settings(given: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"-H {text!r} is not NAME=VALUE; write for example -H eval_group_size=4")
        name = name.strip()
        if settings.setdefault(name, value) != value:
            raise InputError(f"-H {name!r} is given twice: {settings[name]!r} and {value!r}; leave one of them out")
    return settings


def _checked_runtime(seconds: int) -> int:
    if not 0 < seconds <= MAX_RUNTIME_SECONDS:
        raise InputError(f"--max-runtime is {seconds}; it must be from 1 to {MAX_RUNTIME_SECONDS} seconds (72 hours)")
    return seconds


def _default_name(agent: str) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", re.sub(r"\.py:", "-", agent.rpartition("/")[2])).strip("-")
    return f"{words[:40].strip('-') or 'agent'}-{time.strftime('%Y%m%d-%H%M%S')}"


def _complain(error: HeldoutError) -> None:
    for line in (f"heldout: {error}", *getattr(error, "__notes__", ())):
        print(line, file=sys.stderr)
