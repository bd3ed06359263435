"""The `hyperparameters` command: what `-H NAME=VALUE` sets, as a table or as JSON."""

from dataclasses import asdict, dataclass

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from heldout.cli.output import JsonOption, print_json, print_shown
from heldout.job.hyperparameters import SPECIFICATIONS, Value


@dataclass(frozen=True, slots=True)
class HyperparameterEntry:
    """One hyperparameter as plain data: what `heldout hyperparameters` prints and the docs list."""

    name: str
    """The canonical spelling."""
    spellings: tuple[str, ...]
    """The other spellings that are accepted; a dot separates the levels of a nested one."""
    default: Value
    range: str
    """Type and range in words: `an integer from 1 to 4096`."""
    meaning: str


def hyperparameter_entries() -> list[HyperparameterEntry]:
    """Lists all hyperparameters of a job, in the order of `heldout.job.hyperparameters.SPECIFICATIONS`."""
    return [
        HyperparameterEntry(one.name, one.spellings, one.default, one.expected, one.meaning)
        for one in SPECIFICATIONS.values()
    ]


def add_to(app: typer.Typer) -> None:
    """Adds this command to the command line."""
    app.command("hyperparameters")(hyperparameters_command)


def hyperparameters_command(as_json: JsonOption = False) -> None:
    """List every hyperparameter: its spellings, default, range and meaning. Set one with -H NAME=VALUE."""
    entries = hyperparameter_entries()
    if as_json:
        print_json([asdict(entry) for entry in entries])
    else:
        print_shown(_table(entries))


def _table(entries: list[HyperparameterEntry]) -> RenderableType:
    table = Table(title="hyperparameters", title_justify="left", title_style="bold", show_lines=True)
    table.add_column("name, and other spellings", no_wrap=True)
    for heading in ("default", "range", "meaning"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        table.add_row(
            Text("\n".join((entry.name, *(f"  {spelling}" for spelling in entry.spellings)))),
            Text(_default(entry.default)),
            Text(entry.range),
            Text(entry.meaning),
        )
    return table


def _default(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
