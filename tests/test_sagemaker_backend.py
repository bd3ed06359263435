"""backend="sagemaker" against a server of the AWS protocols: evaluations as pipelines of managed jobs, with boto3 at the wire."""

import functools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import boto3
import pytest
from typer.testing import CliRunner

from agents_support import AGENTS
from heldout import Execution, MultiTurnRLEvaluator
from heldout.backends.choosing import choose_backend
from heldout.backends.sagemaker.account import Account
from heldout.backends.sagemaker.mlflow_apps import create_app
from heldout.backends.sagemaker.pipelines import SHARED_NAME, put_definition
from heldout.backends.sagemaker.spelling import spelled
from heldout.cli import app
from heldout.errors import CloudError, HyperparameterError, InputError, JobFailed, ReferenceProblem, RunError
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import (
    AgentCoreRuntime,
    AgentReference,
    EntryPoint,
    HubModel,
    LambdaAgent,
    ModelPackage,
    ModelReference,
)
from heldout.job.registry import Registry
from heldout.job.schema import document_schema
from middle import Middle, Refusal, middle
from model_servers import model_server
from s3_service import BUCKET, forget_aws, s3_client, s3_service
from served import KEYS, REGION, ROLE, served
from service_registry import FUNCTION, GROUP_ARN, MODEL, PACKAGE, RUNTIME, registry_of, registry_text

AGENT = f"{AGENTS / 'agreeing.py'}:play"
OUTPUT = "s3://my-bucket/out"
DEADLINE_SECONDS = 180.0
BUCKETS = '[buckets."my-bucket"]\nfolder = "bucket"\n'


class Cloud(NamedTuple):
    """A server with two models, the base's saying "no" and the tuned one's "yes"."""

    url: str
    folder: Path
    buckets: str
    """A registry that maps nothing but the bucket."""
    everything: str
    """The server's registry, for an evaluation on this machine."""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    write_prompts(folder / "bucket" / "prompts.jsonl", range(8))
    (folder / "buckets.toml").write_text(BUCKETS)
    with (
        pytest.MonkeyPatch.context() as patch,
        model_server(folder, "no", "base") as base,
        model_server(folder, "yes", "tuned") as tuned,
        served(folder / "server", registry_of(folder, base, tuned, AGENT)) as server,
    ):
        forget_aws(patch)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("HELDOUT_REGISTRY", str(folder / "buckets.toml"))
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS.secret_key)
        patch.setenv("AWS_REGION", REGION)
        (folder / "everything.toml").write_text(registry_text(base, tuned, AGENT))
        yield Cloud(server.url, folder, str(folder / "buckets.toml"), str(folder / "everything.toml"))


@pytest.fixture
def between(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Middle]:
    """What stands between SageMaker's client and the server."""
    with middle(cloud.url) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", made.url)
        yield made


