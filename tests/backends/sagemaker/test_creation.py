"""backend="sagemaker": the definition that runs, the clients that are used, and refusals of AWS."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from heldout import Execution, MultiTurnRLEvaluator
from heldout.backends.sagemaker.account import Account
from heldout.backends.sagemaker.mlflow_apps import create_app
from heldout.backends.sagemaker.pipelines import SHARED_NAME, TAG, put_definition
from heldout.errors import CloudError
from tests.support.cloud import OUTPUT, Cloud, between_sagemaker_and, cloud_in, documents, evaluator, session
from tests.support.intercepting_proxy import Middle, Refusal, middle
from tests.support.live_service import REGION, ROLE
from tests.support.service_registry import MODEL


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


def test_an_evaluation_that_cannot_be_asked_of_is_said_to_have_been_started(between: Middle) -> None:
    between.refused["DescribePipelineExecution"] = Refusal("AccessDeniedException")
    with pytest.raises(
        CloudError, match=r"/execution/.*DescribePipelineExecution was .*; it was started, and continues$"
    ):
        evaluator().evaluate()


def test_a_refused_list_is_an_error_and_not_an_empty_list(between: Middle) -> None:
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


def test_a_wrong_region_is_not_told_as_a_wrong_key(cloud: Cloud) -> None:
    with pytest.raises(CloudError, match=r"the region 'eu-west-1'; the server is in 'us-west-2'$"):
        evaluator(sagemaker_session=None, region="eu-west-1").evaluate()


def test_an_evaluation_starts_the_version_that_it_made(between: Middle) -> None:
    execution = evaluator().evaluate()
    execution.stop()
    [updated] = between.requests_of("UpdatePipeline")[-1:]
    [started] = between.requests_of("StartPipelineExecution")
    assert started["PipelineName"] == updated["PipelineName"] == "SagemakerEvaluation-MTRLEvaluation-heldout"
    assert isinstance(started["PipelineVersionId"], int)
    assert json.loads(execution.pipeline_definition) == json.loads(updated["PipelineDefinition"])


def test_an_endpoint_without_versions_gets_one_pipeline_per_evaluation(between: Middle) -> None:
    between.changed["UpdatePipeline"] = lambda reply: {"PipelineArn": reply["PipelineArn"]}
    for _ in range(2):
        evaluator().evaluate().stop()
    started = between.requests_of("StartPipelineExecution")
    assert len({request["PipelineName"] for request in started}) == 2
    assert all("PipelineVersionId" not in request for request in started)
    tags = [request["Tags"] for request in between.requests_of("CreatePipeline")]
    assert tags[-2:] == [[{"Key": "SagemakerModelEvaluation", "Value": "true"}]] * 2


@pytest.fixture
def untagged(between: Middle) -> Iterator[Middle]:
    """Someone else's pipeline has the name of ours."""
    definition = json.loads(evaluator().evaluate(dry_run=True))
    put_definition(Account(session(), REGION), SHARED_NAME, definition, role_arn=ROLE)
    client = session().client("sagemaker", region_name=REGION)
    arn = client.describe_pipeline(PipelineName=SHARED_NAME)["PipelineArn"]
    client.delete_tags(ResourceArn=arn, TagKeys=[TAG["Key"]])
    between.requests.clear()
    yield between
    client.add_tags(ResourceArn=arn, Tags=[{"Key": TAG["Key"], "Value": TAG["Value"]}])


def test_a_pipeline_without_the_tag_is_not_touched(untagged: Middle) -> None:
    evaluator().evaluate().stop()
    name = untagged.requests_of("StartPipelineExecution")[0]["PipelineName"]
    assert name.startswith(f"{SHARED_NAME}-")
    assert {request["PipelineName"] for request in untagged.requests_of("UpdatePipeline")} == {name}


def test_a_pipeline_that_someone_else_has_just_made_is_not_touched(untagged: Middle) -> None:
    """It was not there when the evaluation was prepared."""
    untagged.refused["DescribePipeline"] = Refusal("ResourceNotFound", times=untagged.asked["DescribePipeline"] + 1)
    evaluator().evaluate().stop()
    assert untagged.requests_of("StartPipelineExecution")[0]["PipelineName"].startswith(f"{SHARED_NAME}-")
    assert untagged.requests_of("UpdatePipeline") == []


def test_a_pipeline_replaced_at_the_last_moment_is_not_started(between: Middle) -> None:
    between.changed["UpdatePipeline"] = lambda reply: reply | {"PipelineArn": replaced}
    client = session().client("sagemaker", region_name=REGION)
    definition = evaluator().evaluate(dry_run=True)
    replaced = client.create_pipeline(
        PipelineName="replaced", PipelineDefinition=definition, RoleArn=ROLE, ClientRequestToken="replaced" * 4
    )["PipelineArn"]
    with pytest.raises(CloudError, match=r"was replaced by one without the tag .*; nothing was started"):
        evaluator().evaluate()
    assert between.requests_of("StartPipelineExecution") == []


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


