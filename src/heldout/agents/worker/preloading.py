"""Imports what an agent imports before it does anything of its own, in the process that its workers are forked from.

Only installed modules are imported here, and only those that the agent's code is sure to import first, in its order: the code
itself is read, not run. It is followed into its own modules, and left where it does something (a call, a change to
`os.environ`, an `if`), because what it imports after that may depend on it.
"""

import ast
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

from heldout.agents.entry_point_lookup import EntryPoint, module_specs
from heldout.agents.worker.generators import Generators
from heldout.agents.worker_protocol import ALL_VARIABLES

_HELDOUT = Path(__file__).parents[2]
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
_FURTHER = {"openai": "openai.resources.chat", "httpx": "httpcore", "anyio": "anyio._backends._asyncio"}
"""What an installed module imports when it is first used: a third of the openai client's imports wait for its first call."""
_NEEDLESS = ("httpx._main",)
"""What an installed module does without if it must: httpx's own command brings rich and pygments along, where they are there, and
they take a twelfth of the openai client's imports."""


class _Enough(Exception):
    """Nothing further can be imported ahead."""


class Preloading:
    """Imports ahead, in a process that did nothing else before."""

    def __init__(self, generators: Generators) -> None:
        """generators: watches what imports make."""
        self._generators = generators
        self._descriptors = _descriptors()
        self._seen: set[str] = set()

    def run(self, entry_point: EntryPoint, working_directory: Path) -> bool:
        """Whether workers may be forked from this process now; sys.path must be as the agent will have it.

        Not when an import left what processes cannot share: a thread, an open file or connection, random numbers that would
        be the same in all of them even if its generators were seeded anew.
        """
        with _without(_NEEDLESS):
            try:
                if entry_point.is_file:
                    self._follow(working_directory / entry_point.source, package="")
                else:
                    self._import(entry_point.source, [])
            except _Enough:
                pass
            for name, further in _FURTHER.items():
                if name in sys.modules:
                    with suppress(ImportError):  # another version
                        importlib.import_module(further)
        return self._is_alone() and self._generators.can_differ()

    def _follow(self, path: Path, package: str) -> None:
        """Imports what the user's own file at `path`, a module of `package`, imports first."""
        try:
            statements = ast.parse(path.read_bytes()).body
        except (OSError, SyntaxError, ValueError) as error:
            raise _Enough from error
        for statement in statements:
            match statement:
                case ast.Import(names=aliases):
                    for alias in aliases:
                        self._import(alias.name, [])
                case ast.ImportFrom(module=module, names=aliases, level=level):
                    try:
                        name = importlib.util.resolve_name("." * level + (module or ""), package)
                    except ImportError as error:
                        raise _Enough from error
                    self._import(name, [alias.name for alias in aliases])
                case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"), orelse=[]):
                    pass
                case _ if not _does_nothing(statement):
                    raise _Enough

    def _import(self, name: str, members: list[str]) -> None:
        """Does what `import name` or `from name import members` does, if the module is an installed one; else follows it."""
        outermost = next(module_specs(name, sys.path))
        if outermost is None:
            raise _Enough  # the agent's own import will say so
        if _is_installed(outermost):
            try:
                __import__(name, fromlist=members)
            except (Exception, SystemExit) as error:  # an installed module may raise anything; it will again
                raise _Enough from error
            if not self._is_alone():
                raise _Enough
            return
        for depth, spec in enumerate(module_specs(name, sys.path), 1):
            self._visit(".".join(name.split(".")[:depth]), spec)
        for member in members:
            *_, spec = module_specs(f"{name}.{member}", sys.path)
            if spec is not None:  # else it is something in the module
                self._visit(f"{name}.{member}", spec)

    def _visit(self, name: str, spec: ModuleSpec | None) -> None:
        if spec is None:
            raise _Enough
        if name in self._seen or not spec.has_location:  # a package without `__init__.py` runs nothing
            return
        self._seen.add(name)
        if spec.origin is None or not spec.origin.endswith(".py"):
            raise _Enough
        self._follow(Path(spec.origin), name if spec.submodule_search_locations else name.rpartition(".")[0])

    def _is_alone(self) -> bool:
        return len(os.listdir("/proc/self/task")) == 1 and _descriptors() == self._descriptors  # noqa: PTH208  # no pathlib


@contextmanager
def variables_read() -> Iterator[set[str]]:
    """The names of the environment variables that Python code looks at inside, in a set that fills."""
    names: set[str] = set()

    class Recorder(os._Environ[str]):
        def __getitem__(self, key: str) -> str:
            names.add(key)
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[str]:
            names.add(ALL_VARIABLES)
            return super().__iter__()

    os.environ.__class__ = Recorder  # whoever holds on to it must hold the same one
    try:
        yield names
    finally:
        os.environ.__class__ = os._Environ


@contextmanager
def _without(modules: Iterable[str]) -> Iterator[None]:
    """An import of these inside fails as if they were not installed; after it they can be imported."""
    absent = dict.fromkeys(modules)  # None in sys.modules halts the import
    sys.modules.update(absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _descriptors() -> set[str]:
    """What this process has open, with the listing itself."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def _is_installed(spec: ModuleSpec) -> bool:
    """Whether a module is not of the user's own code: of the standard library, installed, or Heldout itself."""
    if not spec.has_location and not spec.submodule_search_locations:
        return True  # built into the interpreter
    places = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])]
    return all(
        bool(_INSTALLED & set(place.parts)) or place.is_relative_to(_STANDARD_LIBRARY) or place.is_relative_to(_HELDOUT)
        for place in places
    )


def _does_nothing(statement: ast.stmt) -> bool:
    """Whether running the statement can change nothing but names of its own module."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            defaults = [
                default for default in [*statement.args.defaults, *statement.args.kw_defaults] if default is not None
            ]
            return not statement.decorator_list and all(_calls_nothing(default) for default in defaults)
        case ast.ClassDef():
            bases = [*statement.bases, *(keyword.value for keyword in statement.keywords)]
            return (
                not statement.decorator_list
                and all(_calls_nothing(base) for base in bases)
                and all(_does_nothing(inner) for inner in statement.body)
            )
        case ast.Assign(targets=targets, value=value):
            return all(isinstance(target, ast.Name) for target in targets) and _calls_nothing(value)
        case ast.AnnAssign(target=ast.Name(), value=value):
            return value is None or _calls_nothing(value)
        case ast.Expr(value=value):
            return isinstance(value, ast.Constant)
        case _:
            return isinstance(statement, ast.Pass)


def _calls_nothing(expression: ast.expr) -> bool:
    return not any(isinstance(inner, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for inner in ast.walk(expression))
