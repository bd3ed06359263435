"""The published sagemaker-train against `heldout serve`: two processes that share only environment variables."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from heldout.pipeline.definition import Shape
from heldout.tracking.connection import connected
from tests.support.jobs import write_prompts
from tests.support.model_servers import model_server
from tests.support.s3_service import s3_client, s3_service
from tests.support.service_registry import BUCKET, MODEL, NOWHERE, PACKAGE, RUNTIME, registry_text

PROMPTS = ("1", "0", "turns 3", "0.5")
OUTPUT = f"s3://{BUCKET}/output"
EXPERIMENT = f"mtrl-eval-{MODEL}"
BASE, FINE_TUNED = "base-model-eval", "fine-tuned-model-eval"
RUNS = {Shape.BASE_ONLY: (BASE,), Shape.FINE_TUNED_ONLY: (FINE_TUNED,), Shape.COMPARISON: (BASE, FINE_TUNED)}


@contextmanager
def serving(folder: Path, registry: str, **variables: str) -> Iterator[dict[str, str]]:
    """A server of `registry` in a process of its own; gives the variables that point AWS clients at it.

    variables: further ones, of the server and of its clients.
    """
    (folder / "registry.toml").write_text(registry)
    (folder / "sagemaker.yaml").write_text(
        "{SchemaVersion: '1.0', SageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}}"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_"))}
    environment |= {
        "AWS_ACCESS_KEY_ID": "anything",
        "AWS_SECRET_ACCESS_KEY": "at all",
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_CONFIG_FILE": "/nonexistent",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(folder / "sagemaker.yaml"),
        # The SDK asks sts.<region>.amazonaws.com, wherever AWS_ENDPOINT_URL points; nobody is to wait for that here.
        "AWS_MAX_ATTEMPTS": "1",
    } | variables
    command = ["serve", "--port", "0", "--registry", str(folder / "registry.toml"), "--state", str(folder / "state")]
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "heldout"), *command], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2]
        yield environment | {"AWS_ENDPOINT_URL": url}
    finally:
        process.terminate()
        process.communicate(timeout=60)


def used(folder: Path, environment: dict[str, str], *, dry_run: bool = False, **evaluator: Any) -> dict[str, Any]:
    """What the user's script saw. evaluator: arguments of its evaluator, beside those that it always gets."""
    everywhere = {"agent_config": RUNTIME, "dataset": f"s3://{BUCKET}/eval/prompts.jsonl", "s3_output_path": OUTPUT}
    settings = {
        "evaluator": everywhere | evaluator,
        "hyperparameters": {"eval_group_size": 2, "pass_k_values": [1, 2]},
        "dry_run": dry_run,
    }
    return ran("sdk_user.py", settings, folder, environment)


def ran(name: str, settings: dict[str, Any], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What a script of the SDK's saw, started in `folder`."""
    script = Path(__file__).parents[1] / "support" / name
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), json.dumps(settings)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.slow
def test_the_sdks_dry_run_finds_all_resources(tmp_path: Path) -> None:
    with serving(tmp_path, registry_text(NOWHERE, NOWHERE)) as environment:
        seen = used(tmp_path, environment, dry_run=True, model=PACKAGE)
    assert seen == {"models": [MODEL], "runtimes": [RUNTIME], "training_jobs": []}


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(Shape))
def test_an_evaluation_of_the_sdk_completes(tmp_path: Path, shape: Shape) -> None:
    arguments: dict[str, Any] = {
        "model": MODEL if shape is Shape.BASE_ONLY else PACKAGE,
        "evaluate_base_model": shape is Shape.COMPARISON,
    }
    write_prompts(tmp_path / "bucket" / "eval", PROMPTS)
    with (
        model_server(tmp_path, "of the base") as base,
        model_server(tmp_path, "of the tuned", "tuned") as tuned,
        serving(tmp_path, registry_text(base, tuned)) as environment,
    ):
        seen = used(tmp_path, environment, **arguments)
    assert seen["status"] == "Succeeded"
    assert set(seen["steps"].values()) == {"Succeeded"}
    assert seen["known"] == [seen["arn"]]
    runs = RUNS[shape]
    assert sorted(job["mlflow"]["RunName"] for job in seen["jobs"]) == sorted(runs)
    for job in seen["jobs"]:
        assert job["status"] == "Completed"
        assert job["agent"] == {"BedrockAgentCoreConfig": {"AgentRuntimeArn": RUNTIME}}
        assert job["output"] == OUTPUT
        assert job["progress"] == {"CurrentStep": 8, "MaxSteps": 8}
        assert job["tokens"]["SampleTokenCount"] > 0
        assert job["mlflow"]["RunId"] in {run["run_id"] for run in logged(tmp_path, job["mlflow"]["ExperimentName"])}
    assert any(
        f"/experiments/{job['mlflow']['ExperimentId']}/runs/{job['mlflow']['RunId']}" in seen["mlflow_url"]
        for job in seen["jobs"]
    )
    assert {path.parent.name for path in tmp_path.glob("bucket/output/*/*/rollouts.parquet")} == set(runs)
    for run in runs:
        check_rollouts(tmp_path, run)


