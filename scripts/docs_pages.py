"""A hook of MkDocs: writes the reference pages from the code, and takes the pages of the repository's root into the site.

Each page is made in memory at build time, so it cannot disagree with the code it describes.
"""

import functools
import inspect
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

import heldout
from heldout.cli import evaluate as command_line
from heldout.cli import output
from heldout.cli.hyperparameters import hyperparameter_entries
from heldout.cli.metrics import metric_entries
from heldout.datasets.arrow import DESCRIPTION
from heldout.datasets.prompts import PROMPTS_SCHEMA
from heldout.job import registry
from heldout.job.references import AGENT_KINDS, MODEL_KINDS
from heldout.runs import run
from heldout.runs.columns import COLUMNS

ROOT = Path(__file__).parents[1]
INCLUDED = {
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Pages of the repository's root, and where they stand in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated and the included pages. MkDocs calls it once a build."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    for name, path in INCLUDED.items():
        files.append(File.generated(config, path, content=included((ROOT / name).read_text(), path)))
    return files


def included(text: str, path: str) -> str:
    """A page of the root with its links as seen from `path`; a link to a file that is not in the site becomes its name."""

    def relinked(link: re.Match[str]) -> str:
        words, target = link["words"], link["target"]
        if "://" in target or target.startswith("#"):
            return link[0]
        file, _, anchor = target.partition("#")
        page = INCLUDED.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if page is None:
            return words if words.startswith("`") else f"{words} (`{file}`)"
        return f"[{words}]({posixpath.relpath(page, posixpath.dirname(path))}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\[(?P<words>[^\]\n]+)\]\((?P<target>[^)\s]+)\)", relinked, text)


def commands() -> str:
    """Every command with its options, from the command line itself."""
    command_line.add_commands(has_serve=True)
    group: Any = get_command(command_line.app)
    parts = [
        "# Commands",
        "",
        "Each command takes `--help`. `RUN` is the folder of an evaluation or of a run in it, or its `s3://` URI.",
    ]
    for name, command in sorted(group.commands.items()):
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(["heldout", name, *command.collect_usage_pieces(context)])
        parts += ["", f"## heldout {name}", "", _plain(command.help), "", f"    {usage}", ""]
        records = [one.get_help_record(context) for one in command.get_params(context)]
        rows = [(f"`{spelled}`", _cell(meaning)) for spelled, meaning in filter(None, records) if spelled != "--help"]
        parts += _table(("argument or option", "meaning"), rows)
    return "\n".join(parts) + "\n"


def hyperparameters() -> str:
    """Every hyperparameter with its default, range and spellings."""
    rows = [
        (
            f"`{one.name}`",
            f"`{_value(one.default)}`",
            _cell(one.range),
            _cell(one.meaning),
            ", ".join(f"`{spelling}`" for spelling in one.spellings),
        )
        for one in hyperparameter_entries()
    ]
    head = (
        "# Hyperparameters\n\nSet one with `-H name=value`, or as an attribute of `evaluator.hyperparameters`. "
        "`heldout hyperparameters` prints this table. A value out of range is an error when it is set. "
        "The other spellings are those of the hosted service's documents; "
        "hyphens may stand for underscores.\n\n"
    )
    return head + "\n".join(_table(("name", "default", "expected", "meaning", "other spellings"), rows)) + "\n"


def metrics() -> str:
    """Every metric of the catalog: names, unit, range, direction, meaning, uses."""
    parts = [
        "# Metrics",
        "",
        "A metric has a name on the wire, which is its name in `metrics.json` and MLflow, and names for people. `heldout gate`, "
        "`compare` and the Python API take any of them; `heldout metrics` prints this table. "
        "`{k}` and `{name}` stand for a number or a name of yours. Methods and "
        "intervals: [Statistics](../explanation/statistics.md).",
        "",
    ]
    rows = [
        (
            f"`{one.name}`",
            ", ".join(map(_cell, (one.label, *one.spellings))),
            _cell(one.unit),
            _cell(one.range),
            _cell(one.direction),
            _cell(one.meaning),
            ", ".join(one.uses),
        )
        for one in metric_entries()
    ]
    head = ("wire name", "names for people", "unit", "range", "direction", "meaning", "used by")
    return "\n".join([*parts, *_table(head, rows)]) + "\n"


def run_folder() -> str:
    """The files of a run, and the columns of its tables."""
    parts = ["# Run folder and tables", "", inspect.getdoc(run) or "", ""]
    parts[2] = _fenced(parts[2])
    fields = _attributes("heldout.runs.run", "JobState")
    parts += ["## `job.json`", "", "Times are Unix seconds.", "", *_table(("field", "type", "meaning"), fields), ""]
    tables = {"prompts": list(PROMPTS_SCHEMA), **COLUMNS}
    notes = {"prompts": ("heldout.datasets.prompts", "PROMPTS_SCHEMA")}
    for name, columns in tables.items():
        rows = [
            (f"`{one.name}`", f"`{one.type}`", _cell((one.metadata or {}).get(DESCRIPTION, b"").decode()))
            for one in columns
        ]
        singular = "trajectory" if name == "trajectories" else name.removesuffix("s")
        note = _docstring(*notes.get(name, ("heldout.runs.columns", f"{singular.upper()}_COLUMNS")))
        parts += [f"## `{name}.parquet`", "", note, "", *_table(("column", "type", "meaning"), rows), ""]
    return "\n".join(parts)


