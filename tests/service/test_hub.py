"""Operations around jobs, through boto3: models, packages, MLflow apps, lineage artifacts, callers and roles."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from heldout.service.s3.objects import OVERRIDES_KEY, RECIPE_BUCKET
from tests.support.live_service import KEYS, Served, client, served
from tests.support.s3_service import s3_client, s3_service, use_service
from tests.support.service_jobs import create, document
from tests.support.service_registry import BUCKET, GROUP_ARN, MODEL, PACKAGE, RUNTIME, registry_of

HUB = "SageMakerPublicHub"
ROLE = "arn:aws:iam::123456789012:role/mlflow"
TRACKING_SERVER = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-elsewhere"
STORE = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-store"
MORE = f"""
[models."arn:aws:sagemaker:us-west-2:aws:hub-content/{HUB}/Model/another-model/2.0.0"]
endpoint = "http://127.0.0.1:9/v1#another"
[models."not_a_hub_name"]
endpoint = "http://127.0.0.1:9/v1#another"
[model-packages."arn:aws:sagemaker:us-west-2:123456789012:model-package/of-nobody-knows-what/3"]
endpoint = "http://127.0.0.1:9/v1#tuned"
[mlflow."{TRACKING_SERVER}"]
tracking-uri = "http://mlflow.example:5000/"
[mlflow."{STORE}"]
tracking-uri = "sqlite:////home/me/mlflow.db"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hub")
    with served(folder / "state", registry_of(folder, more=MORE)) as running:
        yield running


@pytest.fixture(scope="module")
def sagemaker(server: Served) -> Any:
    return server.client("sagemaker")


def refusal(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, str]:
    """Code and message of what was refused."""
    return error.value.response["Error"]["Code"], error.value.response["Error"]["Message"]


def test_the_hub_lists_the_models_that_the_registry_maps(sagemaker: Any) -> None:
    found = sagemaker.list_hub_contents(HubName=HUB, HubContentType="Model")["HubContentSummaries"]
    assert [summary["HubContentName"] for summary in found] == ["another-model", MODEL]
    assert all("@recipe:finetuning_mtrl" in summary["HubContentSearchKeywords"] for summary in found)
    assert sagemaker.list_hub_contents(HubName=HUB, HubContentType="Notebook")["HubContentSummaries"] == []


def test_the_hub_lists_in_pages(sagemaker: Any) -> None:
    asked = {"HubName": HUB, "HubContentType": "Model", "SortOrder": "Descending", "MaxResults": 1}
    first = sagemaker.list_hub_contents(**asked)
    second = sagemaker.list_hub_contents(**asked, NextToken=first["NextToken"])
    assert [page["HubContentSummaries"][0]["HubContentName"] for page in (first, second)] == [MODEL, "another-model"]
    assert "NextToken" not in second


def test_the_hubs_list_is_filtered_by_names_and_times(sagemaker: Any) -> None:
    def names(**filters: Any) -> list[str]:
        found = sagemaker.list_hub_contents(HubName=HUB, HubContentType="Model", **filters)["HubContentSummaries"]
        return [summary["HubContentName"] for summary in found]

    assert names(NameContains="gpt-oss") == [MODEL]
    assert names(CreationTimeBefore="2020-01-01T00:00:00Z") == []


def test_an_unknown_version_of_a_model_is_named_in_the_error(sagemaker: Any) -> None:
    with pytest.raises(
        ClientError, match=f"hub content '{MODEL}' of type Model has no version '2.0.0'; it has '1.0.0'"
    ):
        sagemaker.describe_hub_content(
            HubName=HUB, HubContentType="Model", HubContentName=MODEL, HubContentVersion="2.0.0"
        )


