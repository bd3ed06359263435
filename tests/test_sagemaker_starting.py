"""backend="sagemaker": whose definition runs, with whose clients, and what is said when AWS refuses."""

import json
from collections.abc import Iterator
from types import SimpleNamespace

import boto3
import pytest

from cloud import OUTPUT, Cloud, between_sagemaker_and, cloud_in, documents, evaluator, session
from heldout import Execution, MultiTurnRLEvaluator
from heldout.backends.sagemaker.account import Account
from heldout.backends.sagemaker.mlflow_apps import create_app
from heldout.backends.sagemaker.pipelines import SHARED_NAME, put_definition
from heldout.errors import CloudError
from middle import Middle, Refusal, middle
from served import REGION, ROLE
from service_registry import MODEL


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud_in(tmp_path_factory.mktemp("cloud")) as made:
        yield made


@pytest.fixture
def between(cloud: Cloud) -> Iterator[Middle]:
    with between_sagemaker_and(cloud) as made:
        yield made


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