def write_prompts(path: Path, prompts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": str(prompt)}) + "\n" for prompt in prompts))


@functools.lru_cache(maxsize=1)
def session() -> boto3.Session:
    """One for all: the models of the services are read once."""
    return boto3.Session()


def evaluator(**fields: Any) -> MultiTurnRLEvaluator:
    given: dict[str, Any] = {
        "sagemaker_session": session(),
        "model": MODEL,
        "agent_config": RUNTIME,
        "dataset": "s3://my-bucket/prompts.jsonl",
        "s3_output_path": OUTPUT,
        "mlflow_resource_arn": "off",
        "role": ROLE,
    }
    return MultiTurnRLEvaluator(**given | fields)


def wait(execution: Execution) -> None:
    execution.wait(poll=0.2, timeout=DEADLINE_SECONDS)


def documents(definition: str) -> dict[str, dict[str, Any]]:
    """The job documents of a pipeline definition, by step."""
    steps = [step for step in json.loads(definition)["Steps"] if step["Type"] == "Job"]
    return {step["Name"]: json.loads(step["Arguments"]["JobConfigDocument"]) for step in steps}


# Where it runs.


@pytest.mark.parametrize(
    ("model", "agent", "mapped", "expected"),
    [
        (HubModel(MODEL), AgentCoreRuntime(RUNTIME), False, "sagemaker"),
        (ModelPackage(PACKAGE), LambdaAgent(FUNCTION), False, "sagemaker"),
        (HubModel(MODEL), AgentCoreRuntime(RUNTIME), True, "local"),
        (HubModel("another"), AgentCoreRuntime(RUNTIME), True, "local"),
        (HubModel(MODEL), EntryPoint("agent.py:play"), False, "local"),
    ],
)
def test_what_is_in_aws_and_not_mapped_runs_there(
    model: ModelReference, agent: AgentReference, mapped: bool, expected: str, tmp_path: Path
) -> None:
    assert choose_backend(model, agent, registry_of(tmp_path) if mapped else Registry()) == expected


# Spellings.

NESTED = {
    "batch": {"type": "object", "properties": {"eval_group_size": {"type": "integer", "minimum": 1, "maximum": 64}}},
    "eval_sampling_params": {"$ref": "#/$defs/Sampling"},
}
SAMPLING = {"properties": {"temperature": {"type": "number"}, "sampling_top_p": {"type": ["number", "null"]}}}
FLAT = {
    "eval_group_size": {"type": "integer"},
    "temperature": {"type": "number"},
    "pass_k_values": {"type": "array", "items": {"type": "integer"}},
}
TEXT = {"eval_group_size": {"type": "string", "pattern": r"^\d+$"}, "pass_k_values": {"type": "string"}}


def schema_of(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    section = {"type": "object", "properties": properties, "additionalProperties": False} | more
    config = {"anyOf": [{"type": "null"}, {"properties": {"HyperParameters": section}}]}
    return {"$defs": {"Sampling": SAMPLING}, "properties": {"EvaluationConfig": config}}


@pytest.mark.parametrize(
    ("schema", "values", "expected"),
    [
        (
            schema_of(NESTED),
            {"eval_group_size": 4, "sampling_temperature": 0.5, "top_p": 0.9},
            {"batch": {"eval_group_size": 4}, "eval_sampling_params": {"temperature": 0.5, "sampling_top_p": 0.9}},
        ),
        (
            schema_of(FLAT),
            {"eval_group_size": 4, "sampling_temperature": 1.0, "pass_k_values": (1, 4)},
            {"eval_group_size": 4, "temperature": 1.0, "pass_k_values": [1, 4]},
        ),
        (
            schema_of(TEXT),
            {"eval_group_size": 4, "pass_k_values": (1, 4)},
            {"eval_group_size": "4", "pass_k_values": "[1, 4]"},
        ),
        (
            schema_of({}, additionalProperties={"type": "string"}),
            {"sampling_temperature": 0.5, "enforce_sampling": True},
            {"sampling_temperature": "0.5", "enforce_sampling": "true"},
        ),
    ],
    ids=["nested", "flat", "text", "anything"],
)
def test_hyperparameters_are_spelled_as_the_endpoint_wants_them(
    schema: dict[str, Any], values: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert spelled(values, schema) == expected


def test_whatever_the_spelling_the_same_values_come_back() -> None:
    given = Hyperparameters({"eval_group_size": 3, "sampling_temperature": 0.7, "pass_k_values": [1, 2], "seed": 7})
    for schema in (document_schema(), schema_of({}, additionalProperties=True)):
        assert Hyperparameters(spelled(given.set_values(), schema)) == given


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (schema_of(FLAT), r"'enforce_sampling' is set to True, and the endpoint has no place for it; leave it out"),
        ({"properties": {}}, r"the endpoint's job document has no hyperparameters, and 'enforce_sampling'"),
        (
            schema_of({"enforce_sampling": {"type": "integer"}}),
            r"'enforce_sampling' is True; the endpoint takes enforce_sampling as \{'type': 'integer'\}",
        ),
    ],
)
def test_a_value_that_was_set_is_never_lost(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparameterError, match=message):
        spelled({"enforce_sampling": True}, schema)


def test_a_value_out_of_the_endpoints_range_says_the_range() -> None:
    with pytest.raises(HyperparameterError, match=r"'eval_group_size' is 65; .* batch.eval_group_size .*'maximum': 64"):
        spelled({"eval_group_size": 65}, schema_of(NESTED))


# What is found out before anything starts.


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
        ({"role": "arn:aws:iam::1:user/me"}, r"'role' 'arn:aws:iam::1:user/me' is no role's ARN"),
        ({"runtime_url": "http://host:1"}, r"'runtime_url' is 'http://host:1', which managed jobs have no place for"),
        ({"base_eval_name": "x" * 80}, r"'base_eval_name' is 'x+.*up to 71 letters"),
        ({"mlflow_resource_arn": "http://mlflow:5000"}, r"mlflow_resource_arn 'http://mlflow:5000' is not in AWS"),
    ],
)
def test_what_cannot_be_right_is_told_before_anything_starts(
    fields: dict[str, Any], message: str, between: Middle
) -> None:
    with pytest.raises(InputError, match=message):
        evaluator(backend="sagemaker", **fields).evaluate()
    assert not between.asked.keys() & {"CreatePipeline", "UpdatePipeline", "StartPipelineExecution"}


