"""What every command of the terminal shares: exit codes, common arguments, JSON."""

import contextlib
import sys
from collections.abc import Callable
from typing import Annotated

import orjson
import typer
from rich.console import Console, RenderableType

from heldout.backends.registry_file import read_registry
from heldout.report.console import plain_console

EXIT_DONE = 0
"""The command did what it was asked; every condition of a gate holds."""
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

_WIDTH = 110
"""Of what is printed to something else than a terminal."""


def located(place: str) -> str:
    """A folder or `s3://` URI as it was given; where it lies when HELDOUT_REGISTRY maps its bucket to a folder."""
    return read_registry().location(place)


def output_console() -> Console:
    """Standard output: as wide as the terminal, or of a fixed width."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=_WIDTH)


def print_shown(shown: RenderableType) -> None:
    """A table or text on standard output."""
    output_console().print(shown)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")


def print_definition(dry_run: Callable[[], str], *, as_json: bool) -> None:
    """What a dry run prints and returns: a summary with the pipeline definition; as_json: only that on standard output."""
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        definition = dry_run()
    if as_json:
        print(definition)
