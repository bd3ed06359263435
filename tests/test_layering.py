"""Imports run one way, and lower rooms stay light: each is imported in a fresh process without heavy packages."""

import ast
import json
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import heldout

ROOT = Path(next(iter(heldout.__path__)))

# What a room may import of the project, besides itself, `errors`, `version` and `background`. Lowest room first.
_PLAYING = {"exhaustion", "http", "storage", "job", "runtime", "policies", "agents"}
_READING = {"storage", "job", "metrics", "datasets", "runs"}
_PIPELINE = _PLAYING | _READING | {"rollouts", "rescoring", "report", "tracking"}
ROOMS_BELOW = {
    "errors": set[str](),
    "version": set[str](),
    "exhaustion": set[str](),
    "background": set[str](),
    "job": {"metrics"},
    "metrics": {"job"},
    "http": set[str](),
    "storage": {"job"},
    "runtime": _PLAYING - {"runtime"},
    "policies": _PLAYING - {"policies"},
    "agents": _PLAYING - {"agents"},
    "datasets": {"storage", "job", "metrics"},
    "runs": {"storage", "job", "metrics", "datasets"},
    "rollouts": _PLAYING | _READING,
    "rescoring": _READING | {"agents"},
    "report": _READING | {"agents", "rescoring"},
    "tracking": _READING | {"agents", "rescoring", "report"},
    "pipeline": _PIPELINE,
    "backends": _PIPELINE | {"pipeline"},
    "service": _PIPELINE | {"pipeline", "backends"},
    "evaluator_fields": _PIPELINE | {"pipeline", "backends"},
    "execution": _PIPELINE | {"pipeline", "backends"},
    "results": _PIPELINE | {"pipeline", "backends", "execution"},
    "evaluator": _PIPELINE | {"pipeline", "backends", "evaluator_fields", "execution"},
    "cli": _PIPELINE | {"pipeline", "backends", "service", "evaluator", "evaluator_fields", "execution", "results"},
}

CLIENTS = {"aiohttp", "boto3", "botocore", "mlflow", "ray", "rich", "typer", "uvloop"}
# Packages that a room must not cost its importer.
TOO_HEAVY = {
    "errors": CLIENTS | {"numpy", "obstore", "orjson", "pandas", "pyarrow", "pydantic", "scipy"},
    "exhaustion": CLIENTS | {"numpy", "obstore", "orjson", "pandas", "pyarrow", "pydantic", "scipy"},
    "job": CLIENTS | {"numpy", "obstore", "pandas", "pyarrow", "scipy"},
    "metrics": CLIENTS | {"obstore", "pandas", "pyarrow", "scipy"},
    "http": CLIENTS | {"numpy", "obstore", "orjson", "pandas", "pyarrow", "pydantic", "scipy"},
    "storage": CLIENTS | {"numpy", "pandas", "pyarrow", "scipy"},
    "runtime": {"boto3", "mlflow", "pandas", "ray"},
    "policies": {"boto3", "mlflow", "pandas", "ray"},
    "agents": {"boto3", "mlflow", "pandas", "ray"},
    "rollouts": {"boto3", "mlflow", "pandas", "ray"},
}


def modules_of(room: str) -> list[str]:
    folder = ROOT / room
    if not folder.is_dir():
        return [f"heldout.{room}"] if folder.with_suffix(".py").exists() else []
    parts = (path.relative_to(ROOT).with_suffix("").parts for path in sorted(folder.rglob("*.py")))
    return [".".join(("heldout", *parts)).removesuffix(".__init__") for parts in parts if parts[-1] != "__main__"]


def brought_in_by(modules: list[str]) -> set[str]:
    """Every module in a fresh interpreter after importing these."""
    code = f"import importlib, json, sys\nfor m in {modules}: importlib.import_module(m)\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("room", [room for room in ROOMS_BELOW if modules_of(room)])