def python_api() -> str:
    """The public names of `heldout`, in the order of use."""
    parts = [
        "# Python API",
        "",
        "Each name can be imported from `heldout`: `from heldout import MultiTurnRLEvaluator`.",
        "",
    ]
    for name in heldout.__all__:
        value = getattr(heldout, name)
        if name.startswith("_") or not hasattr(value, "__module__"):
            continue
        parts += [f"::: {value.__module__}.{value.__name__}", "    options:", "      inherited_members: true", ""]
    return "\n".join(parts)


def registry_file() -> str:
    """The sections of a registry file and their keys, with an example."""
    parts = ["# Registry file", "", _fenced(inspect.getdoc(registry) or "", "toml"), ""]
    parts += [
        "`--registry FILE`, the evaluator's `registry` or the environment variable `HELDOUT_REGISTRY` names the file.",
        "",
    ]
    for name, field in registry.Registry.model_fields.items():
        if name == "folder":
            continue
        entry = field.annotation.__args__[1]  # type: ignore[union-attr]  # each section is a dict of entries by name
        known = {**_documented(entry)}
        rows = [
            (f"`{key.replace('_', '-')}`", "yes" if one.is_required() else "no", _cell(known.get(key, "")))
            for key, one in entry.model_fields.items()
        ]
        section = name.replace("_", "-")
        parts += [f'## `[{section}."NAME"]`', "", _docstring("heldout.job.registry", f"Registry.{name}"), ""]
        parts += [*_table(("key", "required", "value"), rows), ""]
    return "\n".join(parts)


def models_and_agents() -> str:
    """Every form in which a model or an agent can be written, from the kinds that ship with Heldout."""
    parts = ["# Models and agents", ""]
    for role, option, kinds in (("Models", "--model", MODEL_KINDS), ("Agents", "--agent", AGENT_KINDS)):
        parts += [f"## {role}", "", f"`{option}` and the evaluator's fields take any of these forms.", ""]
        rows = [(f"`{form.text}`", _cell(form.meaning)) for kind in kinds for form in kind.forms]
        parts += [*_table(("form", "names"), rows), ""]
    parts += [
        "## Kinds from other packages",
        "",
        "An installed package can add kinds through the entry-point groups `heldout.policies` and `heldout.agents`. The example",
        "is `examples/extending/policy_kind`. Error lines list their forms too.",
    ]
    return "\n".join(parts)


def exit_codes() -> str:
    """Exit codes of every command, and the errors that the Python API raises."""
    codes = [
        (f"`{value}`", _cell(_docstring("heldout.cli.output", name)))
        for name, value in vars(output).items()
        if name.startswith("EXIT_")
    ]
    parts = [
        "# Exit codes and errors",
        "",
        "## Exit codes",
        "",
        *_table(("code", "meaning"), sorted(codes, key=_number)),
        "",
    ]
    parts += ["## Errors", ""]
    parts += [_fenced(_module("heldout.errors").docstring.value), ""]  # type: ignore[union-attr]
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/hyperparameters.md": hyperparameters,
    "reference/metrics.md": metrics,
    "reference/run-folder.md": run_folder,
    "reference/python.md": python_api,
    "reference/registry.md": registry_file,
    "reference/models-and-agents.md": models_and_agents,
    "reference/exit-codes.md": exit_codes,
}
"""The generated pages: where they stand in the site, and what writes them."""


def _number(row: Sequence[str]) -> int:
    return int(row[0].strip("`"))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines] if lines else []


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str | None) -> str:
    return " ".join(re.sub(r"(?<!\\)<", "&lt;", text or "").split()).replace("*", "\\*")


def _value(value: object) -> str:
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _fenced(text: str, language: str = "text") -> str:
    """A docstring whose indented parts become code blocks of a language."""
    return re.sub(
        r"(?m)(?:^    .*\n?|^\n(?=    ))+", lambda block: f"```{language}\n{inspect.cleandoc(block[0])}\n```\n", text
    )


def _attributes(module: str, name: str) -> list[tuple[str, str, str]]:
    """Annotated attributes of a class: name, type, docstring."""
    found = _module(module)[name]
    return [
        (
            f"`{one.name}`",
            f"`{one.annotation}`",
            _cell(one.docstring.value if one.docstring else ""),
        )
        for one in found.attributes.values()
        if one.annotation is not None and "property" not in one.labels
    ]


def _documented(model: type[Any]) -> dict[str, str]:
    """Docstrings of a model's fields by name, its bases' included."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if one.__module__.startswith("heldout."):
            members = _module(one.__module__)[one.__name__].attributes
            found |= {name: member.docstring.value for name, member in members.items() if member.docstring}
    return found


@functools.cache
def _module(name: str) -> griffe.Module:
    """A module as it is written, with the strings below its definitions."""
    path = Path(import_module(name).__file__ or "")
    return griffe.visit(name, path, path.read_text())


def _docstring(module: str, name: str) -> str:
    """The string below an attribute's definition; empty when there is none."""
    found = _module(module)[name]
    return "" if found.docstring is None else " ".join(found.docstring.value.split())