@pytest.fixture
def without_apps(between: Middle) -> Middle:
    """An account that has no MLflow app: the server's own is hidden, and those of other tests are deleted."""

    def hidden(reply: dict[str, Any]) -> dict[str, Any]:
        return {"Summaries": [app for app in reply["Summaries"] if not app["Arn"].endswith("/app-heldout")]}

    between.changed["ListMlflowApps"] = hidden
    client = session().client("sagemaker", region_name=REGION)
    for app in client.list_mlflow_apps()["Summaries"]:
        client.delete_mlflow_app(Arn=app["Arn"])
    return between


def app_of(execution: Execution) -> str:
    output = documents(execution.pipeline_definition)["EvaluateBaseModel"]["OutputDataConfig"]
    return str(output["MlflowConfig"]["MlflowResourceArn"])


def test_an_account_without_an_mlflow_app_gets_one(without_apps: Middle, capsys: pytest.CaptureFixture[str]) -> None:
    made = evaluator(mlflow_resource_arn=None)
    assert "MlflowConfig" not in documents(made.evaluate(dry_run=True))["EvaluateBaseModel"]["OutputDataConfig"]
    assert "the account has no MLflow app: one is made" in capsys.readouterr().out
    executions = [made.evaluate(), made.evaluate()]
    for execution in executions:
        execution.stop()
    [created] = without_apps.requests_of("CreateMlflowApp")
    assert created["ArtifactStoreUri"] == "s3://my-bucket/mlflow-artifacts"
    [app] = session().client("sagemaker", region_name=REGION).list_mlflow_apps()["Summaries"]
    assert {app_of(execution) for execution in executions} == {app["Arn"]}


@pytest.mark.slow
def test_ten_evaluations_that_find_no_mlflow_app_at_the_same_moment_make_one(without_apps: Middle) -> None:
    def run(_: int) -> str:
        execution = evaluator(sagemaker_session=None, mlflow_resource_arn=None).evaluate()
        execution.stop()
        return app_of(execution)

    with ThreadPoolExecutor(10) as pool:
        used = set(pool.map(run, range(10)))
    assert used == {
        app["Arn"] for app in session().client("sagemaker", region_name=REGION).list_mlflow_apps()["Summaries"]
    }
    assert len(used) == 1


def test_of_those_who_make_an_mlflow_app_at_the_same_moment_all_get_the_first(without_apps: Middle) -> None:
    account = Account(SimpleNamespace(sagemaker_client=session().client("sagemaker", region_name=REGION)), REGION)
    with ThreadPoolExecutor(10) as pool:
        made = set(pool.map(lambda _: create_app(account, role_arn=ROLE, output=OUTPUT), range(10)))
    assert made == {
        app["Arn"] for app in session().client("sagemaker", region_name=REGION).list_mlflow_apps()["Summaries"]
    }
    assert without_apps.asked["CreateMlflowApp"] == 10


class ManyOfOneName:
    """MLflow apps of a service that does not mind how many of them have one name; it answers when all have asked for theirs."""

    def __init__(self, asking: int) -> None:
        self._all_asked = threading.Barrier(asking, timeout=60)
        self._lock = threading.Lock()
        self.apps: dict[str, dict[str, Any]] = {}

    def create_mlflow_app(self, **asked: Any) -> dict[str, Any]:
        with self._lock:
            arn = f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-app/app-{9 - len(self.apps)}"
            created = datetime(2026, 1, 1 + len(self.apps), tzinfo=UTC)
            self.apps[arn] = {"Arn": arn, "Name": asked["Name"], "Status": "Creating", "CreationTime": created}
        self._all_asked.wait()
        return {"Arn": arn}

    def describe_mlflow_app(self, Arn: str) -> dict[str, Any]:  # as boto3 has it
        return self.apps[Arn]

    def list_mlflow_apps(self) -> dict[str, Any]:
        with self._lock:
            return {"Summaries": list(self.apps.values())}

    def delete_mlflow_app(self, Arn: str) -> None:
        with self._lock:
            del self.apps[Arn]


def test_where_names_are_not_unique_the_first_app_is_kept_and_the_others_are_deleted() -> None:
    service = ManyOfOneName(4)
    account = Account(SimpleNamespace(sagemaker_client=service), REGION)
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: create_app(account, role_arn=ROLE, output=OUTPUT), range(4)))
    assert made == service.apps.keys() == {f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-app/app-9"}


def test_an_app_that_cannot_be_made_says_why(without_apps: Middle) -> None:
    without_apps.refused["CreateMlflowApp"] = Refusal("AccessDeniedException")
    with pytest.raises(CloudError, match="a new MLflow app: CreateMlflowApp was refused: AccessDeniedException"):
        evaluator(mlflow_resource_arn=None).evaluate()
