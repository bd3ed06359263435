"""The command line, and its commands that play: evaluate, resume; models. Each parses, calls one function, prints."""

import asyncio
import errno
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from heldout.backends.base import Backend
from heldout.backends.local.creation import (
    check_same,
    create_evaluation,
    define_evaluation,
    local_surroundings,
    location_of,
    tracking_for,
)
from heldout.backends.local.evaluation import play_evaluation, play_run, run_to_end, stopped_by_signals
from heldout.backends.local.evaluation_index import is_known, locate
from heldout.backends.registry_file import read_registry
from heldout.backends.results import rendered_results, results_document
from heldout.backends.selection import choose_backend
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
from heldout.errors import HeldoutError, InputError, StorageError
from heldout.job.document import DEFAULT_RUNTIME_SECONDS, MAX_RUNTIME_SECONDS
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import named_models, parse_agent, parse_model
from heldout.job.registry import Registry
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.request import EvaluationRequest
from heldout.pipeline.resolution import resolve_policies
from heldout.pipeline.summary import Said
from heldout.report import live
from heldout.report.console import plain_console
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.runs.progress import Progress
from heldout.runs.remote_mirror import open_run
from heldout.runs.run import Run
from heldout.storage.storage import expanded
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


def run_command() -> None:
    """Runs what the command line says. Errors a person can act on are one line; exit code 2: bad input, 1: the job failed."""
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
        # Any file that a command is pointed to may be one that the system refuses: another user's, too long a name.
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
    version: Annotated[  # its callback has done what there is to do
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option(help="http://host:port/v1#served-name, an embedded model or .gguf[+adapter.gguf].")
    ],
    agent: Annotated[str, typer.Option(help="file.py:function, package.module:function, http://host:port or an ARN.")],
    dataset: Annotated[
        str, typer.Option(help="Held-out prompts: .parquet, .jsonl, .json, .csv; a file or folder; s3://.")
    ],
    output: Annotated[str, typer.Option(help="Where the evaluation goes: a folder or s3:// URI.")] = "runs",
    name: Annotated[str | None, typer.Option(help="The evaluation's name; default: agent and time.")] = None,
    compare_with: Annotated[
        str | None, typer.Option(metavar="BASE", help="Also evaluate what MODEL was tuned from, and compare.")
    ] = None,
    hyperparameter: Annotated[list[str], typer.Option("-H", metavar="NAME=VALUE", help="Set a hyperparameter.")] = [],  # noqa: B006
    max_runtime: Annotated[
        int, typer.Option(help="Seconds after which a job starts nothing new.")
    ] = DEFAULT_RUNTIME_SECONDS,
    limit: Annotated[int | None, typer.Option(min=1, help="Play only so many prompts.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Play prompts in an order drawn from this seed.")] = None,
    registry: RegistryOption = None,
    backend: Annotated[
        Backend | None,
        typer.Option(help="Where it runs; default: in AWS when model and agent are there and no registry maps them."),
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the evaluation of this name if there is one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check what can be checked, start nothing, show the pipeline definition.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Play an agent on held-out prompts and say how good its policy is; with a base, whether it is better."""
    if dry_run and resume:
        raise InputError(
            "--dry-run is of an evaluation that would begin, and --resume goes on with one; leave one of them out"
        )
    names = read_registry(registry)
    # `--dataset=~/prompts.jsonl`: a shell replaces the `~` of a word's beginning only.
    model, agent, dataset, output = (expanded(place) for place in (model, agent, dataset, output))
    compare_with = None if compare_with is None else expanded(compare_with)
    model_reference, agent_reference = parse_model(model), parse_agent(agent)
    if (backend or choose_backend(model_reference, agent_reference, names)) == "sagemaker":
        _refuse_in_aws(resume=resume, limit=limit, shuffle_seed=shuffle_seed)
        _evaluate_in_aws(
            model=model,
            agent_config=agent,
            dataset=dataset,
            s3_output_path=output,
            base_eval_name=name,
            base_model=compare_with,
            evaluate_base_model=compare_with is not None,
            stopping_condition=_checked_runtime(max_runtime),
            mlflow_resource_arn=mlflow,
            runtime_url=runtime_url,
            registry=registry,
            settings=_settings(hyperparameter),
            dry_run=dry_run,
            as_json=as_json,
        )
        return
    policies = resolve_policies(model, base=compare_with, trained=None, registry=names)
    request = EvaluationRequest(
        policies=policies,
        evaluate_base_model=compare_with is not None,
        agent=agent_reference,
        dataset=dataset,
        output=output,
        folder=Path.cwd(),
        hyperparameters=Hyperparameters(_settings(hyperparameter)),
        max_runtime_seconds=_checked_runtime(max_runtime),
        tracking=tracking_for(mlflow, None, policies, output, names),
        limit=limit,
        shuffle_seed=shuffle_seed,
        runtime_url=runtime_url,
    )
    evaluation_name = name or _default_name(agent)
    if dry_run:
        _show_definition(request, names, evaluation_name, as_json=as_json)
    else:
        _evaluate_here(request, names, evaluation_name, is_resumed=resume, as_json=as_json)


@app.command()
def resume(
    run: PlaceArgument,
    max_runtime: Annotated[
        int | None, typer.Option(help="Seconds after which this start begins nothing new; default: as evaluated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with what was interrupted, stopped or failed; what is finished stays."""
    seconds = None if max_runtime is None else _checked_runtime(max_runtime)
    if run.startswith("arn:") and not is_known(run):
        raise InputError(
            f"evaluation {run} was not started on this machine, and managed jobs cannot be gone on with, only started anew"
        )
    place = locate(run)
    if Evaluation.is_at(place):
        _play(Evaluation.open(place), as_json=as_json, max_runtime_seconds=seconds)
    else:
        _play_one(open_run(place), as_json=as_json, max_runtime_seconds=seconds)


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


def _evaluate_here(request: EvaluationRequest, names: Registry, name: str, *, is_resumed: bool, as_json: bool) -> None:
    """Plays a new evaluation, or goes on with the one of this name if there is one and that is asked for."""
    location = location_of(request.output, name, names)
    is_there = is_resumed and Evaluation.is_at(location)
    if is_there:
        evaluation = Evaluation.open(location)
        check_same(evaluation, request)
    else:
        evaluation = create_evaluation(request, names, name=name)
    try:
        _play(evaluation, as_json=as_json, max_runtime_seconds=request.max_runtime_seconds)
    except InputError:
        if not is_there:
            evaluation.remove_if_never_begun()
        raise


def _show_definition(request: EvaluationRequest, names: Registry, name: str, *, as_json: bool) -> None:
    """Checks all that can be checked of an evaluation on this machine, and shows what would be executed."""
    location = location_of(request.output, name, names)
    Evaluation.check_new(location, name)
    around = local_surroundings(name)
    definition = define_evaluation(request, names, around)
    said = Said.of(request, output=location, region=around.region, mlflow=request.tracking)
    print_definition(lambda: said.dry_run(definition), as_json=as_json)


def _refuse_in_aws(*, resume: bool, limit: int | None, shuffle_seed: int | None) -> None:
    if resume:
        raise InputError("--resume goes on with an evaluation on this machine; managed jobs can only be started anew")
    if limit is not None or shuffle_seed is not None:
        raise InputError("--limit and --shuffle-seed have no place in managed jobs; leave them out, or --backend local")


def _evaluate_in_aws(*, settings: dict[str, str], dry_run: bool, as_json: bool, **fields: Any) -> None:
    # boto3 takes most of a second to load, which a job on this machine would lose before its first model call.
    from heldout.cli import sagemaker as cli_sagemaker
    from heldout.evaluator import MultiTurnRLEvaluator

    evaluator = MultiTurnRLEvaluator(backend="sagemaker", **fields)
    for name, value in settings.items():
        setattr(evaluator.hyperparameters, name, value)
    if dry_run:
        print_definition(lambda: evaluator.evaluate(dry_run=True), as_json=as_json)
    else:
        cli_sagemaker.evaluate(evaluator, as_json=as_json)


def _add_further_commands() -> None:
    """Adds the commands that start no job, unless one is to be started: the statistics and the AWS protocols take a second to
    load, which the job would lose before its first model call."""
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


def _play(evaluation: Evaluation, *, as_json: bool, max_runtime_seconds: int | None) -> None:
    console = plain_console(stderr=True)
    with _told_how_to_go_on(evaluation.location):
        ending = run_to_end(
            play_evaluation(
                evaluation,
                _display(console),
                on_stop=_tell(console),
                say=_say(console),
                max_runtime_seconds=max_runtime_seconds,
            )
        )
    _print_results(evaluation, as_json=as_json)
    _exit_after(ending, evaluation.location, console)


def _play_one(run: Run, *, as_json: bool, max_runtime_seconds: int | None) -> None:
    console = plain_console(stderr=True)

    async def play() -> Ending:
        switch = StopSwitch()
        with stopped_by_signals(switch, _tell(console)):
            return await play_run(
                run,
                _display(console),
                switch,
                tags={},
                note=_note(console),
                say=_say(console),
                max_runtime_seconds=max_runtime_seconds,
            )

    with _told_how_to_go_on(run.location):
        ending = run_to_end(play())
    _print_results(run, as_json=as_json)
    _exit_after(ending, run.location, console)


@contextmanager
def _told_how_to_go_on(location: str) -> Iterator[None]:
    """What ends a job in the middle, such as a full disk, is told with the way on."""
    try:
        yield
    except HeldoutError as error:
        if not isinstance(error, InputError):
            error.add_note(f"what is finished is kept; go on with: heldout resume {location}")
        raise


def _print_results(place: Evaluation | Run, *, as_json: bool) -> None:
    if as_json:
        print_json(asyncio.run(results_document(place)))
    else:
        sys.stdout.write(asyncio.run(rendered_results(place, output_console())))


def _display(console: Console) -> Callable[[Run, Progress], AbstractAsyncContextManager[None]]:
    def display(run: Run, progress: Progress) -> AbstractAsyncContextManager[None]:
        return live.shown(progress, console, f"{run.state.name}/{run.state.run_name}")

    return display


def _tell(console: Console) -> Callable[[bool], None]:
    def tell(again: bool) -> None:
        told = "stopping at once" if again else "finishing what is in flight; Ctrl-C again stops at once"
        console.print(told, highlight=False)

    return tell


def _say(console: Console) -> Callable[[str], None]:
    return lambda doing: console.print(doing, style="dim", highlight=False, soft_wrap=True)


def _note(console: Console) -> Callable[[str], None]:
    return lambda note: console.print(f"! {note}", highlight=False, soft_wrap=True)


def _exit_after(ending: Ending, location: str, console: Console) -> None:
    """Says how to go on with what is not done, and ends with the exit code for it."""
    told, code = {
        Ending.FINISHED: ("", 0),
        Ending.STOPPED: ("stopped", EXIT_INTERRUPTED),
        Ending.OUT_OF_TIME: ("the maximum runtime is over", EXIT_FAILED),
    }[ending]
    if code:
        more = " --max-runtime SECONDS" if ending is Ending.OUT_OF_TIME else ""
        console.print(f"{told}; go on with: heldout resume {location}{more}", highlight=False, soft_wrap=True)
        raise typer.Exit(code)


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
