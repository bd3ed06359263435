"""Exit codes, common arguments, and tables and JSON on standard output, shared by all commands."""

import contextlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, Protocol

import orjson
import typer
from rich.console import Console, RenderableType

from heldout.report.console import TEXT_WIDTH, plain_console

EXIT_DONE = 0
"""The command succeeded; every condition of a gate holds."""
EXIT_FAILED = 1
"""The job failed, a condition of a gate does not hold, or a scorer gave no score."""
EXIT_BAD_INPUT = 2
"""A command, option or value cannot be used. Nothing was started."""
EXIT_INTERRUPTED = 130
"""The command was interrupted (Ctrl-C, `heldout stop`); `heldout resume` continues an evaluation."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunArgument = Annotated[
    str, typer.Argument(help="A run's folder, that of an evaluation with no other, or its s3:// URI.", metavar="RUN")
]
PlaceArgument = Annotated[
    str,
    typer.Argument(
        help="The folder of an evaluation or of a run in it, its s3:// URI, or an evaluation's ARN.", metavar="RUN"
    ),
]


class Result(Protocol):
    """A record of `heldout.results`: a table and its JSON."""

    def __rich__(self) -> RenderableType: ...

    def to_dict(self) -> dict[str, Any]: ...


def output_console() -> Console:
    """Returns standard output, as wide as the terminal, or of a fixed width where it is not a terminal."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=TEXT_WIDTH)


def print_shown(shown: RenderableType) -> None:
    """Prints a table or text on standard output."""
    output_console().print(shown)


def print_result(result: Result, *, as_json: bool) -> None:
    """Prints a result on standard output: its table, or its JSON."""
    if as_json:
        print_json(result.to_dict())
    else:
        print_shown(result)


def print_json(value: object) -> None:
    """Prints one JSON document on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")


def print_definition(dry_run: Callable[[], str], *, as_json: bool) -> None:
    """Prints a dry run's summary and its pipeline definition; as_json: only the definition on standard output."""
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        definition = dry_run()
    if as_json:
        print(definition)
