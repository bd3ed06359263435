"""A third-party package adds a metric by one function and one row, and all of Heldout uses it."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from heldout.cli import judge, metrics, show
from heldout.errors import MetricError
from heldout.metrics.catalog import catalog
from heldout.report.page import write_report
from heldout.runs.run import Run
from heldout.tracking.run_data import RunData
from tests.support.installed_package import install
from tests.support.report_runs import Play, written_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "extending" / "metric"
GOOD = Play(1.0)
WASTED = Play(0.0, ("look",) * 3)
QUICK_LOSS = Play(0.0)

Heldout = Callable[..., str]


@pytest.fixture(autouse=True)
def fresh_catalog() -> Iterator[None]:
    """Packages are looked for once a process: before each test here, and after it."""
    catalog.cache_clear()
    yield
    catalog.cache_clear()
    sys.modules.pop("broken_metric", None)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(EXAMPLE, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def heldout(capsys: pytest.CaptureFixture[str]) -> Heldout:
    """Runs a command in this process and gives what it printed."""
    app = typer.Typer()
    for group in (judge, metrics, show):
        group.add_to(app)

    def run(*arguments: object) -> str:
        capsys.readouterr()
        app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def run(installed: None, tmp_path: Path) -> Run:
    """Eight prompts; of each one's four rollouts one is wasted."""
    return written_run(tmp_path / "run", [[GOOD, GOOD, QUICK_LOSS, WASTED]] * 7 + [[GOOD, GOOD, WASTED, WASTED]])


def test_it_is_in_metrics_json_with_an_interval(run: Run) -> None:
    document = json.loads(run.metrics_path.read_bytes())
    assert document["metrics"]["custom/wasted_frac"] == 9 / 32
    low, high = document["intervals"]["custom/wasted_frac"]
    assert 0 < low < 9 / 32 < high < 1


def test_it_is_in_the_table_and_the_report_by_its_names(run: Run, heldout: Heldout) -> None:
    assert "│ wasted " in heldout("show", run.folder)
    page = write_report(run).read_text()
    assert "share of wasted rollouts" in page
    assert "custom/wasted_frac" in page


@pytest.mark.parametrize("name", ["custom/wasted_frac", "wasted", "share of wasted rollouts"])
def test_a_gate_takes_any_of_its_names(run: Run, heldout: Heldout, name: str) -> None:
    assert heldout("gate", run.folder, "--require", f"{name} <= 0.3").startswith("pass")
    assert heldout("gate", run.folder, "--require", f"lower({name}) > 0").startswith("pass")


def test_a_comparison_and_a_ranking_know_that_less_is_better(run: Run, heldout: Heldout, tmp_path: Path) -> None:
    worse, twin = (written_run(tmp_path / name, [[GOOD, WASTED, WASTED, WASTED]] * 8) for name in ("worse", "twin"))
    compared = json.loads(heldout("compare", run.folder, worse.folder, "--json"))["metrics"]["custom/wasted_frac"]
    assert compared["difference"] == pytest.approx(24 / 32 - 9 / 32)
    assert compared["verdict"].startswith("worse is worse than run in wasted: +0.47")
    assert "share of wasted rollouts" in heldout("compare", run.folder, worse.folder)
    folders = (worse.folder, run.folder, twin.folder)
    ranked = json.loads(heldout("compare", *folders, "--metric", "wasted", "--json"))
    assert ranked["metric"] == "custom/wasted_frac"
    best = ranked["runs"][0]
    assert (Path(best["run"]).name, best["rank"]) == ("run", 1)
    gate = ("gate", run.folder, "--no-regression-against", worse.folder, "--metric", "wasted")
    assert heldout(*gate).startswith("pass")


def test_a_margin_is_held_against_an_increase(run: Run, heldout: Heldout, tmp_path: Path) -> None:
    worse = written_run(tmp_path / "worse", [[GOOD, WASTED, WASTED, WASTED]] * 8)

    def verdict(base: Run, fine_tuned: Run) -> str:
        document = json.loads(heldout("compare", base.folder, fine_tuned.folder, "--margin", "0.1", "--json"))
        return str(document["metrics"]["custom/wasted_frac"]["verdict"])

    assert verdict(worse, run).endswith("; not worse by 0.10 or more")
    assert verdict(run, worse).endswith("; worse by 0.10 or more cannot be ruled out")


def test_it_goes_to_mlflow_with_its_interval(run: Run) -> None:
    logged = RunData.of(run)
    assert "custom/wasted_frac" in logged.metrics
    assert re.search(r"`custom/wasted_frac`\W+\d\.\d+\W+\[\d", logged.note)


def test_the_catalog_lists_it(installed: None, heldout: Heldout) -> None:
    entry = next(one for one in json.loads(heldout("metrics", "--json")) if one["name"] == "custom/wasted_frac")
    assert (entry["direction"], entry["range"], entry["uses"]) == (
        "lower is better",
        "0 to 1",
        ["run", "gate", "comparison"],
    )


def _package(folder: Path, source: str, name: str = "custom/broken") -> Path:
    folder.mkdir()
    (folder / "broken_metric.py").write_text(source.replace("NAME", repr(name)))
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "broken"\nversion = "1"\n[project.entry-points."heldout.metrics"]\nbroken = "broken_metric:ROW"\n'
    )
    return folder


ROW = """
from heldout.metrics.metric import Metric

def compute(tables):
    raise ZeroDivisionError("no tools")

ROW = Metric(name=NAME, label="broken", meaning="Nothing", compute=compute, unit="")
"""


def test_a_function_that_raises_costs_its_own_number_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(_package(tmp_path / "package", ROW), tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    document = json.loads(written_run(tmp_path / "run", [[GOOD]] * 3).metrics_path.read_bytes())
    assert document["metrics"]["eval/reward/mean"] == 1.0
    assert document["notes"]["custom/broken"] == "its function raised ZeroDivisionError: no tools"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("ROW = 3", "", r"metric 'broken_metric:ROW' is 3; it must be a heldout\.metrics\.metric\.Metric or Family"),
        ("import no_such_module", "", r"metric 'broken_metric:ROW' cannot be loaded \(ModuleNotFoundError"),
        (ROW, "eval/turns/mean", "has the wire name 'eval/turns/mean', which another metric has"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str, message: str
) -> None:
    install(_package(tmp_path / "package", source, name), tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(MetricError, match=message):
        catalog()
