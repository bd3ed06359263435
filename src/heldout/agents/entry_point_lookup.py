"""Finds the function that an entry point names, without running any of the user's code. The worker's `load` runs it."""

import ast
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from heldout.errors import ReferenceProblem, did_you_mean, shown


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """The parts of `file.py:function` or `package.module:function`."""

    text: str
    """As the user wrote it."""
    source: str
    """`file.py` or `package.module`."""
    name: str
    """The name to get from it: a function, a class instance with `__call__`, or an ASGI application."""
    role: str = "agent"
    """The user's word for it, used in error messages."""

    @property
    def is_file(self) -> bool:
        """Whether `source` is the path of a file, not a module's name."""
        return self.source.endswith(".py") or os.sep in self.source


def parse_entry_point(text: str, *, role: str = "agent") -> EntryPoint:
    """Parses an entry point. Raises ReferenceProblem when it has no `:` or no Python name after it."""
    source, colon, name = text.rpartition(":")
    if not colon or not source or not name.isidentifier():
        example = f"{text.rstrip(':')}:FUNCTION" if text.rstrip(":").endswith(".py") else f"{role}.py:solve"
        raise ReferenceProblem(
            f"{role} {shown(text)} is not an entry point; expected file.py:function or package.module:function, "
            f"as in {example}"
        )
    return EntryPoint(text, source, name, role)


def check_entry_point(entry_point: str, *, working_directory: Path | None = None, role: str = "agent") -> None:
    """Checks that an entry point's file or module is there and defines or imports the name. Runs none of its code.

    Paths are relative to `working_directory`, by default the current one. Raises ReferenceProblem. What only running can tell (a
    star import, a module-level `__getattr__`, a compiled module) passes.
    """
    parsed = parse_entry_point(entry_point, role=role)
    folder = working_directory or Path.cwd()
    path = _find_file(parsed, folder) if parsed.is_file else _find_module(parsed, folder)
    if path is None:
        return
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        place = f" ({path.name}:{error.lineno})" if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ReferenceProblem(
            f"{role} {entry_point!r} cannot be imported: {type(error).__name__}: {reason}{place}"
        ) from error
    names = set(_defined_names([tree]))
    if parsed.name not in names and not names & {"*", "__getattr__"}:
        raise ReferenceProblem(
            f"{role} {entry_point!r} not found: {parsed.source} has no function {parsed.name!r}."
            f"{did_you_mean(parsed.name, names)}"
        )


def _find_file(entry_point: EntryPoint, folder: Path) -> Path:
    path = folder / entry_point.source
    if path.is_file():
        return path
    near = [str(Path(entry_point.source).with_name(other.name)) for other in path.parent.glob("*.py")]
    raise ReferenceProblem(
        f"{entry_point.role} {entry_point.text!r} not found: there is no file {entry_point.source} in {folder}."
        f"{did_you_mean(entry_point.source, near)}"
    )


def _find_module(entry_point: EntryPoint, folder: Path) -> Path | None:
    """The module's source file; None for a module without one. Parents are searched, not imported."""
    spec = None
    for depth, spec in enumerate(module_specs(entry_point.source, [str(folder), *sys.path]), 1):
        if spec is None:
            name = ".".join(entry_point.source.split(".")[:depth])
            raise ReferenceProblem(
                f"{entry_point.role} {entry_point.text!r} not found: there is no module {name} in {folder} or installed"
            )
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def module_specs(name: str, path: Sequence[str]) -> Iterator[ModuleSpec | None]:
    """The specs of a module's packages, outermost first, and of the module itself; none of them is imported.

    The last is None where there is no such package or module. path: as sys.path.
    """
    search = path
    for depth, part in enumerate(name.split("."), 1):
        # By its last name alone: for a full name, finders look for the parents among the imported modules.
        spec = importlib.machinery.PathFinder.find_spec(part, search)
        if spec is None and depth == 1:
            spec = _installed(part)
        yield spec
        if spec is None:
            return
        search = list(spec.submodule_search_locations or ())


def _installed(module: str) -> ModuleSpec | None:
    """Asks all finders: editable installs have their own."""
    if module == "__main__":  # another process could not import it
        return None
    return importlib.util.find_spec(module)


def _defined_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that a module binds at its top level, also in blocks (`if`, `try`, `with`); `*` for a star import."""
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case ast.expr():
                names = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
                yield from (name.id for name in names if isinstance(name.ctx, ast.Store))
            case _:
                yield from _defined_names(ast.iter_child_nodes(node))
