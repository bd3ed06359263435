"""Imports the user's file or module and gets the named agent from it."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from heldout.agents.entry_point_lookup import EntryPoint
from heldout.errors import did_you_mean

_HELDOUT = Path(__file__).parents[2]


class LoadProblem(Exception):
    """The user's code could not be loaded; the message is one line."""


@dataclass(frozen=True, slots=True)
class LoadedAgent:
    """The object that the entry point names, and its module."""

    entry_point: EntryPoint
    target: object
    module: ModuleType
    folder: Path
    """The folder of the user's own code: errors name the innermost line in it."""

    @property
    def is_application(self) -> bool:
        """Whether it is an ASGI application (three parameters: scope, receive, send), such as a BedrockAgentCoreApp."""
        if not callable(self.target) or inspect.isclass(self.target):
            return False
        try:
            parameters = list(inspect.signature(self.target).parameters)
        except (TypeError, ValueError):
            return False
        return parameters == ["scope", "receive", "send"]


def set_path(entry_point: EntryPoint, working_directory: Path) -> None:
    """Puts the folder of the agent's file first on sys.path, and the working directory next (for a module: that alone)."""
    folder = _folder(entry_point, working_directory)
    sys.path[:0] = [str(folder)] if folder == working_directory else [str(folder), str(working_directory)]


def load(entry_point: EntryPoint, working_directory: Path) -> LoadedAgent:
    """Imports the agent, once sys.path is set for it.

    Raises LoadProblem with the last line of the traceback and the user's own line it came from.
    """
    path = working_directory / entry_point.source
    folder = _folder(entry_point, working_directory)
    try:
        module = _run_file(path) if entry_point.is_file else importlib.import_module(entry_point.source)
    except (Exception, SystemExit) as error:  # the user's module-level code may raise anything
        print_error(error, folder)
        reason = ": ".join(describe(error, folder))
        way_out = _as_module(entry_point, error, working_directory)
        raise LoadProblem(f"{entry_point.role} {entry_point.text!r} cannot be imported: {reason}{way_out}") from error
    if not hasattr(module, entry_point.name):
        raise LoadProblem(
            f"{entry_point.role} {entry_point.text!r} not found: {entry_point.source} has no function {entry_point.name!r}."
            f"{did_you_mean(entry_point.name, vars(module))}"
        )
    target = getattr(module, entry_point.name)
    if not callable(target):
        raise LoadProblem(f"{entry_point.role} {entry_point.text!r} is {type(target).__name__}, which cannot be called")
    return LoadedAgent(entry_point, target, module, folder)


class Description(NamedTuple):
    """An exception in one line, in two parts."""

    kind: str
    text: str
    """The message and, in brackets, where it was raised."""


def describe(error: BaseException, folder: Path) -> Description:
    """Describes an exception, as `("ValueError", "message (file.py:12)")`, with the innermost line below `folder`, else of all.

    A group's message ends with the first of what it holds; no place in Heldout is named.
    """
    if isinstance(error, SyntaxError):
        return Description(type(error).__name__, f"{error.msg} ({Path(error.filename or '').name}:{error.lineno})")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(Path(frame.filename), folder)]
    others = [frame for frame in frames if not Path(frame.filename).is_relative_to(_HELDOUT)]
    kind, _, message = traceback.format_exception_only(error)[0].strip().partition(": ")
    place = [f"({Path(frame.filename).name}:{frame.lineno})" for frame in (own or others)[-1:]]
    if isinstance(error, BaseExceptionGroup):
        message += f", the first {': '.join(describe(error.exceptions[0], folder))}"
    return Description(kind, " ".join([*message.split(), *place]))


def print_error(error: BaseException, folder: Path) -> None:
    """Prints the traceback from the first line below `folder`; the lines before it are Heldout's."""
    start = error.__traceback__
    while start is not None and not _is_own(Path(start.tb_frame.f_code.co_filename), folder):
        start = start.tb_next
    traceback.print_exception(error if start is None else error.with_traceback(start))


def _folder(entry_point: EntryPoint, working_directory: Path) -> Path:
    return (working_directory / entry_point.source).parent if entry_point.is_file else working_directory


def _is_own(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and "site-packages" not in path.parts


def _as_module(entry_point: EntryPoint, error: BaseException, working_directory: Path) -> str:
    """A hint for a file whose relative imports only work when it is imported as a module of its package."""
    if not (entry_point.is_file and isinstance(error, ImportError) and "no known parent package" in str(error)):
        return ""
    source = Path(entry_point.source)
    if source.is_absolute():
        if not source.is_relative_to(working_directory):
            return ""
        source = source.relative_to(working_directory)
    return f"; give it as a module: {'.'.join(source.with_suffix('').parts)}:{entry_point.name}"


def _run_file(path: Path) -> ModuleType:
    name = path.stem
    if not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names:
        name = f"user_code_in_{path.stem}"  # the user's `math.py` must not replace Python's `math`
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
