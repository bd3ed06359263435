"""backend="sagemaker" against a server of the AWS protocols: evaluations as pipelines of managed jobs, from start to results."""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from heldout import Execution, MultiTurnRLEvaluator
from heldout.errors import CloudError, JobFailed, ReferenceProblem, RunError
from tests.support.cloud import (
    BUCKETS,
    DEADLINE_SECONDS,
    HELD,
    OUTPUT,
    Cloud,
    between_sagemaker_and,
    cloud_in,
    documents,
    evaluator,
    session,
    wait,
    write_prompts,
)
from tests.support.intercepting_proxy import Middle
from tests.support.live_service import REGION
from tests.support.s3_service import BUCKET, s3_client, s3_service
from tests.support.service_registry import FUNCTION, MODEL, PACKAGE, RUNTIME
from tests.support.terminal import heldout


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud_in(tmp_path_factory.mktemp("cloud")) as made:
        yield made


@pytest.fixture
def between(cloud: Cloud) -> Iterator[Middle]:
    with between_sagemaker_and(cloud) as made:
        yield made


@pytest.fixture(scope="module")
def compared(cloud: Cloud) -> Execution:
    """An evaluation of both models that is done."""
    made = evaluator(model=PACKAGE, evaluate_base_model=True, base_eval_name="both", registry=cloud.buckets)
    made.hyperparameters.pass_k_values = (1,)
    execution = made.evaluate()
    wait(execution)
    return execution