def test_a_room_brings_in_no_room_above_it_and_nothing_heavy(room: str) -> None:
    modules = brought_in_by(modules_of(room))
    rooms = {module.split(".")[1] for module in modules if module.startswith("heldout.")}
    assert rooms - ROOMS_BELOW[room] - {room, "errors", "version", "background"} == set()
    assert {module.split(".")[0] for module in modules} & TOO_HEAVY.get(room, set()) == set()


# What a wing or a module of the service may import of the others. Lowest first.
_STATE = {"wire", "store", "supervisor", "tags", "context"}
SERVICE_WINGS_BELOW = {
    "wire": set[str](),
    "store": {"wire"},
    "supervisor": {"wire", "store"},
    "tags": {"wire", "store"},
    "context": {"wire", "store", "supervisor"},
    "agents": _STATE,
    "mlflow": _STATE,
    "s3": _STATE,
    "sagemaker": _STATE | {"mlflow", "s3"},
    "cloudwatch": _STATE | {"mlflow", "s3", "sagemaker"},
    "application": _STATE | {"agents", "cloudwatch", "mlflow", "s3", "sagemaker"},
    "server": _STATE | {"agents", "cloudwatch", "mlflow", "s3", "sagemaker", "application"},
}


@pytest.mark.parametrize("wing", SERVICE_WINGS_BELOW)
def test_a_wing_of_the_service_imports_no_wing_above_it(wing: str) -> None:
    at = ROOT / "service" / wing
    nodes = [node for path in (at.rglob("*.py") if at.is_dir() else [at.with_suffix(".py")]) for node in _nodes(path)]
    imported = [f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]
    imported += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    wings = {name.split(".")[2] for name in imported if name.startswith("heldout.service.")}
    assert wings - SERVICE_WINGS_BELOW[wing] - {wing} == set()


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def test_every_wing_of_the_service_has_its_place_in_the_order() -> None:
    assert {path.stem for path in (ROOT / "service").iterdir()} - {
        "__init__",
        "__pycache__",
    } == SERVICE_WINGS_BELOW.keys()


def test_an_evaluation_starts_its_agent_before_it_loads_what_only_its_prompts_and_results_need() -> None:
    heavy = {"aiohttp", "boto3", "jinja2", "mlflow", "numpy", "pandas", "pyarrow", "scipy"}
    modules = brought_in_by(["heldout.cli.evaluate", "heldout.backends.local.job", "heldout.backends.local.services"])
    assert {module.split(".")[0] for module in modules} & heavy == set()


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert rooms - {"__init__"} == ROOMS_BELOW.keys()


def packages() -> list[Path]:
    """All but the root, which loads its names when they are first used (`test_public_names`)."""
    return [path for path in sorted(ROOT.rglob("__init__.py")) if path.parent != ROOT and path.read_text().strip()]


@pytest.mark.parametrize("path", packages(), ids=lambda path: path.parent.name)
def test_a_package_re_exports_exactly_what_its_all_says_in_order(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    exported = [alias.asname or alias.name for node in imports for alias in node.names]
    listed = [ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign)]
    assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in body), "it only re-exports"
    if exported:
        assert listed == [sorted(exported, key=_order)]


def _order(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then functions, each by the alphabet: the order the linter keeps."""
    return (not name.isupper(), not name[0].isupper(), name)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_comprehension_has_a_variable_of_the_name_that_another_one_beside_it_means_globally(path: Path) -> None:
    """Python 3.12.0 and 3.12.1 take both for one variable of the function: an UnboundLocalError."""
    for scope in _scopes(symtable.symtable(path.read_text(), str(path), "exec")):
        inside = [child for child in scope.get_children() if child.get_name() in ("listcomp", "setcomp", "dictcomp")]
        symbols = [symbol for child in inside for symbol in child.get_symbols()]
        bound = {symbol.get_name() for symbol in symbols if symbol.is_local()}
        assert bound & {symbol.get_name() for symbol in symbols if symbol.is_global()} == set(), scope


def _scopes(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield scope
    for child in scope.get_children():
        yield from _scopes(child)
