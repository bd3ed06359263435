"""A backend of another package: one module and one entry point, reached from the evaluator, the command line and the handle."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heldout import Execution, InputError, MultiTurnRLEvaluator
from heldout.backends.local.run_log import LOG_FILE
from tests.support.model_servers import model_server
from tests.support.terminal import heldout

EXAMPLE = Path(__file__).parents[2] / "examples" / "extending"
AGENT = Path(__file__).parents[1] / "support" / "agents" / "agreeing.py"
MARKING = """
from heldout.backends.local.backend import LocalBackend

class MarkingBackend(LocalBackend):
    name = "marking"

    async def play_job(self, run, context):
        (run.folder / "played-by").write_text(self.name)
        return await super().play_job(run, context)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(tmp_path_factory.mktemp("models"), "yes") as address:
        yield address


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two backends, as an installer leaves it; and a home and a working folder of the test's own."""
    site = tmp_path / "site-packages"
    metadata = site / "further_backends-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: further-backends\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[heldout.backends]\n"
        "in-process = in_process_backend:InProcessBackend\n"
        "marking = marking_backend:MarkingBackend\n"
    )
    (site / "in_process_backend.py").write_text((EXAMPLE / "in_process_backend.py").read_text())
    (site / "marking_backend.py").write_text(MARKING)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))  # for processes that this one starts
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HELDOUT_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in (0.9, 0.8, 0.7)))


def evaluator(model: str, backend: str, **fields: Any) -> MultiTurnRLEvaluator:
    given: dict[str, Any] = {
        "agent_config": f"{AGENT}:play",
        "dataset": "prompts.jsonl",
        "s3_output_path": "out",
        "mlflow_resource_arn": "off",
    }
    made = MultiTurnRLEvaluator(model=model, backend=backend, **given | fields)
    made.hyperparameters.eval_group_size = 1
    made.hyperparameters.pass_k_values = (1,)
    return made


def evaluate(model: str, backend: str, *more: str) -> tuple[str, ...]:
    return (
        *("evaluate", "--model", model, "--agent", f"{AGENT}:play", "--dataset", "prompts.jsonl", "--output", "out"),
        *(
            "--name",
            "first",
            "--mlflow",
            "off",
            "--backend",
            backend,
            "-H",
            "eval_group_size=1",
            "-H",
            "pass_k_values=1",
        ),
        *more,
    )


def test_the_evaluator_returns_from_the_in_process_backend_when_the_evaluation_is_over(model: str) -> None:
    execution = evaluator(model, "in-process").evaluate()
    assert execution.status.overall_status == "Succeeded"
    assert execution.metrics["scripted"]["rollouts"] == {"prompts": 3, "scored": 3, "failed": 0, "missing": 0}
    assert not (Path(execution.path) / LOG_FILE).exists()  # the log of a detached process


def test_an_evaluation_of_the_in_process_backend_is_found_and_listed(model: str) -> None:
    execution = evaluator(model, "in-process").evaluate()
    assert Execution.get(execution.arn).path == execution.path
    for backend in (None, "in-process"):
        assert [one.arn for one in Execution.get_all(backend=backend)] == [execution.arn]
    assert list(Execution.get_all(backend="local")) == []


def test_an_evaluation_is_resumed_by_the_backend_that_started_it(model: str) -> None:
    made = evaluator(model, "in-process", agent_config=f"{AGENT}:slowly", stopping_condition=1)
    made.hyperparameters.rollout_max_concurrency = 1
    execution = made.evaluate()
    assert execution.status.overall_status == "Failed"
    assert "the maximum runtime is over" in (execution.status.failure_reason or "")
    while execution.status.overall_status != "Succeeded":
        finished = execution.metrics["scripted"]["rollouts"]["scored"]
        execution.resume()
        assert execution.metrics["scripted"]["rollouts"]["scored"] > finished
    assert not (Path(execution.path) / LOG_FILE).exists()


def test_an_evaluation_whose_last_rollout_ends_after_the_maximum_runtime_succeeds(model: str) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "1.5"}\n')
    execution = evaluator(model, "in-process", agent_config=f"{AGENT}:slowly", stopping_condition=1).evaluate()
    assert execution.status.overall_status == "Succeeded"


def test_a_dry_run_of_the_in_process_backend_plays_nothing(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    definition = evaluator(model, "in-process").evaluate(dry_run=True)
    assert definition in capsys.readouterr().out
    assert not Path("out").exists()


def test_the_command_line_plays_and_shows_an_evaluation_of_another_packages_backend(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(model, "marking")) == 0
    assert (Path("out/first") / "scripted" / "played-by").read_text() == "marking"
    assert heldout(monkeypatch, "show", "out/first") == 0
    assert capsys.readouterr().out.count("mean reward") == 2


def test_a_detached_process_plays_each_job_through_the_evaluations_own_backend(model: str) -> None:
    execution = evaluator(model, "marking").evaluate()
    execution.wait(poll=0.1, timeout=120)
    assert (Path(execution.path) / LOG_FILE).exists()
    assert (Path(execution.path) / "scripted" / "played-by").read_text() == "marking"


def test_a_backend_that_does_not_exist_is_one_line_with_the_nearest_name(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        "backend 'in-proces' is unknown; there are: in-process, local, marking, sagemaker. Did you mean 'in-process'?"
    )
    with pytest.raises(InputError) as refused:
        evaluator(model, "in-proces")
    assert str(refused.value) == line
    with pytest.raises(InputError, match="backend 'nowhere' is unknown"):
        Execution.get_all(backend="nowhere")
    assert heldout(monkeypatch, *evaluate(model, "in-proces")) == 2
    assert capsys.readouterr().err == f"heldout: {line}\n"
    assert not Path("out").exists()