def test_a_models_recipe_points_to_its_hyperparameters(server: Served, sagemaker: Any) -> None:
    content = sagemaker.describe_hub_content(HubName=HUB, HubContentType="Model", HubContentName=MODEL)
    (recipe,) = json.loads(content["HubContentDocument"])["RecipeCollection"]
    assert (recipe["Type"], recipe["EvaluationType"]) == ("Evaluation", "MTRLEvaluation")
    bucket, _, key = recipe["SmtjOverrideParamsS3Uri"].removeprefix("s3://").partition("/")
    overrides = json.loads(server.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    assert overrides["eval_group_size"]["default"] == 1
    assert overrides["pass_k_values"]["default"] == [1, 2, 4, 8, 16, 32]
    assert (overrides["sampling_temperature"]["min"], overrides["sampling_temperature"]["max"]) == (0, 2)


def test_the_hyperparameters_are_in_the_default_bucket_of_the_users_s3_service(
    server: Served, sagemaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bucket() -> str:
        content = sagemaker.describe_hub_content(HubName=HUB, HubContentType="Model", HubContentName=MODEL)
        (recipe,) = json.loads(content["HubContentDocument"])["RecipeCollection"]
        return str(recipe["SmtjOverrideParamsS3Uri"].split("/")[2])

    with s3_service() as url:
        use_service(monkeypatch, url)
        assert bucket() == "heldout-recipes"
        default = f"sagemaker-{server.context.region}-{server.context.account}"
        s3_client(url).create_bucket(Bucket=default)
        assert bucket() == default
        (entry,) = s3_client(url).list_objects_v2(Bucket=default)["Contents"]
        assert "eval_group_size" in json.loads(
            s3_client(url).get_object(Bucket=default, Key=entry["Key"])["Body"].read()
        )


def test_an_unmapped_model_is_not_found_and_the_nearest_is_named(sagemaker: Any) -> None:
    with pytest.raises(ClientError) as error:
        sagemaker.describe_hub_content(HubName=HUB, HubContentType="Model", HubContentName="openai-reasoning-gpt-oss")
    code, message = refusal(error)
    assert code == "ResourceNotFound"
    assert f"Did you mean '{MODEL}'?" in message


@pytest.mark.parametrize("settings", [{}, {"s3": {"payload_signing_enabled": False}}])
def test_other_s3_requests_get_an_error_that_names_the_remedy_however_signed(
    server: Served, settings: dict[str, Any]
) -> None:
    with pytest.raises(ClientError, match="AWS_ENDPOINT_URL_S3"):
        server.client("s3", **settings).put_object(Bucket="my-bucket", Key="a b/é+.jsonl", Body=b"x" * 1_000_000)


def test_the_hyperparameters_can_be_read_without_a_signed_body_as_from_s3(server: Served) -> None:
    asked = {"Bucket": RECIPE_BUCKET, "Key": OVERRIDES_KEY}
    whole = server.client("s3").get_object(**asked)["Body"].read()
    unsigned = server.client("s3", s3={"payload_signing_enabled": False})
    assert unsigned.get_object(**asked)["Body"].read() == whole
    url = server.client("s3", signature_version="s3v4").generate_presigned_url("get_object", asked, 60)
    assert requests.get(url).content == whole
    assert requests.get(url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")).status_code == 403


def test_a_package_names_the_model_it_was_tuned_from(sagemaker: Any) -> None:
    package = sagemaker.describe_model_package(ModelPackageName=PACKAGE)
    assert (package["ModelPackageGroupName"], package["ModelPackageVersion"]) == ("tuned", 1)
    (container,) = package["InferenceSpecification"]["Containers"]
    assert container["BaseModel"]["HubContentName"] == MODEL
    assert sagemaker.describe_model_package(ModelPackageName="tuned/1")["ModelPackageArn"] == PACKAGE


def test_a_package_of_unknown_origin_names_no_model(sagemaker: Any) -> None:
    assert "InferenceSpecification" not in sagemaker.describe_model_package(ModelPackageName="of-nobody-knows-what/3")


def test_a_package_that_is_not_mapped_is_refused_as_sagemaker_does(sagemaker: Any) -> None:
    with pytest.raises(ClientError) as error:
        sagemaker.describe_model_package(ModelPackageName="tuned/2")
    code, message = refusal(error)
    assert code == "ValidationException"
    assert "tuned/2 does not exist" in message


def test_a_group_lists_its_packages(sagemaker: Any) -> None:
    found = sagemaker.list_model_packages(ModelPackageGroupName="tuned")["ModelPackageSummaryList"]
    assert [package["ModelPackageArn"] for package in found] == [PACKAGE]
    assert sagemaker.describe_model_package_group(ModelPackageGroupName="tuned")["ModelPackageGroupArn"] == GROUP_ARN


def test_groups_are_created_listed_and_deleted_unless_they_have_packages(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="mine", ModelPackageGroupDescription="of my own")
    with pytest.raises(ClientError, match="already exists"):
        sagemaker.create_model_package_group(ModelPackageGroupName="mine")
    listed = sagemaker.list_model_package_groups(NameContains="i")["ModelPackageGroupSummaryList"]
    assert [group.get("ModelPackageGroupDescription") for group in listed] == ["of my own"]
    sagemaker.delete_model_package_group(ModelPackageGroupName="mine")
    with pytest.raises(ClientError, match="mine does not exist"):
        sagemaker.describe_model_package_group(ModelPackageGroupName="mine")
    with pytest.raises(sagemaker.exceptions.ConflictException):
        sagemaker.delete_model_package_group(ModelPackageGroupName="tuned")


def test_the_server_has_a_default_mlflow_app_and_another_can_become_the_default(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        sagemaker = server.client("sagemaker")

        def defaults() -> list[str]:
            return [app["Name"] for app in sagemaker.list_mlflow_apps(AccountDefaultStatus="ENABLED")["Summaries"]]

        assert defaults() == ["heldout"]
        asked = {"ArtifactStoreUri": "s3://my-bucket/mlflow", "RoleArn": ROLE, "AccountDefaultStatus": "ENABLED"}
        arn = sagemaker.create_mlflow_app(Name="mine", **asked)["Arn"]
        assert defaults() == ["mine"]
        described = sagemaker.describe_mlflow_app(Arn=arn)
        assert {name: described[name] for name in asked} == asked
        sagemaker.update_mlflow_app(Arn=arn, AccountDefaultStatus="DISABLED", DefaultDomainIdList=["d-1"])
        assert defaults() == []
        assert [app["Arn"] for app in sagemaker.list_mlflow_apps(DefaultForDomainId="d-1")["Summaries"]] == [arn]
    with served(tmp_path) as server:
        sagemaker = server.client("sagemaker")
        assert sagemaker.describe_mlflow_app(Arn=arn)["DefaultDomainIdList"] == ["d-1"]
        sagemaker.delete_mlflow_app(Arn=arn)
        with pytest.raises(sagemaker.exceptions.ResourceNotFound):
            sagemaker.describe_mlflow_app(Arn=arn)


def test_a_mapped_mlflow_app_opens_at_the_registrys_url(sagemaker: Any) -> None:
    url = sagemaker.create_presigned_mlflow_app_url(Arn=TRACKING_SERVER)["AuthorizedUrl"]
    assert url == "http://mlflow.example:5000"


def test_a_mapped_store_without_a_server_says_how_to_open_it(sagemaker: Any) -> None:
    with pytest.raises(ClientError, match=r"mlflow ui --backend-store-uri sqlite:////home/me/mlflow\.db"):
        sagemaker.create_presigned_mlflow_app_url(Arn=STORE)


def test_the_servers_own_app_cannot_be_deleted_even_if_another_is_the_default(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        sagemaker = server.client("sagemaker")
        asked = {"ArtifactStoreUri": "s3://my-bucket/mlflow", "RoleArn": ROLE, "AccountDefaultStatus": "ENABLED"}
        sagemaker.create_mlflow_app(Name="mine", **asked)
        with pytest.raises(ClientError, match="cannot be deleted: it belongs to the server or its registry"):
            sagemaker.delete_mlflow_app(Arn=server.context.arn("mlflow-app/app-heldout"))


def test_apps_and_groups_have_the_tags_they_were_created_with(sagemaker: Any) -> None:
    tags = [{"Key": "team", "Value": "evals"}]
    made = {"ArtifactStoreUri": "s3://my-bucket/mlflow", "RoleArn": ROLE, "Tags": tags}
    app = sagemaker.create_mlflow_app(Name="tagged", **made)["Arn"]
    group = sagemaker.create_model_package_group(ModelPackageGroupName="tagged", Tags=tags)["ModelPackageGroupArn"]
    for arn in (app, group):
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags
    sagemaker.delete_mlflow_app(Arn=app)
    sagemaker.delete_model_package_group(ModelPackageGroupName="tagged")
    for arn in (app, group):
        with pytest.raises(ClientError, match="does not exist"):
            sagemaker.list_tags(ResourceArn=arn)


def test_resources_of_the_registry_can_be_tagged(server: Served, sagemaker: Any) -> None:
    arns = [
        sagemaker.describe_model_package(ModelPackageName="tuned/1")["ModelPackageArn"],
        sagemaker.describe_model_package_group(ModelPackageGroupName="tuned")["ModelPackageGroupArn"],
        server.context.arn("mlflow-app/app-heldout"),
    ]
    for arn in arns:
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == []
        tags = [{"Key": "team", "Value": arn[-20:]}]
        assert sagemaker.add_tags(ResourceArn=arn, Tags=tags)["Tags"] == tags
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags
        with pytest.raises(ClientError, match="does not exist"):
            sagemaker.list_tags(ResourceArn=f"{arn}0")
    with pytest.raises(ClientError, match="resource arn:aws:sagemaker:eu-west-1:000000000000:nothing does not exist"):
        sagemaker.list_tags(ResourceArn="arn:aws:sagemaker:eu-west-1:000000000000:nothing")


def test_an_app_opens_only_through_a_presigned_link(server: Served, sagemaker: Any) -> None:
    arn = sagemaker.list_mlflow_apps(SortBy="Name", SortOrder="Descending")["Summaries"][0]["Arn"]
    url = sagemaker.create_presigned_mlflow_app_url(Arn=arn)["AuthorizedUrl"]
    root = url.partition("/auth")[0]
    assert root.startswith(server.url)
    with requests.Session() as browser:
        assert browser.get(f"{root}/").status_code == 403
        assert browser.get(f"{url}0").status_code == 403
        assert browser.get(url).status_code == 200
        asked = {"experiment_name": "held-out"}
        reply = browser.get(f"{root}/api/2.0/mlflow/experiments/get-by-name", params=asked)
        assert (reply.status_code, reply.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
        assert browser.post(f"{root}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["1"]}).json() == {"runs": []}


def test_a_link_uses_the_address_of_the_callers_request(server: Served) -> None:
    sagemaker = client(server.url.replace("127.0.0.1", "localhost"), "sagemaker")
    url = sagemaker.create_presigned_mlflow_app_url(Arn=server.context.arn("mlflow-app/app-heldout"))["AuthorizedUrl"]
    assert url.startswith(f"http://localhost:{server.url.rpartition(':')[2]}/")


@pytest.mark.slow
def test_the_link_opens_mlflows_pages(server: Served, sagemaker: Any) -> None:
    url = sagemaker.create_presigned_mlflow_app_url(Arn=server.context.arn("mlflow-app/app-heldout"))["AuthorizedUrl"]
    with requests.Session() as browser:
        page = browser.get(url, headers={"Accept": "text/html"})
        assert "<title>MLflow</title>" in page.text
        root = url.partition("/auth")[0]
        found = browser.get(f"{root}/ajax-api/2.0/mlflow/experiments/search", params={"max_results": 5}).json()
        assert [experiment["name"] for experiment in found["experiments"]] == ["Default"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": MODEL[:-1]}, f"Did you mean '{MODEL}'?"),
        ({"agent": RUNTIME[:-1]}, f"Did you mean '{RUNTIME}'?"),
        ({"mlflow": "arn:aws:sagemaker:us-west-2:000000000000:mlflow-app/app-of-mine"}, "app-of-mine' does not exist"),
    ],
)
def test_a_job_with_an_unknown_name_gets_the_nearest_one(
    server: Served, sagemaker: Any, change: dict[str, str], words: str
) -> None:
    asked = {"model": MODEL, "agent": RUNTIME, "mlflow": TRACKING_SERVER} | change
    given = document(server.context.state.parent, ["1"], agent=asked["agent"])
    given["EvaluationConfig"]["BaseModelArn"] = asked["model"]
    given["OutputDataConfig"] = {
        "S3OutputPath": f"s3://{BUCKET}/output",
        "MlflowConfig": {"MlflowResourceArn": asked["mlflow"]},
    }
    source = given["InputDataConfig"][0]["DataSource"]["S3DataSource"]
    source["S3Uri"] = source["S3Uri"].replace("//bucket/", f"//{BUCKET}/")
    with pytest.raises(ClientError) as error:
        create(sagemaker, "a-job", given)
    code, message = refusal(error)
    assert code == "ValidationException"
    assert words in message


def test_an_artifact_is_created_once_and_found_by_its_source(sagemaker: Any) -> None:
    source = {"SourceUri": PACKAGE, "SourceTypes": [{"SourceIdType": "Custom", "Value": "now"}]}
    made = [sagemaker.create_artifact(Source=source, ArtifactType="Model", Properties={"a": "b"}) for _ in range(2)]
    assert made[0]["ArtifactArn"] == made[1]["ArtifactArn"]
    found = sagemaker.list_artifacts(SourceUri=PACKAGE)["ArtifactSummaries"]
    assert [artifact["ArtifactArn"] for artifact in found] == [made[0]["ArtifactArn"]]
    described = sagemaker.describe_artifact(ArtifactArn=found[0]["ArtifactArn"])
    assert (described["Source"], described["Properties"]) == (source, {"a": "b"})
    assert sagemaker.list_artifacts(SourceUri="arn:of:nothing")["ArtifactSummaries"] == []


def test_the_caller_is_a_session_of_a_role_that_the_services_may_assume(server: Served) -> None:
    caller = server.client("sts").get_caller_identity()
    account = server.context.account
    assert caller["Account"] == account
    assert caller["Arn"] == f"arn:aws:sts::{account}:assumed-role/heldout/{KEYS.access_key}"
    role = server.client("iam").get_role(RoleName="heldout")["Role"]
    assert role["Arn"] == f"arn:aws:iam::{account}:role/heldout"
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert "sagemaker.amazonaws.com" in statement["Principal"]["Service"]


def test_roles_may_do_everything(server: Served) -> None:
    pages = (
        server.client("iam")
        .get_paginator("simulate_principal_policy")
        .paginate(PolicySourceArn=ROLE, ActionNames=["sagemaker:CreateJob", "s3:GetObject"])
    )
    results = [result for page in pages for result in page["EvaluationResults"]]
    assert [(result["EvalActionName"], result["EvalDecision"]) for result in results] == [
        ("sagemaker:CreateJob", "allowed"),
        ("s3:GetObject", "allowed"),
    ]
