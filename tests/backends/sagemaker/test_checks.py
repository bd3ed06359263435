"""backend="sagemaker": the choice of the backend, and the checks before anything starts."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from heldout.backends.selection import select_backend
from heldout.cli.evaluate import app
from heldout.errors import InputError, ReferenceProblem
from heldout.job.registry import Registry
from heldout.pipeline.request import evaluation_request
from tests.support.cloud import AGENT, OUTPUT, Cloud, between_sagemaker_and, cloud_in, documents, evaluator
from tests.support.intercepting_proxy import Middle
from tests.support.live_service import REGION, ROLE
from tests.support.service_registry import FUNCTION, GROUP_ARN, MODEL, PACKAGE, RUNTIME, registry_of
from tests.support.terminal import heldout


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud_in(tmp_path_factory.mktemp("cloud")) as made:
        yield made


@pytest.fixture
def between(cloud: Cloud) -> Iterator[Middle]:
    with between_sagemaker_and(cloud) as made:
        yield made


@pytest.mark.parametrize(
    ("model", "agent", "mapped", "expected"),
    [
        (MODEL, RUNTIME, False, "sagemaker"),
        (PACKAGE, FUNCTION, False, "sagemaker"),
        (MODEL, RUNTIME, True, "local"),
        ("another", RUNTIME, True, "local"),
        (MODEL, "agent.py:play", False, "local"),
    ],
)
def test_what_is_in_aws_and_not_mapped_runs_there(
    model: str, agent: str, mapped: bool, expected: str, tmp_path: Path
) -> None:
    registry = registry_of(tmp_path) if mapped else Registry()
    request = evaluation_request(
        model=model, agent=agent, dataset="s3://b/prompts.jsonl", output="out", registry=registry
    )
    assert select_backend(None, request).name == expected


def test_a_dry_run_shows_the_definition_and_starts_nothing(between: Middle, capsys: pytest.CaptureFixture[str]) -> None:
    made = evaluator(
        model=PACKAGE,
        evaluate_base_model=True,
        accept_eula=False,
        kms_key_id="arn:aws:kms:us-west-2:123456789012:key/k",
        tags=[{"Key": "team", "Value": "rl"}],
        networking=SimpleNamespace(security_group_ids=["sg-1"], subnets=["subnet-1"]),
        mlflow_resource_arn=None,
        model_package_group=GROUP_ARN,
        agent_qualifier="PROD",
    )
    made.hyperparameters.eval_group_size = 2
    definition = made.evaluate(dry_run=True)

    assert definition in capsys.readouterr().out
    assert not between.asked.keys() & {"CreatePipeline", "UpdatePipeline", "StartPipelineExecution", "CreateMlflowApp"}
    base, tuned = (documents(definition)[name] for name in ("EvaluateBaseModel", "EvaluateFineTunedModel"))
    hub_arn = f"arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/{MODEL}/1.0.0"
    for document in (base, tuned):
        assert document["EvaluationConfig"] == {
            "BaseModelArn": hub_arn,
            "AcceptEula": False,
            "HyperParameters": {"batch": {"eval_group_size": 2}},
        }
        assert document["OutputDataConfig"]["KmsKeyArn"] == "arn:aws:kms:us-west-2:123456789012:key/k"
        assert document["AgentConfig"]["BedrockAgentCoreConfig"]["Qualifier"] == "PROD"
    assert tuned["ModelPackageConfig"] == {"InputModelPackageArn": PACKAGE}
    assert base["OutputDataConfig"]["MlflowConfig"] == {
        "MlflowResourceArn": "arn:aws:sagemaker:us-west-2:000000000000:mlflow-app/app-heldout",
        "MlflowExperimentName": f"mtrl-eval-{MODEL}",
        "MlflowRunName": "base-model-eval",
    }
    arguments = json.loads(definition)["Steps"][1]["Arguments"]
    assert arguments["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert (arguments["Tags"], arguments["RoleArn"]) == ([{"Key": "team", "Value": "rl"}], ROLE)


def tags(*keys: str) -> list[dict[str, str]]:
    return [{"Key": key, "Value": "größe 1"} for key in keys]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "no-such-model"}, r"model 'no-such-model' is not in hub 'SageMakerPublicHub' in us-west-2"),
        ({"model": PACKAGE.replace("/1", "/9")}, r"model package '.*tuned/9' does not exist"),
        ({"agent_config": RUNTIME.replace("players", "nobody")}, r"agent '.*nobody.*' does not exist in us-west-2"),
        ({"agent_config": FUNCTION.replace("forward", "nobody")}, r"agent '.*nobody' does not exist in us-west-2"),
        ({"agent_config": "agent.py:play"}, r"agent 'agent.py:play' is not in AWS, where backend 'sagemaker' runs"),
        ({"model": "http://127.0.0.1:9/v1#m"}, r"model 'http://127.0.0.1:9/v1#m' is not in AWS"),
        ({"dataset": "prompts.jsonl"}, r"dataset 'prompts.jsonl' is not in AWS.*give s3://bucket/key"),
        ({"s3_output_path": "out"}, r"s3_output_path '.*out' is not in AWS"),
        ({"model_package_group": "nobodys"}, r"model package group 'nobodys' does not exist in us-west-2"),
        ({"role": "arn:aws:iam::1:user/me"}, r"'role' 'arn:aws:iam::1:user/me' is not a role's ARN"),
        (
            {"role": "service-role/x"},
            r"'role' 'service-role/x' has a path; give the name alone, 'x', or the role's ARN",
        ),
        ({"runtime_url": "http://host:1"}, r"'runtime_url' is 'http://host:1', which managed jobs do not support"),
        ({"base_eval_name": "x" * 80}, r"'base_eval_name' is 'x+.*up to 71 letters"),
        ({"mlflow_resource_arn": "http://mlflow:5000"}, r"mlflow_resource_arn 'http://mlflow:5000' is not in AWS"),
        ({"tags": tags(*map(str, range(51)))}, r"'tags' has 51 tags; a job has 50 at most"),
        ({"tags": tags("team", "team")}, r"'tags' has the key 'team' twice"),
        ({"tags": tags("te;am")}, r"'tags' holds 'te;am'; it must be up to 128 letters, digits"),
        (
            {"tags": tags("AWS:team")},
            r"'tags' has the key 'AWS:team'; it must have a character, and not begin with 'aws:'",
        ),
    ],
)
def test_what_cannot_be_right_is_told_before_anything_starts(
    fields: dict[str, Any], message: str, between: Middle
) -> None:
    with pytest.raises(InputError, match=message):
        evaluator(backend="sagemaker", **fields).evaluate()
    assert not between.asked.keys() & {"CreatePipeline", "UpdatePipeline", "StartPipelineExecution"}


def test_a_dry_run_warns_of_a_missing_mlflow_app(cloud: Cloud) -> None:
    with pytest.raises(ReferenceProblem, match=r"MLflow app 'arn:.*/app-nobodys' does not exist in us-west-2"):
        evaluator(mlflow_resource_arn=f"arn:aws:sagemaker:{REGION}:000000000000:mlflow-app/app-nobodys").evaluate(
            dry_run=True
        )


def test_a_dry_run_on_this_machine_writes_nothing(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = evaluator(registry=cloud.everything, s3_output_path="out")
    definition = made.evaluate(dry_run=True)
    assert list(documents(definition)) == ["EvaluateBaseModel"]
    assert "Dry run: nothing was started" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ReferenceProblem, match="no function 'plaay'"):
        evaluator(registry=cloud.everything, agent_config=AGENT.replace("play", "plaay")).evaluate(dry_run=True)


@pytest.mark.parametrize(
    "model",
    [
        SimpleNamespace(model_package_arn=PACKAGE),
        SimpleNamespace(
            _latest_job=SimpleNamespace(output_model_package_arn=PACKAGE),
            _model_name=MODEL,
            agent_config={"BedrockAgentCoreConfig": {"AgentRuntimeArn": RUNTIME}},
        ),
    ],
    ids=["package", "trainer"],
)
def test_objects_of_the_sdk_are_taken(model: Any, cloud: Cloud) -> None:
    [document] = documents(evaluator(model=model).evaluate(dry_run=True)).values()
    assert document["ModelPackageConfig"]["InputModelPackageArn"] == PACKAGE
    assert document["EvaluationConfig"]["BaseModelArn"].endswith(f"/Model/{MODEL}/1.0.0")


def test_a_models_arn_is_as_good_as_its_name(cloud: Cloud) -> None:
    arn = f"arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/{MODEL}/1.0.0"
    [document] = documents(evaluator(model=arn).evaluate(dry_run=True)).values()
    assert document["EvaluationConfig"]["BaseModelArn"] == arn


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--limit", "1"], "'limit' is 1, which managed jobs do not support"), (["--resume"], "--resume is for")],
)
def test_the_command_line_refuses_what_managed_jobs_cannot(option: list[str], message: str, cloud: Cloud) -> None:
    given = ["evaluate", "--model", MODEL, "--agent", RUNTIME, "--dataset", "s3://b/p.jsonl", "--output", OUTPUT]
    refused = CliRunner().invoke(app, [*given, *option]).exception
    assert isinstance(refused, InputError)
    assert message in str(refused)


def test_no_credentials_say_both_ways_out(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ReferenceProblem, match=r"no AWS credentials were found; sign in, or map model and agent"):
        evaluator(sagemaker_session=None).evaluate()


def test_without_a_role_the_one_signed_in_as_is_the_jobs(cloud: Cloud) -> None:
    definition = evaluator(role=None).evaluate(dry_run=True)
    assert ":role/" in json.loads(definition)["Steps"][1]["Arguments"]["RoleArn"]


def test_the_command_line_has_dry_runs_too(
    between: Middle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--model", MODEL, "--agent", RUNTIME, "--dataset", "s3://my-bucket/prompts.jsonl", "--dry-run"]
    assert heldout(monkeypatch, *given, "--output", OUTPUT, "-H", "eval_group_size=2", "--json") == 0
    [document] = documents(capsys.readouterr().out).values()
    assert document["EvaluationConfig"]["HyperParameters"] == {"batch": {"eval_group_size": 2}}
    assert heldout(monkeypatch, *given, "--output", OUTPUT, "--model", "no-such-model") == 2
    assert "model 'no-such-model' is not in hub" in capsys.readouterr().err
    assert not between.asked.keys() & {"CreatePipeline", "UpdatePipeline", "StartPipelineExecution"}


def test_what_is_no_session_is_named(cloud: Cloud) -> None:
    with pytest.raises(
        ReferenceProblem, match=r"session \{'region': 'us-west-2'\} is not a session: expected the SDK's session"
    ):
        evaluator(sagemaker_session={"region": "us-west-2"}).evaluate()