def test_a_dry_run_tells_of_an_mlflow_app_that_is_not_there(cloud: Cloud) -> None:
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
    [(["--limit", "1"], "--limit and --shuffle-seed have no place"), (["--resume"], "--resume goes")],
)
def test_the_command_line_refuses_what_managed_jobs_cannot(option: list[str], message: str, cloud: Cloud) -> None:
    given = ["evaluate", "--model", MODEL, "--agent", RUNTIME, "--dataset", "s3://b/p.jsonl", "--output", OUTPUT]
    refused = CliRunner().invoke(app, [*given, *option]).exception
    assert isinstance(refused, InputError)
    assert message in str(refused)


# Refusals of AWS.


def test_a_refusal_is_one_line_with_operation_and_code(between: Middle) -> None:
    between.refused["StartPipelineExecution"] = Refusal("AccessDeniedException")
    with pytest.raises(
        CloudError, match=r"StartPipelineExecution was refused: AccessDeniedException: as the test wants"
    ):
        evaluator().evaluate()


def test_a_list_that_is_refused_is_an_error_and_not_an_empty_list(between: Middle) -> None:
    for operation in ("ListPipelines", "ListHubContents"):
        between.refused[operation] = Refusal("AccessDeniedException")
    with pytest.raises(CloudError, match="the account's evaluations: ListPipelines was refused: AccessDenied"):
        list(MultiTurnRLEvaluator.get_all(session=session()))
    with pytest.raises(CloudError, match="the hub's models: ListHubContents was refused"):
        MultiTurnRLEvaluator.list_supported_models(session=session())


