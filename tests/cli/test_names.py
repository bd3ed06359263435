"""A run is called what its user calls it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import heldout as library
from tests.support.model_servers import model_server
from tests.support.terminal import heldout

AGENT = Path(__file__).parents[1] / "support" / "agents" / "agreeing.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("models")
    with model_server(folder, "no", "old-7b") as old, model_server(folder, "yes", "new-7b") as new:
        yield old, new


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HELDOUT_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(8)))


def evaluate(model: str, *more: str) -> tuple[str, ...]:
    return (
        *("evaluate", "--model", model, "--agent", f"{AGENT}:play", "--dataset", "prompts.jsonl"),
        *("--output", "out", "--name", "first", "--mlflow", "off", "-H", "pass_k_values=1"),
        *more,
    )


def test_runs_and_their_comparison_have_the_names_that_the_user_gives(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = models
    assert heldout(monkeypatch, *evaluate(f"step_240.v2={new}", "--compare-with", f"a.start={old}")) == 0
    printed = capsys.readouterr().out
    assert "step_240.v2 is better than a.start in pass@1" in printed
    assert sorted(path.parent.name for path in Path("out/first").glob("*/job.json")) == ["a.start", "step_240.v2"]
    page = Path("out/first/report.html").read_text()
    assert "a.start against step_240.v2" in page
    for text in (printed, page, Path("out/first/comparison.json").read_text()):
        assert "fine-tuned" not in text
        assert "base-model" not in text
    assert heldout(monkeypatch, "compare", "out/first") == 0
    assert "step_240.v2 is better than a.start in pass@1" in capsys.readouterr().out


def test_a_model_without_a_name_gives_its_run_its_own(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = models
    assert heldout(monkeypatch, *evaluate(new, "--compare-with", old)) == 0
    assert "new-7b is better than old-7b in pass@1" in capsys.readouterr().out


def test_the_baseline_comes_first_whatever_the_names(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = models
    assert heldout(monkeypatch, *evaluate(f"a={new}", "--compare-with", f"z={old}")) == 0
    assert list(library.load("out/first").runs) == ["z", "a"]  # type: ignore[union-attr]
    assert (library.compare("out/first").base, library.compare("out/first").fine_tuned) == ("z", "a")


@pytest.mark.parametrize(
    ("name", "other", "problem"),
    [
        ("my model", "base", "candidate name 'my model'"),
        ("report.html", "base", "candidate name 'report.html'"),
        ("", "base", "candidate name ''"),
        ("same", "Same", "candidate name 'same' is given to both models"),
    ],
)
def test_a_name_that_cannot_be_one_is_bad_input(
    models: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    other: str,
    problem: str,
) -> None:
    old, new = models
    assert heldout(monkeypatch, *evaluate(f"{name}={new}", "--compare-with", f"{other}={old}")) == 2
    assert problem in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_endpoint_with_an_option_needs_no_name(monkeypatch: pytest.MonkeyPatch, models: tuple[str, str]) -> None:
    monkeypatch.setenv("KEY", "secret")
    address, _, served = models[1].partition("#")
    assert heldout(monkeypatch, *evaluate(f"{address}?key-variable=KEY#{served}", "--limit", "1")) == 0
    assert Path("out/first/new-7b/job.json").exists()


def test_python_takes_the_same_names(models: tuple[str, str]) -> None:
    old, new = models
    made = library.MultiTurnRLEvaluator(
        model=f"tuned={new}",
        base_model=f"base={old}",
        evaluate_base_model=True,
        agent_config=f"{AGENT}:play",
        dataset="prompts.jsonl",
        s3_output_path="out",
        mlflow_resource_arn="off",
    )
    execution = made.evaluate()
    execution.wait(poll=0.05, timeout=120)
    assert list(execution.metrics) == ["base", "tuned"]
    assert execution.comparison is not None
    assert execution.comparison["verdict"].startswith("tuned is better than base")


def test_a_resumed_evaluation_keeps_its_names(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(f"tuned={models[1]}")) == 0
    assert heldout(monkeypatch, *evaluate(f"tuned={models[1]}", "--resume")) == 0
    assert heldout(monkeypatch, *evaluate(f"other={models[1]}", "--resume")) == 2
    assert "CandidateName 'tuned', not 'other'" in capsys.readouterr().err


def test_a_rollout_has_a_short_id_that_show_takes(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(f"tuned={models[0]}", "-H", "eval_group_size=2")) == 0
    assert re.search(r"open \d\.\d\b", " ".join(capsys.readouterr().out.split()))
    assert re.search(r"<a href=[^>]+>\d\.\d</a>", Path("out/first/tuned/report.html").read_text())
    assert heldout(monkeypatch, "show", "out/first/tuned", "--trajectory", "3.1", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["prompt_index"], shown["rollout_index"]) == (3, 1)
    assert heldout(monkeypatch, "show", "out/first/tuned", "--trajectory", "8.0") == 2
    assert "'8.0'" in capsys.readouterr().err


def test_the_list_shows_model_score_and_failures(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(f"tuned={models[1]}")) == 0
    capsys.readouterr()
    assert heldout(monkeypatch, "list", "out") == 0
    assert "out/first/tuned  new-7b  pass@1 1.00  0 of 8 failed" in capsys.readouterr().out
    assert heldout(monkeypatch, "list", "out", "--json") == 0
    [run] = (one for one in json.loads(capsys.readouterr().out) if one["kind"] == "run")
    assert (run["model"], run["success_rate"]) == ("new-7b", 1.0)
    assert (run["failed_rollouts"], run["ended_rollouts"]) == (0, 8)


def test_the_list_shows_the_model_of_a_run_without_results(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(f"tuned={models[1]}")) == 0
    Path("out/first/tuned/metrics.json").unlink()
    capsys.readouterr()
    assert heldout(monkeypatch, "list", "out") == 0
    assert "out/first/tuned  new-7b\n" in capsys.readouterr().out
    assert heldout(monkeypatch, "list", "out", "--json") == 0
    [run] = (one for one in json.loads(capsys.readouterr().out) if one["kind"] == "run")
    assert (run["model"], run["success_rate"], run["failed_rollouts"]) == ("new-7b", None, None)


def experiments() -> dict[str, list[str]]:
    """The names of the runs of each MLflow experiment in the output."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('out').absolute()}/mlflow.db")
    return {
        experiment.name: sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
        for experiment in client.search_experiments(filter_string="name != 'Default'")
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:sqlalchemy")
def test_runs_on_one_dataset_with_one_agent_are_in_one_mlflow_experiment_under_their_names(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = models
    in_mlflow = ("--mlflow", f"sqlite:///{Path('out').absolute()}/mlflow.db")
    Path("out").mkdir()
    assert heldout(monkeypatch, *evaluate(f"step_1={new}", "--compare-with", f"start={old}", *in_mlflow)) == 0
    assert heldout(monkeypatch, *evaluate(new, *in_mlflow, "--name", "second")) == 0
    elsewhere = ("--name", "third", "--experiment", "my search")
    assert heldout(monkeypatch, *evaluate(f"step_2={new}", *in_mlflow, *elsewhere)) == 0
    assert experiments() == {
        "agreeing.py:play on prompts.jsonl": ["new-7b", "start", "step_1"],
        "my search": ["step_2"],
    }


def test_an_experiment_without_mlflow_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: tuple[str, str]
) -> None:
    assert heldout(monkeypatch, *evaluate(models[1], "--experiment", "mine")) == 2
    assert "--experiment 'mine'" in capsys.readouterr().err
