"""The installed packages that workers get from the launcher, which imports them once for all.

A known package is safe to share: its import starts no thread, opens no file or connection, gives no generator of random numbers a
fixed seed, and reads only the environment variables named here. Each worker imports every other package itself.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from heldout.agents.entry_point_lookup import EntryPoint, module_specs

_HTTPX = ("httpx", "httpcore", "anyio._backends._asyncio")
_OPENAI = ("openai", "openai.resources.chat", *_HTTPX)
KNOWN_PACKAGES = {
    "aiohttp": ("aiohttp",),
    "anthropic": ("anthropic", "anthropic.resources.messages", *_HTTPX),
    "boto3": ("boto3",),
    "httpx": _HTTPX,
    "langchain_core": ("langchain_core",),
    "langchain_openai": ("langchain_openai", *_OPENAI),
    "mcp": ("mcp", *_HTTPX),
    "openai": _OPENAI,
    "orjson": ("orjson",),
    "pydantic": ("pydantic",),
    "requests": ("requests",),
    "strands": ("strands",),
}
"""The imports of each package, with what it imports on first use: a third of the openai client waits for its first call."""
VARIABLES_READ = (
    "ANTHROPIC_LOG",
    "AZURE_OPENAI_",
    "OPENAI_API_TYPE",
    "OPENAI_API_VERSION",
    "OPENAI_LOG",
    "OTEL_",
    "PSUTIL_DEBUG",
    "PYDANTIC_",
    "PYTHONASYNCIODEBUG",
    "PYTHONTZPATH",
    "SSLKEYLOGFILE",
    "_EXTENSIONS",
    "_RUN_COMPRESSION_",
)
"""Parts of the names of environment variables that known packages read when they are imported."""


def known_imports(entry_point: EntryPoint, working_directory: Path) -> list[str]:
    """The modules of known packages that the agent's files import at top level, with what those packages import on first use.

    The agent's files: that of the entry point and the modules below its folder or the working directory that it imports.
    Empty if one of them names a variable that such an import reads: the agent may set the variable first.
    sys.path must be set for the agent. Files that cannot be read are left out: the agent's own import reports the error.
    """
    waiting = _first_files(entry_point, working_directory)
    folders = [*{file.parent: None for file in waiting}, working_directory]
    found: dict[str, None] = {}
    read: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in read:
            continue
        read.add(file)
        try:
            source = file.read_text()
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue
        if any(variable in source for variable in VARIABLES_READ):
            return []
        for level, module in _imports(tree):
            own_files = list(_own_files([file.parents[level - 1]] if level else folders, module))
            waiting += own_files
            if not own_files and (package := module.partition(".")[0]) in KNOWN_PACKAGES:
                found |= dict.fromkeys((*KNOWN_PACKAGES[package], module))
    return list(found)


def _first_files(entry_point: EntryPoint, working_directory: Path) -> list[Path]:
    """The file of the entry point; for a module also those of its packages."""
    if entry_point.is_file:
        return [working_directory / entry_point.source]
    origins = [spec.origin for spec in module_specs(entry_point.source, sys.path) if spec is not None]
    return [Path(origin) for origin in origins if origin is not None and origin.endswith(".py")]


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The import statements at the top level of a file: how many dots, and a module."""
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            yield from ((0, alias.name) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module = [statement.module] if statement.module else []
            # Each name may be a submodule.
            yield from ((statement.level, ".".join([*module, alias.name])) for alias in statement.names)


def _own_files(folders: Iterable[Path], module: str) -> Iterator[Path]:
    """The files that importing one of the user's own modules runs: its packages' and its own. Empty for another module."""
    parts = module.split(".")
    for folder in folders:
        for depth in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:depth])
            yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())