def test_wrong_keys_are_named(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(
        CloudError, match=r"was refused: InvalidSignature.*the secret key is not that of the access key"
    ):
        evaluator(sagemaker_session=None).evaluate()


def test_no_credentials_say_both_ways_out(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ReferenceProblem, match=r"no AWS credentials were found; sign in, or map model and agent"):
        evaluator(sagemaker_session=None).evaluate()


def test_without_a_role_the_one_signed_in_as_is_the_jobs(cloud: Cloud) -> None:
    definition = evaluator(role=None).evaluate(dry_run=True)
    assert ":role/" in json.loads(definition)["Steps"][1]["Arguments"]["RoleArn"]


# Whose definition runs.


def test_an_evaluation_starts_the_version_that_it_made(between: Middle) -> None:
    execution = evaluator().evaluate()
    execution.stop()
    [updated] = between.requests_of("UpdatePipeline")[-1:]
    [started] = between.requests_of("StartPipelineExecution")
    assert started["PipelineName"] == updated["PipelineName"] == "SagemakerEvaluation-MTRLEvaluation-heldout"
    assert isinstance(started["PipelineVersionId"], int)
    assert json.loads(execution.pipeline_definition) == json.loads(updated["PipelineDefinition"])


def test_where_there_are_no_versions_it_has_a_pipeline_of_its_own(between: Middle) -> None:
    between.changed["UpdatePipeline"] = lambda reply: {"PipelineArn": reply["PipelineArn"]}
    for _ in range(2):
        evaluator().evaluate().stop()
    started = between.requests_of("StartPipelineExecution")
    assert len({request["PipelineName"] for request in started}) == 2
    assert all("PipelineVersionId" not in request for request in started)
    tags = [request["Tags"] for request in between.requests_of("CreatePipeline")]
    assert tags[-2:] == [[{"Key": "SagemakerModelEvaluation", "Value": "true"}]] * 2


def test_a_pipeline_without_the_tag_is_not_touched(between: Middle) -> None:
    made = evaluator()
    put_definition(Account(), SHARED_NAME, json.loads(made.evaluate(dry_run=True)), role_arn=ROLE)
    between.requests.clear()
    between.changed["ListTags"] = lambda reply: {"Tags": []}
    made.evaluate().stop()
    name = between.requests_of("StartPipelineExecution")[0]["PipelineName"]
    assert name.startswith(f"{SHARED_NAME}-")
    assert {request["PipelineName"] for request in between.requests_of("UpdatePipeline")} == {name}


def test_who_comes_second_in_making_the_pipeline_takes_the_first_ones(between: Middle) -> None:
    definition = json.loads(evaluator().evaluate(dry_run=True))
    first = put_definition(Account(), SHARED_NAME, definition, role_arn=ROLE)
    between.refused["UpdatePipeline"] = Refusal("ResourceNotFound", times=between.asked["UpdatePipeline"] + 1)
    second = put_definition(Account(), SHARED_NAME, definition, role_arn=ROLE)
    assert first is not None
    assert second is not None
    assert second > first


def test_throttling_and_conflicts_are_waited_out(between: Middle) -> None:
    between.refused["DescribeHubContent"] = Refusal("ThrottlingException", times=2)
    between.refused["UpdatePipeline"] = Refusal("ConflictException", times=2)
    execution = evaluator().evaluate()
    execution.stop()
    assert between.asked["DescribeHubContent"] >= 3
    assert between.asked["StartPipelineExecution"] == 1


def test_the_clients_that_are_given_are_the_ones_used(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
    session = boto3.Session(region_name=REGION)
    with middle(cloud.url) as made:
        given = SimpleNamespace(
            boto_session=session, sagemaker_client=session.client("sagemaker", endpoint_url=made.url)
        )
        execution = evaluator(sagemaker_session=given).evaluate()
        assert made.asked["StartPipelineExecution"] == 1
        found = Execution.get(execution.arn, session=given)
        found.stop()
        assert made.asked["StopPipelineExecution"] == 1
        assert MODEL in MultiTurnRLEvaluator.list_supported_models(session=given)
        assert execution.arn in [other.arn for other in MultiTurnRLEvaluator.get_all(session=given)]


# From start to results.


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
    assert "fine-tuned is better" in shown


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
    assert "base-model-eval: no run folder in s3://my-bucket/out, and it logged nothing to MLflow" in shown
    with pytest.raises(RunError, match="left no run folder in s3://my-bucket/out, so there are no tables"):
        found.rollouts()


def test_an_evaluation_is_found_again_by_its_arn_and_in_the_list(compared: Execution) -> None:
    found = Execution.get(compared.arn, session=session())
    assert (found.name, found.s3_output_path) == (compared.name, OUTPUT)
    assert found.name.startswith("both-")
    assert found.last_modified_time <= compared.last_modified_time
    listed = [execution.arn for execution in MultiTurnRLEvaluator.get_all(session=session())]
    assert listed.count(compared.arn) == 1


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
    with pytest.raises(RunError, match="runs as managed jobs, which cannot be gone on with"):
        compared.resume()


@pytest.mark.slow
def test_stopping_stops(cloud: Cloud) -> None:
    write_prompts(cloud.folder / "bucket" / "slow.jsonl", range(8))
    execution = evaluator(dataset="s3://my-bucket/slow.jsonl").evaluate()
    execution.stop()
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


def test_what_is_no_session_is_named(cloud: Cloud) -> None:
    with pytest.raises(
        ReferenceProblem, match=r"session \{'region': 'us-west-2'\} is none: expected the SDK's session"
    ):
        evaluator(sagemaker_session={"region": "us-west-2"}).evaluate()


def test_an_account_without_an_mlflow_app_gets_one(between: Middle, capsys: pytest.CaptureFixture[str]) -> None:
    between.changed["ListMlflowApps"] = lambda reply: {"Summaries": []}
    made = evaluator(mlflow_resource_arn=None)
    assert "MlflowConfig" not in documents(made.evaluate(dry_run=True))["EvaluateBaseModel"]["OutputDataConfig"]
    assert "the account has no MLflow app: one is made" in capsys.readouterr().out
    execution = made.evaluate()
    execution.stop()
    [created] = between.requests_of("CreateMlflowApp")
    assert created["ArtifactStoreUri"] == "s3://my-bucket/mlflow-artifacts"
    output = documents(execution.pipeline_definition)["EvaluateBaseModel"]["OutputDataConfig"]
    assert ":mlflow-app/" in output["MlflowConfig"]["MlflowResourceArn"]


def test_apps_that_are_made_at_the_same_moment_have_names_of_their_own(cloud: Cloud) -> None:
    made = [create_app(Account(), role_arn=ROLE, output=OUTPUT) for _ in range(3)]
    assert len(set(made)) == 3


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
def test_what_lies_in_s3_is_read_with_the_session_that_was_given(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert found.comparison["verdict"].startswith("fine-tuned is better")
        with pytest.raises(
            ReferenceProblem, match=r"dataset 's3://.*/none.jsonl': there is no such bucket, file or folder"
        ):
            evaluator(registry=cloud.buckets, **here | {"dataset": f"s3://{BUCKET}/none.jsonl"}).evaluate()