@pytest.mark.slow
def test_the_sdks_log_streamer_reads_a_jobs_log(tmp_path: Path) -> None:
    write_prompts(tmp_path / "bucket" / "eval", (*PROMPTS, "raise no luck"))
    with (
        model_server(tmp_path, "of the base") as model,
        serving(tmp_path, registry_text(model, model)) as environment,
    ):
        (job,) = used(tmp_path, environment, model=MODEL)["jobs"]
        seen = ran("sdk_logs.py", {"job": job["name"]}, tmp_path, environment)
    lines, nothing_new = seen["looks"]
    said = [text for _, text in lines]
    assert said[0] == "playing 10 rollouts"
    assert any("agent: raised" in text and "no luck" in text for text in said)
    assert any(text.startswith("played 10/10 rollouts") for text in said)
    assert nothing_new == []
    assert seen["tail"] == lines[-2:]
    assert [line.split("] ", 2)[2] for line in seen["printed"]] == said


@pytest.mark.slow
def test_prompts_and_results_can_stay_in_an_s3_service(tmp_path: Path) -> None:
    dataset = write_prompts(tmp_path, PROMPTS)
    with s3_service() as s3, model_server(tmp_path, "of the base") as model:
        client = s3_client(s3)
        for bucket in ("elsewhere", "sagemaker-us-west-2-000000000000"):
            client.create_bucket(Bucket=bucket)
        client.upload_file(str(dataset), "elsewhere", "prompts.jsonl")
        with serving(tmp_path, registry_text(model, model), AWS_ENDPOINT_URL_S3=s3) as environment:
            seen = used(
                tmp_path,
                environment,
                model=MODEL,
                dataset="s3://elsewhere/prompts.jsonl",
                s3_output_path="s3://elsewhere/output",
            )
        assert seen["status"] == "Succeeded"
        assert seen["jobs"][0]["progress"] == {"CurrentStep": 8, "MaxSteps": 8}
        left = [entry["Key"] for entry in client.list_objects_v2(Bucket="elsewhere")["Contents"]]
    assert any(key.endswith(f"{BASE}/rollouts.parquet") for key in left)


def check_rollouts(folder: Path, run: str) -> None:
    """The run was played by its own model, and what MLflow has of it are its numbers."""
    (rollouts,) = folder.glob(f"bucket/output/*/{run}/rollouts.parquet")
    rows = pq.read_table(rollouts).to_pylist()
    # Two rollouts of each prompt; the agent gives the prompt's own number as the reward.
    assert sorted(row["reward"] for row in rows) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    replies = {
        reply for turn in pq.read_table(rollouts.with_name("trajectories.parquet")).to_pylist() for reply in said(turn)
    }
    assert replies == {"of the tuned" if run == FINE_TUNED else "of the base"}
    (entry,) = (entry for entry in logged(folder, EXPERIMENT) if entry["run_name"] == run)
    assert entry["metrics"]["eval/reward/mean"] == pytest.approx(0.625)
    assert entry["metrics"]["eval/reward/pass_at_1"] == pytest.approx(0.5)


def said(turn: dict[str, Any]) -> list[str]:
    """What the model replied."""
    return [message["content"] for message in json.loads(turn["reply"])]


def logged(folder: Path, experiment: str) -> list[dict[str, Any]]:
    """The runs of an experiment in the server's MLflow app."""
    store = folder / "state" / "mlflow" / "app-heldout"
    with connected(f"sqlite:///{store}/mlflow.db", store) as connection:
        found = connection.client.get_experiment_by_name(experiment)
        assert found is not None
        runs = connection.client.search_runs([found.experiment_id])
    return [{"run_id": run.info.run_id, "run_name": run.info.run_name, "metrics": run.data.metrics} for run in runs]
