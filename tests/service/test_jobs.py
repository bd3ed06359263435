"""Job operations through boto3, against a real server with real rollouts."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from heldout.errors import InputError
from heldout.job.document import JobConfigDocument
from heldout.runs.run import Run
from heldout.service.sagemaker.jobs import JobRecord
from heldout.storage.lock import holder_of
from tests.support.jobs import rows
from tests.support.live_service import ROLE, Served, served
from tests.support.service_jobs import (
    AGENT,
    CATEGORY,
    SLOW_AGENT,
    create,
    definition,
    describe,
    document,
    ended,
    refused,
    registry,
    run_of,
    until,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Served]:
    with registry(folder) as names, served(folder / "state", names) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Served) -> Any:
    return service.client("sagemaker")


def test_the_developer_guides_job_is_created_played_described_listed_and_deleted(client: Any, folder: Path) -> None:
    given = document(
        folder,
        ["1", "0.5", "turns 2"],
        batch={"eval_group_size": 2},
        eval_sampling_params={"temperature": 0.7, "sampling_top_p": 0.9, "sampling_max_tokens": 64},
        eval_metrics_config={"pass_k_values": [1, 2], "success_threshold": 1.0},
        rollout={"timeout": 60, "max_concurrency": 8, "max_retries": 1},
    )
    arn = create(client, "guide", given, Tags=[{"Key": "team", "Value": "evals"}])
    assert arn == f"arn:aws:sagemaker:us-west-2:000000000000:job/{CATEGORY}/guide"

    job = ended(client, "guide")

    assert (job["JobStatus"], job["SecondaryStatus"]) == ("Completed", "Completed")
    assert job["Tags"] == [{"Key": "team", "Value": "evals"}]
    assert job["CreationTime"] <= job["LastModifiedTime"]
    assert [step["Status"] for step in job["SecondaryStatusTransitions"]] == ["Starting", "Evaluating", "Completed"]
    described = json.loads(job["JobConfigDocument"])
    output = described.pop("ServiceOutput")
    assert described == given  # AWS names and all
    assert output["ProgressInfo"] == {"CurrentStep": 6, "MaxSteps": 6}
    assert output["BillableTokenUsage"]["SampleTokenCount"] == 8  # a token a turn: 2 x (1 + 1 + 2) turns
    run = run_of(folder, "guide")
    assert sorted(row["reward"] for row in rows(run)) == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert run.document.hyperparameters.sampling_temperature == 0.7

    (listed,) = client.list_jobs(JobCategory=CATEGORY, NameContains="guid", StatusEquals="Completed")["JobSummaries"]
    assert listed["JobArn"] == arn
    assert listed["EndTime"] == job["EndTime"]
    assert (
        "only one that is InProgress can be stopped"
        in refused(client.stop_job, JobName="guide", JobCategory=CATEGORY)[1]
    )
    for _ in range(2):  # deleting again succeeds
        client.delete_job(JobName="guide", JobCategory=CATEGORY)
    assert refused(client.describe_job, JobName="guide", JobCategory=CATEGORY)[0] == "ResourceNotFound"
    assert client.list_jobs(JobCategory=CATEGORY, NameContains="guid")["JobSummaries"] == []
    assert rows(run)  # the run stays


def test_a_stopped_job_keeps_finished_rollouts_and_stays_stopped(client: Any, folder: Path) -> None:
    given = document(folder, ["0.05"] * 400, agent=SLOW_AGENT, rollout_max_concurrency=2)
    create(client, "stopped", given)
    asked = {"JobName": "stopped", "JobCategory": CATEGORY}
    until(lambda: describe(client, "stopped"), lambda job: "CurrentStep" in job["JobConfigDocument"])
    assert refused(client.delete_job, **asked)[0] == "ResourceInUse"
    assert refused(create, client=client, name="stopped", given=given)[0] == "ResourceInUse"

    client.stop_job(**asked)

    assert describe(client, "stopped")["JobStatus"] in ("Stopping", "Stopped")
    job = ended(client, "stopped")
    assert (job["JobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert 0 < len(rows(run_of(folder, "stopped"))) < 400
    client.delete_job(**asked)


def test_a_job_stopped_between_two_pages_is_listed_once(client: Any, folder: Path) -> None:
    create(client, "paged", document(folder, ["0.1"] * 400, agent=SLOW_AGENT, rollout_max_concurrency=2))
    asked = {"JobCategory": CATEGORY, "NameContains": "paged", "MaxResults": 1}
    create(client, "paged-later", document(folder, ["1"]))
    first = client.list_jobs(**asked, SortBy="Name", SortOrder="Ascending")
    assert [job["JobStatus"] for job in first["JobSummaries"]] == ["InProgress"]
    client.stop_job(JobName="paged", JobCategory=CATEGORY)  # Stopping, which is after InProgress
    second = client.list_jobs(**asked, SortBy="Name", SortOrder="Ascending", NextToken=first["NextToken"])
    assert [job["JobName"] for page in (first, second) for job in page["JobSummaries"]] == ["paged", "paged-later"]


@pytest.mark.slow
def test_a_job_whose_process_is_killed_resumes_and_repeats_no_rollout(client: Any, folder: Path) -> None:
    create(client, "killed", document(folder, ["0.1"] * 30, agent=SLOW_AGENT, rollout_max_concurrency=3))
    run_folder = folder / "bucket" / "output" / "killed" / "base-model-eval"
    progress = run_folder / "progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_bytes())["finished"], lambda finished: finished >= 3)
    first = holder_of(run_folder)
    assert first

    os.kill(first, signal.SIGKILL)

    assert ended(client, "killed")["JobStatus"] == "Completed"
    played = rows(run_of(folder, "killed"), "attempts")
    assert len({row["prompt_index"] for row in played}) == 30
    assert len(played) == 30  # what was in flight left no trace; what was finished was not played again


def test_a_job_without_a_folder_yet_is_starting_and_can_be_stopped(service: Served, client: Any) -> None:
    record = JobRecord(
        name="in-the-making",
        arn=service.context.arn(f"job/{CATEGORY}/in-the-making"),
        role=ROLE,
        document="{}",
        output=str(service.context.state / "nowhere"),
        group="in-the-making",
        run_name="base-model-eval",
        created_at=0.0,
    )
    service.context.store.put(record)
    asked = {"JobName": record.name, "JobCategory": CATEGORY}
    job = describe(client, record.name)
    assert (job["JobStatus"], job["SecondaryStatus"], job.get("FailureReason")) == ("InProgress", "Starting", None)
    assert refused(client.delete_job, **asked)[0] == "ResourceInUse"
    client.stop_job(**asked)
    assert describe(client, record.name)["JobStatus"] == "Stopping"
    service.context.store.remove(JobRecord, record.name)


def test_listing_a_page_of_many_jobs_reads_only_the_runs_of_that_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, open_run = list[Path](), Run.open

    def counted(path: Path) -> Run:
        read.append(path)
        return open_run(path)

    others = [f"many-{number:03}" for number in range(100)]
    filters = {
        "JobCategory": CATEGORY,
        "NameContains": "many",
        "MaxResults": 30,
        "SortBy": "Name",
        "SortOrder": "Ascending",
    }
    # A supervisor that never looks again: it would read runs too.
    with registry(tmp_path) as names, served(tmp_path / "state", names, look_every_seconds=3600.0) as service:
        client, store = service.client("sagemaker"), service.context.store
        create(client, "many", document(tmp_path, ["1"]))
        ended(client, "many")
        record = store.find(JobRecord, "many")
        assert record is not None
        with store.transaction():
            for name in others:
                store.put(record.model_copy(update={"name": name, "arn": service.context.arn(f"job/{name}")}))
        monkeypatch.setattr(Run, "open", counted)
        pages = [page["JobSummaries"] for page in client.get_paginator("list_jobs").paginate(**filters)]
        assert [job["JobName"] for page in pages for job in page] == ["many", *others]
        assert [len(page) for page in pages] == [30, 30, 30, 11]
        assert len(read) == 101
        assert len(client.list_jobs(**filters, StatusEquals="Completed")["JobSummaries"]) == 30


def test_a_stop_request_during_the_creation_of_a_job_stops_it(
    client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = Run.create

    def asked_meanwhile(*arguments: Any, **settings: Any) -> Run:
        client.stop_job(JobName="hasty", JobCategory=CATEGORY)
        return making(*arguments, **settings)

    monkeypatch.setattr(Run, "create", asked_meanwhile)
    create(client, "hasty", document(folder, ["0.05"] * 400, agent=SLOW_AGENT, rollout_max_concurrency=2))
    assert ended(client, "hasty")["JobStatus"] == "Stopped"


def test_a_job_that_fails_says_why(client: Any, folder: Path) -> None:
    given = document(folder, ["1"])
    broken = folder / "broken.py"
    broken.write_text("def play(payload):\n    return {}\n\nraise RuntimeError('no licence')\n")
    given["AgentConfig"] = {"EntryPointConfig": {"EntryPoint": f"{broken}:play"}}
    create(client, "failing", given)
    job = ended(client, "failing")
    assert (job["JobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert "no licence" in job["FailureReason"]
    assert job["SecondaryStatusTransitions"][-1]["StatusMessage"] == job["FailureReason"]


def changed(given: dict[str, Any], section: str, **members: Any) -> dict[str, Any]:
    return given | {section: {**given[section], **members}}


@pytest.mark.parametrize(
    ("section", "members", "expected"),
    [
        (
            "EvaluationConfig",
            {"HyperParameters": {"batch": {"eval_group_sise": 2}}},
            "Did you mean 'batch.eval_group_size'?",
        ),
        (
            "EvaluationConfig",
            {"HyperParameters": {"top_p": 2}},
            "hyperparameter 'top_p' is 2; it must be a number above 0",
        ),
        ("EvaluationConfig", {"BaseModelArn": "scriptet"}, "model 'scriptet' is not on this machine"),
        ("InputDataConfig", None, "InputDataConfig is missing"),
        ("StoppingCondition", {"MaxRuntimeInSeconds": 0}, "StoppingCondition.MaxRuntimeInSeconds is 0"),
        ("OutputDataConfig", {"S3OutputUri": "s3://bucket"}, "Did you mean 'S3OutputPath'?"),
        ("OutputDataConfig", {"S3OutputPath": "s3://bucket/../out"}, "leads out of the folder of bucket"),
    ],
)
def test_an_unplayable_document_is_refused_at_once(
    client: Any, folder: Path, section: str, members: dict[str, Any] | None, expected: str
) -> None:
    given = document(folder, ["1"])
    if members is None:
        del given[section]
    else:
        given = changed(given, section, **members)
    code, message = refused(create, client=client, name="refused", given=given)
    assert code == "ValidationException"
    assert expected in message
    assert refused(client.describe_job, JobName="refused", JobCategory=CATEGORY)[0] == "ResourceNotFound"


def test_an_unreachable_output_is_refused_without_a_retry(
    client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pair")
    given = document(folder, ["1"]) | {"OutputDataConfig": {"S3OutputPath": "s3://another/output"}}
    code, message = refused(create, client=client, name="refused", given=given)
    assert code == "ValidationException"
    assert "cannot reach http://127.0.0.1:9" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"JobCategory": "AgentRFT"}, "jobs of category 'AgentRFT' are not served here"),
        ({"JobConfigSchemaVersion": "2.0.0"}, "JobConfigSchemaVersion '2.0.0' does not exist"),
        ({"JobConfigDocument": "{"}, "JobConfigDocument does not match schema version 1.0.0"),
        ({"JobName": "-"}, "Value '-' at 'jobName' failed to satisfy constraint"),
        ({"RoleArn": "arn:aws:iam::123456789012:user/me"}, "at 'roleArn' failed to satisfy constraint"),
    ],
)
def test_a_request_with_invalid_parameters_is_refused(
    client: Any, folder: Path, changes: dict[str, Any], expected: str
) -> None:
    code, message = refused(create, client=client, name="refused", given=document(folder, ["1"]), **changes)
    assert code == "ValidationException"
    assert expected in message


@pytest.mark.parametrize("operation", ["describe_job", "stop_job", "delete_job"])
def test_an_unknown_job_is_a_resource_not_found(client: Any, operation: str) -> None:
    code, message = refused(getattr(client, operation), JobName="nothing", JobCategory=CATEGORY)
    assert (code, message) == ("ResourceNotFound", f"job 'nothing' of category {CATEGORY} does not exist")


def schema_of(client: Any) -> Any:
    (version,) = client.list_job_schema_versions(JobCategory=CATEGORY)["JobConfigSchemas"]
    described = client.describe_job_schema_version(JobCategory=CATEGORY, **version)
    assert described["JobConfigSchemaVersion"] == "1.0.0"
    return json.loads(described["JobConfigSchema"])


def test_the_published_schema_accepts_the_same_documents_as_the_parser(client: Any, folder: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(client))
    validator.check_schema(validator.schema)
    fine = document(folder, ["1"])
    candidates = [
        fine,
        *(changed(fine, "EvaluationConfig", HyperParameters=values) for values in HYPERPARAMETERS),
        changed(fine, "AgentConfig", HttpAgentConfig={"Url": "http://host"}),
        changed(fine, "AgentConfig", BedrockAgentCoreConfig=None),
        changed(fine, "OutputDataConfig", LocalOutputPath="here"),
        changed(fine, "StoppingCondition", MaxRuntimeInSeconds=300_000),
        changed(fine, "StoppingCondition", Other=1),
        fine | {"InputDataConfig": []},
        fine | {"ModelPackageConfig": {}},
        fine | {"ModelPackageConfig": {"InputModelPackageArn": AGENT}},
    ]
    judged = [validator.is_valid(candidate) for candidate in candidates]
    assert judged == [is_taken(candidate) for candidate in candidates]
    assert 5 < sum(judged) < len(judged) - 5


HYPERPARAMETERS: list[dict[str, Any]] = [
    {},
    {"batch": {"eval_group_size": 2}},
    {"batch": {"eval_group_size": 0}},
    {"batch": {"other": 1}},
    {"eval_group_size": "4", "pass_k_values": "[1, 2]"},
    {"eval_group_size": 1.5},
    {"sampling_top_p": 0},
    {"top_p": 1, "rollout_timeout": 0.5},
    {"pass_k_values": [1, 4]},
    {"pass_k_values": [0]},
    {"pass_k_values": []},
    {"enforce_sampling": True, "failed_rollouts": "exclude", "rollout": {"timeout": 5}},
    {"failed_rollouts": "ignore"},
    {"logprobs": 1},
    {"unknown": 1},
]


def is_taken(candidate: dict[str, Any]) -> bool:
    try:
        JobConfigDocument.parse(json.dumps(candidate))
    except InputError:
        return False
    return True


def test_schemas_of_other_categories_and_versions_are_not_found(client: Any) -> None:
    assert refused(client.list_job_schema_versions, JobCategory="AgentRFT")[0] == "ResourceNotFound"
    described = client.describe_job_schema_version
    assert refused(described, JobCategory=CATEGORY, JobConfigSchemaVersion="9.0.0")[0] == "ResourceNotFound"
    assert refused(described, JobCategory="AgentRFT")[0] == "ResourceNotFound"


def test_an_s3_prefix_of_a_mapped_bucket_is_any_beginning_of_keys(client: Any, folder: Path) -> None:
    given = document(folder, ["1"])
    (folder / "bucket" / "parts").mkdir()
    for name, prompt in (("a-1", "0.25"), ("a-2", "0.5"), ("b", "0.75")):
        (folder / "bucket" / "parts" / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/parts/a-"}}
    given["InputDataConfig"][0]["DataSource"] = source
    create(client, "prefix", given)
    assert ended(client, "prefix")["JobStatus"] == "Completed"
    assert [row["reward"] for row in rows(run_of(folder, "prefix"))] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}], "Tags has the key 'a' twice"),
        ([{"Key": "AWS:a", "Value": ""}], "keys that begin with 'aws:' are reserved by AWS"),
        (
            [{"Key": "k" * 129, "Value": ""}],
            "tags.1.member.key' failed to satisfy constraint: Member must have length",
        ),
        ([{"Key": "a", "Value": "v" * 257}], "tags.1.member.value' failed to satisfy constraint"),
        ([{"Key": "a#", "Value": ""}], "tags.1.member.key' failed to satisfy constraint: Member must satisfy regular"),
        ([{"Key": f"{n}", "Value": ""} for n in range(51)], "tags' failed to satisfy constraint"),
    ],
)
def test_tags_that_aws_refuses_are_refused_and_nothing_is_created(
    client: Any, folder: Path, tags: list[dict[str, str]], expected: str
) -> None:
    given = document(folder, ["1"])
    refusals = [refused(create, client=client, name="tagged", given=given, Tags=tags)]
    steps = json.loads(definition(given))
    (step,) = (step for step in steps["Steps"] if step["Type"] == "Job")
    step["Arguments"]["Tags"] = tags
    made: dict[str, Any] = {"PipelineName": "tagged", "RoleArn": ROLE, "ClientRequestToken": "t" * 40}
    refusals.append(refused(client.create_pipeline, PipelineDefinition=json.dumps(steps), **made))
    refusals.append(refused(client.create_pipeline, PipelineDefinition=definition(given), Tags=tags, **made))
    app = {"Name": "tagged", "ArtifactStoreUri": "s3://bucket/apps", "RoleArn": ROLE}
    refusals.append(refused(client.create_mlflow_app, **app, Tags=tags))
    refusals.append(refused(client.create_model_package_group, ModelPackageGroupName="tagged", Tags=tags))
    arn = client.list_mlflow_apps()["Summaries"][0]["Arn"]
    refusals.append(refused(client.add_tags, ResourceArn=arn, Tags=tags))
    for code, message in refusals:
        assert code == "ValidationException"
        assert expected in message
    assert refused(client.describe_job, JobName="tagged", JobCategory=CATEGORY)[0] == "ResourceNotFound"
    assert client.list_pipelines(PipelineNamePrefix="tagged")["PipelineSummaries"] == []
    assert not (folder / "bucket" / "output" / "tagged").exists()
    assert [path.name for path in (folder / "state" / "mlflow").iterdir()] == ["app-heldout"]