def test_both_models_are_played_and_compared(compared: Execution, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared.status.overall_status == "Succeeded"
    assert [step.name for step in compared.status.step_details] == [
        "CreateEvaluationAction",
        "EvaluateBaseModel",
        "EvaluateFineTunedModel",
        "AssociateLineage",
    ]
    assert compared.comparison is not None
    assert compared.comparison["metrics"]["eval/reward/pass_at_1"]["difference"] == 1.0
    compared.show_results()
    shown = capsys.readouterr().out
    assert "mean reward" in shown
    assert "fine-tuned-model-eval is better" in shown


@pytest.mark.slow
def test_the_numbers_are_those_of_the_same_evaluation_here(compared: Execution, cloud: Cloud, tmp_path: Path) -> None:
    made = evaluator(
        model=PACKAGE,
        evaluate_base_model=True,
        registry=cloud.everything,
        s3_output_path=str(tmp_path / "out"),
    )
    made.hyperparameters.pass_k_values = (1,)
    here = made.evaluate()
    wait(here)
    assert without_times(compared.metrics) == without_times(here.metrics)
    assert here.comparison is not None
    assert compared.comparison is not None
    assert compared.comparison["verdict"] == here.comparison["verdict"]


def without_times(metrics: Any) -> dict[str, Any]:
    return {
        run: {
            "metrics": {name: value for name, value in found["metrics"].items() if not name.startswith("timing")},
            "intervals": found["intervals"],
            "rollouts": found["rollouts"],
        }
        for run, found in metrics.items()
    }


def test_the_tables_are_brought_here(compared: Execution) -> None:
    assert {name: len(rows) for name, rows in compared.rollouts().groupby("run")} == {
        "base-model-eval": 8,
        "fine-tuned-model-eval": 8,
    }
    assert set(compared.trajectories()["run"]) == {"base-model-eval", "fine-tuned-model-eval"}


def test_an_output_that_is_elsewhere_is_said_to_be(
    compared: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere.toml").write_text(BUCKETS)
    monkeypatch.setenv("HELDOUT_REGISTRY", str(tmp_path / "elsewhere.toml"))
    found = Execution.get(compared.arn, session=session())
    assert (found.metrics, found.comparison, found.mlflow_url) == ({}, None, None)
    found.show_results()
    shown = " ".join(capsys.readouterr().out.split())
    assert "base-model-eval: no rollouts in s3://my-bucket/out, and it logged nothing to MLflow" in shown
    with pytest.raises(RunError, match="left no run folder in s3://my-bucket/out, so there are no tables"):
        found.rollouts()


def test_a_job_without_rollouts_is_shown_as_such(
    compared: Execution,
    cloud: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for state in (cloud.folder / "bucket").rglob("job.json"):
        begun = tmp_path / state.relative_to(cloud.folder)
        begun.parent.mkdir(parents=True)
        shutil.copy(state, begun)
    (tmp_path / "begun.toml").write_text(BUCKETS)
    monkeypatch.setenv("HELDOUT_REGISTRY", str(tmp_path / "begun.toml"))
    found = Execution.get(compared.arn, session=session())
    found.show_results()
    assert "base-model-eval: no rollouts in s3://my-bucket/out" in " ".join(capsys.readouterr().out.split())
    assert (found.metrics, found.comparison) == ({}, None)


def test_an_output_that_may_not_be_read_is_said_not_to_be(
    compared: Execution, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HELDOUT_REGISTRY")
    found = Execution.get(compared.arn, session=session())
    found.show_results()
    shown = " ".join(capsys.readouterr().out.split())
    assert "base-model-eval: output 's3://my-bucket/out': ListObjectsV2 was refused: NotImplemented: S3 is not" in shown
    assert "(HELDOUT_REGISTRY), and it logged nothing to MLflow" in shown
    with pytest.raises(CloudError, match="ListObjectsV2 was refused"):
        found.rollouts()


def test_an_evaluation_is_found_again_by_its_arn_and_in_the_list(compared: Execution) -> None:
    found = Execution.get(compared.arn, session=session())
    assert (found.name, found.s3_output_path) == (compared.name, OUTPUT)
    assert found.name.startswith("both-")
    assert found.last_modified_time <= compared.last_modified_time
    listed = [execution.arn for execution in MultiTurnRLEvaluator.get_all(session=session())]
    assert listed.count(compared.arn) == 1


def test_the_terminal_shows_and_stops_an_evaluation_by_its_arn(
    compared: Execution, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, "show", compared.arn) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{compared.name}: Succeeded\n")
    assert "fine-tuned-model-eval is better" in shown
    assert heldout(monkeypatch, "show", compared.arn, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["arn"], document["status"]) == (compared.arn, "Succeeded")
    assert document["comparison"]["verdict"].startswith("fine-tuned-model-eval is better")
    assert heldout(monkeypatch, "show", compared.arn, "--slice", "topic") == 2
    assert "--slice needs a run's folder" in capsys.readouterr().err

    assert heldout(monkeypatch, "stop", compared.arn) == 0
    assert capsys.readouterr().out == f"{compared.name} is Succeeded: there is nothing to stop\n"
    going_on = evaluator().evaluate()
    assert heldout(monkeypatch, "stop", going_on.arn) == 0
    assert f"{going_on.name} was asked to stop" in capsys.readouterr().out
    going_on.refresh()
    assert going_on.status.overall_status in ("Stopping", "Stopped")


def test_progress_that_is_not_told_does_not_end_the_waiting(
    compared: Execution, between: Middle, capsys: pytest.CaptureFixture[str]
) -> None:
    arn = f"arn:aws:sagemaker:{REGION}:000000000000:job/AgentRFTEvaluation/gone"
    step = {"StepName": "EvaluateBaseModel", "StepStatus": "Executing", "Metadata": {"Job": {"Arn": arn}}}
    between.changed["ListPipelineExecutionSteps"] = lambda reply: {"PipelineExecutionSteps": [step]}
    wait(Execution.get(compared.arn, session=session()))
    assert "DescribeJob was refused: ResourceNotFound" in capsys.readouterr().out


def test_an_arn_that_is_nowhere_is_told(cloud: Cloud) -> None:
    arn = "arn:aws:sagemaker:us-west-2:000000000000:pipeline/p/execution/0123456789ab"
    with pytest.raises(ReferenceProblem, match="does not exist in us-west-2, nor was it started on this machine"):
        Execution.get(arn, session=session())


def test_managed_jobs_cannot_be_gone_on_with(compared: Execution) -> None:
    with pytest.raises(RunError, match="runs as managed jobs, which cannot be resumed"):
        compared.resume()


@pytest.mark.slow
def test_a_stopped_evaluation_ends_as_stopped(cloud: Cloud) -> None:
    # Two of eight rollouts at a time, and none ends before the stop: the execution cannot succeed.
    release = cloud.folder / "release"
    write_prompts(cloud.folder / "bucket" / "held.jsonl", [release] * 8)
    made = evaluator(dataset="s3://my-bucket/held.jsonl", agent_config=HELD)
    made.hyperparameters.rollout_max_concurrency = 2
    execution = made.evaluate()
    execution.stop()
    assert execution.status.overall_status in ("Stopping", "Stopped")
    release.touch()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while execution.status.overall_status in ("Executing", "Stopping"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        execution.refresh()
    assert execution.status.overall_status == "Stopped"
    with pytest.raises(JobFailed, match="ended as Stopped"):
        wait(execution)


def test_models_and_runtimes_of_the_account_are_listed(cloud: Cloud) -> None:
    assert MultiTurnRLEvaluator.list_supported_models(session=session()) == [MODEL]
    assert MultiTurnRLEvaluator.list_bedrock_agentcore_runtimes(session=session()) == [
        {"name": "players", "runtime_id": "players-a1b2c3d4e5", "arn": RUNTIME, "status": "READY"}
    ]


@pytest.mark.slow
def test_without_a_run_folder_the_numbers_are_those_in_mlflow(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execution = evaluator(model=PACKAGE, mlflow_resource_arn=None).evaluate()
    wait(execution)
    assert execution.mlflow_url is not None
    assert "/mlflow-apps/" in execution.mlflow_url
    # As the hosted service leaves it: an output without Heldout's folder.
    (tmp_path / "elsewhere.toml").write_text(BUCKETS)
    monkeypatch.setenv("HELDOUT_REGISTRY", str(tmp_path / "elsewhere.toml"))
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", cloud.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    found = Execution.get(execution.arn, session=session())
    assert found.metrics["fine-tuned-model-eval"]["metrics"]["eval/reward/mean"] == 1.0
    assert found.metrics["fine-tuned-model-eval"]["intervals"] == {}
    assert found.comparison is None
    found.show_results()
    assert "logged by the service; without a table of rollouts there are no intervals" in capsys.readouterr().out
    with pytest.raises(RunError, match="left no run folder in s3://my-bucket/out, so there are no tables"):
        found.rollouts()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"model": MODEL}, ["EvaluateBaseModel"]),
        ({"model": PACKAGE}, ["EvaluateFineTunedModel"]),
        ({"model": PACKAGE, "agent_config": FUNCTION}, ["EvaluateFineTunedModel"]),
        ({"model": PACKAGE, "evaluate_base_model": True}, ["EvaluateBaseModel", "EvaluateFineTunedModel"]),
    ],
)
def test_every_shape_gives_the_numbers_that_it_gives_here(
    fields: dict[str, Any], shape: list[str], cloud: Cloud, tmp_path: Path
) -> None:
    there = evaluator(registry=cloud.buckets, **fields).evaluate()
    wait(there)
    here = evaluator(registry=cloud.everything, s3_output_path=str(tmp_path / "out"), **fields).evaluate()
    wait(here)
    assert list(documents(there.pipeline_definition)) == shape
    assert without_times(there.metrics) == without_times(here.metrics)


@pytest.mark.slow
def test_ten_evaluations_at_once_each_have_their_own_documents_results(cloud: Cloud) -> None:
    def run(number: int) -> tuple[int, int]:
        dataset = f"ten/{number}.jsonl"
        write_prompts(cloud.folder / "bucket" / dataset, range(number))
        made = evaluator(dataset=f"s3://my-bucket/{dataset}", registry=cloud.buckets, base_eval_name="ten")
        made.hyperparameters.eval_group_size = number
        execution = made.evaluate()
        execution.wait(poll=1.0, timeout=600.0)
        counted = execution.metrics["base-model-eval"]["metrics"]
        return int(counted["eval/reward/num_prompts"]), int(counted["eval/reward/rollouts_per_prompt"])

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(run, range(1, 11)))
    assert found == [(number, number) for number in range(1, 11)]


@pytest.mark.slow
def test_the_output_in_s3_is_read_with_the_given_session(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_service() as url:
        prompts = "".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(8))
        s3_client(url).put_object(Bucket=BUCKET, Key="prompts.jsonl", Body=prompts.encode())
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        here = {"dataset": f"s3://{BUCKET}/prompts.jsonl", "s3_output_path": f"s3://{BUCKET}/out"}
        made = evaluator(model=PACKAGE, evaluate_base_model=True, registry=cloud.buckets, **here)
        execution = made.evaluate()
        wait(execution)
        found = Execution.get(execution.arn, session=session())
        assert len(found.rollouts()) == 16
        assert found.comparison is not None
        assert found.comparison["verdict"].startswith("fine-tuned-model-eval is better")
        with pytest.raises(
            ReferenceProblem, match=r"dataset 's3://.*/none.jsonl': there is no such bucket, file or folder"
        ):
            evaluator(registry=cloud.buckets, **here | {"dataset": f"s3://{BUCKET}/none.jsonl"}).evaluate()
