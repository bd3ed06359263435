"""MultiTurnRLEvaluator end to end, on this machine: evaluations in processes of their own, against scripted models."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from heldout import Execution, MultiTurnRLEvaluator
from heldout.errors import InputError, JobFailed, ReferenceProblem, RunError, WaitTimeout
from heldout.runs.journal import segments
from heldout.storage.lock import holder_of
from tests.support.model_servers import model_server

AGENT = Path(__file__).parents[1] / "support" / "agents" / "agreeing.py"
RUNTIME = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent"
PACKAGE = "arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"
DEADLINE_SECONDS = 120.0


class Models(NamedTuple):
    """Two policies: the base says "no", the tuned one "yes"."""

    base: str
    tuned: str


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    with model_server(folder, "no", "base") as base, model_server(folder, "yes", "tuned") as tuned:
        yield Models(base, tuned)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a working directory of the test's own, with eight held-out prompts."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HELDOUT_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_prompts(range(8))


def write_prompts(prompts: Any) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": str(prompt)}) + "\n" for prompt in prompts))


def evaluator(**fields: Any) -> MultiTurnRLEvaluator:
    given = {
        "agent_config": f"{AGENT}:play",
        "dataset": "prompts.jsonl",
        "s3_output_path": "out",
        "mlflow_resource_arn": "off",
    }
    return MultiTurnRLEvaluator(**given | fields)


def test_a_tilde_stands_for_the_home_folder(models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = evaluator(model=models.base, dataset="~/prompts.jsonl", s3_output_path="~/out")
    (job,) = (step for step in json.loads(made.evaluate(dry_run=True))["Steps"] if step["Type"] == "Job")
    document = job["Arguments"]["JobConfigDocument"]
    assert str(tmp_path / "prompts.jsonl") in document
    assert str(tmp_path / "out") in document
    assert "~" not in document


def until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait(execution: Execution) -> None:
    execution.wait(poll=0.1, timeout=DEADLINE_SECONDS)


def write_registry(models: Models) -> None:
    Path("names.toml").write_text(
        f'[models."gpt-oss-20b"]\nendpoint = "{models.base}"\n'
        f'[model-packages."{PACKAGE}"]\nendpoint = "{models.tuned}"\n'
        f'[agents."{RUNTIME}"]\nagent = "{AGENT}:play"\n'
        '[buckets."my-bucket"]\nfolder = "."\n'
    )


def test_the_sdks_own_example_runs_here(
    models: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_registry(models)
    monkeypatch.setenv("HELDOUT_REGISTRY", "names.toml")
    completed_mtrl_trainer = SimpleNamespace(
        _latest_job=SimpleNamespace(output_model_package_arn=PACKAGE),
        _model_name="gpt-oss-20b",
        agent_config={"BedrockAgentCoreConfig": {"AgentRuntimeArn": RUNTIME}},
    )
    # From here on the example of the SDK's documentation, but for its import and the names of its resources.
    evaluator = MultiTurnRLEvaluator(
        model=completed_mtrl_trainer,
        dataset="s3://my-bucket/prompts.jsonl",
        s3_output_path="s3://my-bucket/mtrl-eval-output/",
    )
    evaluator.mlflow_resource_arn = "off"
    execution = evaluator.evaluate()
    execution.wait()
    execution.show_results()

    said = capsys.readouterr().out
    assert "MTRL Evaluation Job" in said
    assert "Eval mode      : Fine-tuned model only" in said
    assert f"Agent          : {RUNTIME}" in said
    assert f"Pipeline execution started: {execution.arn}" in said
    assert "mean reward" in said
    assert execution.metrics["tuned"]["metrics"]["eval/reward/mean"] == 1.0
    assert [step.name for step in execution.status.step_details] == [
        "CreateEvaluationAction",
        "EvaluateFineTunedModel",
        "AssociateLineage",
    ]
    assert sorted(Path.cwd().iterdir()) == [
        Path.cwd() / name for name in ("mtrl-eval-output", "names.toml", "prompts.jsonl", "state")
    ]


def test_an_output_that_cannot_be_written_to_is_bad_input(models: Models) -> None:
    for output in ("prompts.jsonl", "/proc/x"):
        made = evaluator(model=models.base, s3_output_path=output)
        with pytest.raises(InputError, match=rf"output '.*{output}' cannot be written to .*s3_output_path"):
            made.evaluate()
        with pytest.raises(InputError, match=rf"output '.*{output}' cannot be written to"):
            made.evaluate(dry_run=True)
    assert [path.name for path in Path.cwd().iterdir()] == ["prompts.jsonl"]


def test_one_call_tells_whether_fine_tuning_helped(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    made = evaluator(model=models.tuned, base_model=models.base, evaluate_base_model=True, base_eval_name="quick")
    made.tags = [{"Key": "team", "Value": "rl"}]
    made.hyperparameters.eval_group_size = 2
    made.hyperparameters.pass_k_values = (1, 2)
    execution = made.evaluate()
    assert execution.status.overall_status == "Executing"
    wait(execution)
    assert execution.status.overall_status == "Succeeded"
    compared = execution.comparison
    assert compared is not None
    found = compared["metrics"]["eval/reward/pass_at_1"]
    assert (found["base"], found["fine_tuned"], found["difference"]) == (0.0, 1.0, 1.0)
    assert found["interval"][0] > 0
    assert found["p_value"] < 0.05
    assert compared["verdict"].startswith("tuned is better than base in pass@1: +1.00")
    assert {name: len(rows) for name, rows in execution.rollouts().groupby("run")} == {
        "base": 16,
        "tuned": 16,
    }
    assert len(execution.trajectories()) == 32
    assert (Path(execution.path) / "report.html").exists()
    assert execution.name.startswith("quick-")
    assert execution.s3_output_path == str(Path.cwd() / "out")
    assert execution.last_modified_time is not None
    definition = json.loads(execution.pipeline_definition)
    assert definition["Steps"][1]["Arguments"]["Tags"] == [{"Key": "team", "Value": "rl"}]
    document = json.loads(definition["Steps"][2]["Arguments"]["JobConfigDocument"])
    assert document["EvaluationConfig"]["HyperParameters"] == {"eval_group_size": 2, "pass_k_values": [1, 2]}
    said = capsys.readouterr().out
    assert "Eval mode      : Base + Fine-tuned comparison" in said
    execution.show_results()
    assert "tuned is better" in capsys.readouterr().out
    again = Execution.get(execution.arn)
    assert again.path == execution.path
    assert Execution.get(execution.path).arn == execution.arn
    assert [other.arn for other in MultiTurnRLEvaluator.get_all(session=None, region="us-west-2")] == [execution.arn]
    assert list(MultiTurnRLEvaluator.get_all(region="eu-west-1")) == []


@pytest.mark.slow
def test_a_base_model_alone_is_evaluated_with_any_other_option(
    models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    execution = evaluator(model=models.base, evaluate_base_model=True).evaluate()
    wait(execution)
    assert list(execution.metrics) == ["base"]
    assert execution.comparison is None
    assert execution.mlflow_url is None
    assert "Eval mode      : Base model only" in capsys.readouterr().out


@pytest.mark.slow
def test_the_callers_values_win_over_the_trainers(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    write_registry(models)
    trainer = SimpleNamespace(
        output_model_package_arn=PACKAGE, base_model_name="gpt-oss-20b", agent_config="nowhere.py:play"
    )
    made = evaluator(model=trainer, evaluate_base_model=True, registry="names.toml")
    execution = made.evaluate()
    wait(execution)
    means = {name: found["metrics"]["eval/reward/mean"] for name, found in execution.metrics.items()}
    assert means == {"base": 0.0, "tuned": 1.0}


@pytest.mark.slow
def test_an_evaluation_outlives_the_process_that_started_it(models: Models) -> None:
    write_prompts([0.5] * 4)
    script = (
        "import time\nfrom heldout import MultiTurnRLEvaluator\n"
        f"made = MultiTurnRLEvaluator(model={models.tuned!r}, agent_config={f'{AGENT}:slowly'!r}, "
        "dataset='prompts.jsonl', s3_output_path='out', mlflow_resource_arn='off')\n"
        "print(made.evaluate().arn, flush=True)\ntime.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    arn = next(line for line in starter.stdout if line.startswith("arn:")).strip()
    starter.kill()
    starter.communicate()
    (execution,) = MultiTurnRLEvaluator.get_all()
    assert execution.arn == arn
    wait(execution)
    assert execution.metrics["tuned"]["rollouts"]["scored"] == 4


@pytest.mark.slow
def test_a_stopped_evaluation_finishes_rollouts_in_flight_and_can_be_resumed(models: Models) -> None:
    write_prompts([0.3] * 6)
    made = evaluator(model=models.tuned, agent_config=f"{AGENT}:slowly")
    made.hyperparameters.rollout_max_concurrency = 2
    execution = made.evaluate()
    with pytest.raises(WaitTimeout, match="it continues"):
        execution.wait(poll=0.01, timeout=0.05)
    journal = Path(execution.path) / "tuned" / "journal"
    until(lambda: segments(journal))
    execution.stop()
    with pytest.raises(JobFailed, match=r"ended as Stopped"):
        wait(execution)
    assert execution.status.overall_status == "Stopped"
    assert execution.status.step_details[-1].status == "Stopped"
    execution.stop()
    execution.resume()
    wait(execution)
    assert execution.metrics["tuned"]["rollouts"]["scored"] == 6
    assert execution.rollouts()["attempts"].tolist() == [1] * 6


@pytest.mark.slow
def test_an_evaluation_with_a_killed_process_is_stopped_and_can_be_resumed(models: Models) -> None:
    write_prompts([0.3] * 6)
    made = evaluator(model=models.tuned, agent_config=f"{AGENT}:slowly")
    made.hyperparameters.rollout_max_concurrency = 2
    execution = made.evaluate()
    folder = Path(execution.path)
    until(lambda: segments(folder / "tuned" / "journal"))
    with pytest.raises(RunError, match="is being worked on by process"):
        execution.resume()
    pid = holder_of(folder)
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: holder_of(folder) is None)
    execution.refresh()
    assert execution.status.overall_status == "Stopped"
    assert "heldout resume" in (execution.status.failure_reason or "")
    execution.resume()
    wait(execution)
    assert execution.metrics["tuned"]["rollouts"]["scored"] == 6


@pytest.mark.slow
def test_a_failed_evaluation_gives_the_reason_at_the_failed_step(models: Models) -> None:
    Path("broken.py").write_text("def play(payload):\n    raise RuntimeError('broken')\n")
    write_prompts(["x"] * 60)
    made = evaluator(model=models.base, agent_config="broken.py:play")
    made.hyperparameters.rollout_max_retries = 0
    made.hyperparameters.rollout_max_concurrency = 8
    execution = made.evaluate()
    with pytest.raises(JobFailed, match=r"ended as Failed: step EvaluateBaseModel: .*broken"):
        wait(execution)
    assert execution.status.step_details[-1].status == "Failed"
    assert "broken" in (execution.status.step_details[-1].failure_reason or "")


def test_removed_evaluations_are_not_listed_and_unknown_arns_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "state" / "heldout" / "evaluations.jsonl"
    index.parent.mkdir(parents=True)
    index.write_text('not json\n{"arn": "arn:aws:sagemaker:x", "location": "/nowhere/at/all"}\n{"arn": 3}\n[]\n')
    assert list(Execution.get_all()) == []
    with pytest.raises(ReferenceProblem, match=r"no evaluation .*/abc' was started on this machine"):
        Execution.get("arn:aws:sagemaker:us-west-2:000000000000:pipeline/p/execution/abc")
    with pytest.raises(RunError, match="no evaluation in"):
        Execution.get("out/nothing")


def test_a_frame_of_another_kind_is_refused_with_the_kinds_there_are(models: Models) -> None:
    execution = evaluator(model=models.base).evaluate()
    with pytest.raises(InputError, match="frame is 'numpy'; it must be 'arrow', 'pandas' or 'polars'"):
        execution.rollouts(frame="numpy")  # type: ignore[arg-type]
    wait(execution)
