"""Pipeline operations: definitions, versions, and executions with real rollouts."""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from heldout.pipeline.evaluation import Evaluation
from heldout.storage.lock import holder_of
from tests.support.jobs import rows
from tests.support.live_service import ROLE, Served, served
from tests.support.service_jobs import (
    CATEGORY,
    SLOW_AGENT,
    definition,
    describe,
    document,
    ended,
    execution_ended,
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


def token() -> str:
    return str(uuid.uuid4())


def create(client: Any, name: str, text: str, **settings: Any) -> str:
    asked: dict[str, Any] = {"PipelineDefinition": text, "RoleArn": ROLE, "ClientRequestToken": token()}
    return str(client.create_pipeline(PipelineName=name, **asked | settings)["PipelineArn"])


def start(client: Any, name: str, **settings: Any) -> str:
    asked: dict[str, Any] = {"ClientRequestToken": token()}
    return str(client.start_pipeline_execution(PipelineName=name, **asked | settings)["PipelineExecutionArn"])


def evaluation_of(folder: Path, arn: str) -> Evaluation:
    """The evaluation that an execution left in the bucket."""
    (found,) = (folder / "bucket" / "output").glob(f"*-{arn.rpartition('/')[2]}")
    return Evaluation.open_folder(found)


def test_an_execution_plays_its_pipelines_job_which_is_also_listed_as_a_job(client: Any, folder: Path) -> None:
    given = document(folder, ["1", "0"])
    text = definition(given)
    pipeline = create(client, "one", text, Tags=[{"Key": "SagemakerModelEvaluation", "Value": "true"}])

    arn = start(client, pipeline, PipelineExecutionDisplayName="first", PipelineExecutionDescription="of two prompts")

    execution = execution_ended(client, arn)
    assert execution["PipelineExecutionStatus"] == "Succeeded"
    assert execution["PipelineArn"] == pipeline
    assert (execution["PipelineExecutionDisplayName"], execution["PipelineVersionId"]) == ("first", 1)
    steps = client.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
    names = [step["StepName"] for step in steps["PipelineExecutionSteps"]]
    assert names == ["CreateEvaluationAction", "EvaluateBaseModel", "AssociateLineage"]
    assert {step["StepStatus"] for step in steps["PipelineExecutionSteps"]} == {"Succeeded"}
    action, played, _ = steps["PipelineExecutionSteps"]
    execution_id = arn.rpartition("/")[2]
    assert action["Metadata"]["Lineage"]["ActionArns"][execution_id].endswith(f":action/{execution_id}")
    job_arn = played["Metadata"]["Job"]["Arn"]
    job = ended(client, job_arn.rpartition("/")[2])
    assert (job["JobArn"], job["JobStatus"]) == (job_arn, "Completed")
    described = json.loads(job["JobConfigDocument"])
    assert described.pop("ServiceOutput")["ProgressInfo"] == {"CurrentStep": 2, "MaxSteps": 2}
    assert described == given
    listed = client.list_jobs(JobCategory=CATEGORY, StatusEquals="Completed")["JobSummaries"]
    assert job_arn in [summary["JobArn"] for summary in listed]
    expected = client.describe_pipeline_definition_for_execution(PipelineExecutionArn=arn)
    assert expected["PipelineDefinition"] == text
    assert client.describe_pipeline(PipelineName="one")["LastRunTime"] == execution["CreationTime"]
    (summary,) = client.list_pipeline_executions(PipelineName="one")["PipelineExecutionSummaries"]
    assert (summary["PipelineExecutionArn"], summary["PipelineExecutionStatus"]) == (arn, "Succeeded")


def executed_together(client: Any, folder: Path, count: int) -> None:
    """Executes versions of one pipeline concurrently, each with its own definition, and checks each result."""
    create(client, f"together-{count}", definition(document(folder, ["0"])))
    arns = {}
    for number in range(count):
        text = definition(document(folder, [f"0.{number}"], eval_group_size=number % 3 + 1))
        version = client.update_pipeline(PipelineName=f"together-{count}", PipelineDefinition=text)["PipelineVersionId"]
        assert version == number + 2
        arns[number] = start(client, f"together-{count}", PipelineVersionId=version)
    for number, arn in arns.items():
        assert execution_ended(client, arn)["PipelineExecutionStatus"] == "Succeeded"
        (run,) = evaluation_of(folder, arn).runs().values()
        assert [row["reward"] for row in rows(run)] == [number / 10] * (number % 3 + 1)


def test_executions_at_the_same_time_each_have_the_definition_they_were_started_with(client: Any, folder: Path) -> None:
    executed_together(client, folder, 2)


@pytest.mark.slow
def test_ten_executions_at_the_same_time_each_have_their_own_definition(client: Any, folder: Path) -> None:
    executed_together(client, folder, 10)


@pytest.mark.parametrize("name", ["_of__a_base_model-", "___"])
def test_a_steps_job_is_found_whatever_the_steps_name(client: Any, folder: Path, name: str) -> None:
    pipeline = f"named-{len(name)}"
    create(client, pipeline, definition(document(folder, ["1"])).replace("EvaluateBaseModel", name))
    arn = start(client, pipeline)
    assert execution_ended(client, arn)["PipelineExecutionStatus"] == "Succeeded"
    steps = client.list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"]
    (job,) = (step["Metadata"]["Job"]["Arn"] for step in steps if step["StepName"] == name)
    assert describe(client, job.rpartition("/")[2])["JobStatus"] == "Completed"


def test_resources_of_a_step_have_the_definitions_tags_and_accept_more(client: Any, folder: Path) -> None:
    given = json.loads(definition(document(folder, ["1"])))
    (job_step,) = (step for step in given["Steps"] if step["Type"] == "Job")
    job_step["Arguments"]["Tags"] = [{"Key": "from", "Value": "the definition"}]
    create(client, "of-steps", json.dumps(given))
    arn = start(client, "of-steps")
    execution_ended(client, arn)
    steps = client.list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"]
    (job,) = (step["Metadata"]["Job"]["Arn"] for step in steps if "Job" in step["Metadata"])
    (action,) = (arn for step in steps for arn in step["Metadata"].get("Lineage", {}).get("ActionArns", {}).values())
    before = {job: [{"Key": "from", "Value": "the definition"}], action: []}
    more = {"Key": "more", "Value": "by hand"}
    for made, tags in before.items():
        assert client.list_tags(ResourceArn=made)["Tags"] == tags
        assert client.add_tags(ResourceArn=made, Tags=[more])["Tags"] == [*tags, more]
    assert client.describe_job(JobName=job.rpartition("/")[2], JobCategory=CATEGORY)["Tags"] == [*before[job], more]

    client.delete_pipeline(PipelineName="of-steps", ClientRequestToken=token())
    for gone in (job, action, arn):
        assert "does not exist" in refused(client.list_tags, ResourceArn=gone)[1]


@pytest.mark.slow
def test_a_stopped_execution_can_be_retried_and_keeps_finished_rollouts(client: Any, folder: Path) -> None:
    given = document(folder, ["0.4"] * 60, agent=SLOW_AGENT, rollout_max_concurrency=3)
    create(client, "stopped", definition(given))
    arn = start(client, "stopped")
    until(
        lambda: client.list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"],
        lambda steps: any("Job" in step.get("Metadata", {}) for step in steps),
    )
    evaluation = evaluation_of(folder, arn)
    progress = evaluation.folder / "progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_bytes())["finished"], lambda done: done > 0)
    assert (
        refused(client.retry_pipeline_execution, PipelineExecutionArn=arn, ClientRequestToken=token())[0]
        == "ConflictException"
    )
    assert refused(client.delete_pipeline, PipelineName="stopped", ClientRequestToken=token())[0] == "ConflictException"

    stopping = token()
    client.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=stopping)

    assert client.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] in (
        "Stopping",
        "Stopped",
    )
    assert execution_ended(client, arn)["PipelineExecutionStatus"] == "Stopped"
    (job,) = client.list_jobs(JobCategory=CATEGORY, StatusEquals="Stopped")["JobSummaries"]
    assert job["JobSecondaryStatus"] == "Stopped"
    code, message = refused(client.stop_pipeline_execution, PipelineExecutionArn=arn, ClientRequestToken=token())
    assert (code, "Only pipelines with 'Executing' status can be stopped" in message) == ("ValidationException", True)

    retrying = token()
    for _ in range(2):  # the same request, however often it comes
        client.retry_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=retrying)
        client.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=stopping)

    assert execution_ended(client, arn)["PipelineExecutionStatus"] == "Succeeded"
    (run,) = evaluation_of(folder, arn).runs().values()
    assert len(rows(run, "attempts")) == 60
    client.delete_pipeline(PipelineName="stopped", ClientRequestToken=token())
    assert refused(client.describe_pipeline_execution, PipelineExecutionArn=arn)[0] == "ResourceNotFound"
    assert run_of(folder, evaluation_of(folder, arn).state.name).metrics_path.exists()


@pytest.mark.slow
def test_an_execution_stopped_by_a_signal_alone_is_resumed(client: Any, folder: Path) -> None:
    create(client, "hushed", definition(document(folder, ["0.2"] * 60, agent=SLOW_AGENT, rollout_max_concurrency=3)))
    arn = start(client, "hushed")
    progress = evaluation_of(folder, arn).folder / "progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_bytes())["finished"], lambda done: done > 0)
    pid = holder_of(evaluation_of(folder, arn).folder)
    assert pid
    os.kill(pid, signal.SIGTERM)
    until(lambda: holder_of(evaluation_of(folder, arn).folder) == pid, lambda is_there: not is_there)
    assert execution_ended(client, arn)["PipelineExecutionStatus"] == "Succeeded"
    (run,) = evaluation_of(folder, arn).runs().values()
    played = rows(run, "attempts")
    assert len(played) == len({row["prompt_index"] for row in played}) == 60


def test_the_job_of_a_killed_execution_stays_in_progress(client: Any, folder: Path) -> None:
    create(client, "killed", definition(document(folder, ["0.2"] * 40, agent=SLOW_AGENT, rollout_max_concurrency=3)))
    arn = start(client, "killed")
    evaluation = evaluation_of(folder, arn)
    progress = evaluation.folder / "progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_bytes())["finished"], lambda done: done > 0)
    ((run_name, run),) = evaluation_of(folder, arn).runs().items()
    pid = holder_of(evaluation.folder)
    assert pid
    os.kill(pid, signal.SIGKILL)

    seen = []

    def look() -> str:
        seen.append(describe(client, run.state.arn.rpartition("/")[2])["JobStatus"])
        return str(client.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"])

    assert until(look, lambda status: status != "Executing") == "Succeeded"
    assert set(seen[:-1]) <= {"InProgress", "Completed"}
    assert seen[0] == "InProgress"
    assert describe(client, run.state.arn.rpartition("/")[2])["JobStatus"] == "Completed"
    assert evaluation_of(folder, arn).runs()[run_name].state.arn == run.state.arn


def test_a_stop_request_during_the_creation_of_an_execution_stops_it(
    client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = Evaluation.create

    def asked_meanwhile(*arguments: Any, **settings: Any) -> Evaluation:
        (execution,) = client.list_pipeline_executions(PipelineName="hasty")["PipelineExecutionSummaries"]
        arn = execution["PipelineExecutionArn"]
        assert (execution["PipelineExecutionStatus"], "PipelineExecutionFailureReason" in execution) == (
            "Executing",
            False,
        )
        client.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=token())
        return making(*arguments, **settings)

    given = document(folder, ["0.05"] * 400, agent=SLOW_AGENT, rollout_max_concurrency=2)
    create(client, "hasty", definition(given))
    monkeypatch.setattr(Evaluation, "create", asked_meanwhile)
    assert execution_ended(client, start(client, "hasty"))["PipelineExecutionStatus"] == "Stopped"


def test_a_repeated_client_token_creates_nothing_new(client: Any, folder: Path) -> None:
    text, used = definition(document(folder, ["1"])), token()
    first = create(client, "once", text, ClientRequestToken=used)
    assert create(client, "once", text, ClientRequestToken=used) == first
    code, message = refused(create, client=client, name="once-more", text=text, ClientRequestToken=used)
    assert (code, f"client token {used!r} was used for another" in message) == ("ConflictException", True)
    code, message = refused(create, client=client, name="once", text=text)
    assert code == "ValidationException"
    assert "Pipeline names must be unique within an AWS account and region" in message
    assert "already exists" in message

    started = start(client, "once", ClientRequestToken=used)
    assert start(client, "once", ClientRequestToken=used) == started
    assert len(client.list_pipeline_executions(PipelineName="once")["PipelineExecutionSummaries"]) == 1
    execution_ended(client, started)
    deleting = token()
    client.delete_pipeline(PipelineName="once", ClientRequestToken=deleting)
    client.delete_pipeline(PipelineName="once", ClientRequestToken=deleting)
    assert refused(client.delete_pipeline, PipelineName="once", ClientRequestToken=token())[0] == "ResourceNotFound"


def test_one_of_several_concurrent_requests_creates_the_pipeline(service: Served, folder: Path) -> None:
    text, used = definition(document(folder, ["1"])), token()
    clients = [service.client("sagemaker") for _ in range(6)]

    def made(client: Any, **settings: Any) -> str:
        try:
            return create(client, "at-once", text, **settings)
        except ClientError as error:
            return str(error.response["Error"]["Code"])

    with ThreadPoolExecutor(6) as threads:
        repeated = list(threads.map(lambda client: made(client, ClientRequestToken=used), clients))
        others = list(threads.map(made, clients))
    assert len(set(repeated)) == 1
    assert repeated[0].endswith(":pipeline/at-once")
    assert set(others) == {"ValidationException"}


def test_versions_keep_their_definitions_and_are_found_by_number_and_alias(client: Any, folder: Path) -> None:
    texts = [definition(document(folder, [prompt])) for prompt in ("0", "1")]
    arn = create(client, "versions", texts[0], PipelineVersionAliases=["stable"], PipelineDescription="before")
    assert client.update_pipeline(PipelineName="versions", PipelineDescription="after")["PipelineVersionId"] == 1
    updated = client.update_pipeline(PipelineName="versions", PipelineDefinition=texts[1])
    assert updated == updated | {"PipelineArn": arn, "PipelineVersionId": 2}

    def described(**which: Any) -> str:
        return str(client.describe_pipeline(PipelineName="versions", **which)["PipelineDefinition"])

    assert described() == described(PipelineVersionId=2) == texts[1]
    assert described(PipelineVersionAlias="stable") == described(PipelineVersionId=1) == texts[0]
    add = {"PipelineVersionAliasOperations": {"Add": ["stable"]}}
    move = client.update_pipeline_version
    assert refused(move, PipelineArn=arn, PipelineVersionId=2, **add)[0] == "ConflictException"
    remove = {"PipelineVersionAliasOperations": {"Remove": ["stable"]}}
    move(PipelineArn=arn, PipelineVersionId=1, PipelineVersionDisplayName="old", **remove)
    move(PipelineArn=arn, PipelineVersionId=2, **add)
    assert described(PipelineVersionAlias="stable") == texts[1]
    listed = client.list_pipeline_versions(PipelineName="versions")["PipelineVersionSummaries"]
    assert [version["PipelineVersionId"] for version in listed] == [2, 1]
    assert listed[1]["PipelineVersionDisplayName"] == "old"
    assert client.describe_pipeline(PipelineName=arn)["PipelineDescription"] == "after"
    assert refused(client.describe_pipeline, PipelineName="versions", PipelineVersionId=3)[0] == "ResourceNotFound"
    both = {"PipelineVersionId": 1, "PipelineVersionAlias": "stable"}
    assert refused(client.describe_pipeline, PipelineName="versions", **both)[0] == "ValidationException"


def test_pipelines_are_listed_by_prefix_in_pages_newest_first(client: Any, folder: Path) -> None:
    text = definition(document(folder, ["1"]))
    for number in range(5):
        create(client, f"listed-{number}", text)
    pages = client.get_paginator("list_pipelines").paginate(
        PipelineNamePrefix="listed", PaginationConfig={"PageSize": 2}
    )
    names = [[pipeline["PipelineName"][-1] for pipeline in page["PipelineSummaries"]] for page in pages]
    assert names == [["4", "3"], ["2", "1"], ["0"]]
    by_name = client.list_pipelines(PipelineNamePrefix="listed", SortBy="Name", SortOrder="Ascending", MaxResults=1)
    assert by_name["PipelineSummaries"][0]["PipelineName"] == "listed-0"
    moment = by_name["PipelineSummaries"][0]["CreationTime"]
    later = client.list_pipelines(PipelineNamePrefix="listed", CreatedAfter=moment)["PipelineSummaries"]
    assert "listed-0" not in [pipeline["PipelineName"] for pipeline in later]


def test_tags_are_listed_added_and_deleted(client: Any, folder: Path) -> None:
    arn = create(client, "tagged", definition(document(folder, ["1"])), Tags=[{"Key": "a", "Value": "1"}])
    added = client.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "3"}])
    assert added["Tags"] == [{"Key": "a", "Value": "3"}, {"Key": "b", "Value": "2"}]
    client.delete_tags(ResourceArn=arn, TagKeys=["a", "nothing"])
    assert client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]
    many = [{"Key": f"key-{number}", "Value": ""} for number in range(50)]
    assert "50 at most" in refused(client.add_tags, ResourceArn=arn, Tags=many)[1]
    assert "does not exist" in refused(client.list_tags, ResourceArn=f"{arn}-not")[1]


def test_a_definition_can_be_read_from_a_bucket(client: Any, folder: Path) -> None:
    text = definition(document(folder, ["1"]))
    (folder / "bucket" / "definitions").mkdir()
    (folder / "bucket" / "definitions" / "one.json").write_text(text)
    asked: dict[str, Any] = {"PipelineName": "from-s3", "RoleArn": ROLE, "ClientRequestToken": token()}
    client.create_pipeline(
        **asked, PipelineDefinitionS3Location={"Bucket": "bucket", "ObjectKey": "definitions/one.json"}
    )
    assert client.describe_pipeline(PipelineName="from-s3")["PipelineDefinition"] == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "Invalid pipeline definition: pipeline definition is not JSON"),
        ('{"Version": "1"}', "Version is '1'; it must be '2020-12-01'"),
        ('{"Version": "2020-12-01", "Steps": []}', "Steps is []; it must be a list of steps"),
        (
            '{"Version": "2020-12-01", "Steps": [{"Name": "a", "Type": "Training", "Arguments": {}}]}',
            "Type is 'Training'; there are 'Job' and 'Lineage'",
        ),
        (
            '{"Version": "2020-12-01", "Steps": [{"Name": "a", "Type": "Lineage", "Arguments": {"Actions": 3}}]}',
            "step 'a': Actions is 3; it must be a list of objects",
        ),
        (
            '{"Version": "2020-12-01", "Steps": [{"Name": "a", "Type": "Lineage", "Arguments": {}, "DependsOn": 3}]}',
            "step 'a': DependsOn is 3; it must be a list of steps' names",
        ),
        (
            '{"Version": "2020-12-01", "Parameters": [1], "Steps": [{"Name": "a", "Type": "Lineage", "Arguments": {}}]}',
            "Parameters is [1]; it must be a list of objects",
        ),
    ],
)
def test_a_definition_that_cannot_be_executed_is_refused(client: Any, text: str, expected: str) -> None:
    code, message = refused(create, client=client, name="refused", text=text)
    assert code == "ValidationException"
    assert expected in message


def test_an_unplayable_execution_is_refused_at_once(client: Any, folder: Path) -> None:
    given = document(folder, ["1"])
    given["EvaluationConfig"]["BaseModelArn"] = "somewhere-else"
    create(client, "unplayable", definition(given))
    code, message = refused(start, client=client, name="unplayable")
    assert code == "ValidationException"
    assert "step 'EvaluateBaseModel': model 'somewhere-else' is not on this machine" in message
    assert refused(start, client=client, name="nothing") == ("ResourceNotFound", "Pipeline 'nothing' does not exist.")


@pytest.mark.slow
def test_an_execution_takes_exactly_the_definitions_parameters(client: Any, folder: Path) -> None:
    text = json.loads(definition(document(folder, ["1"])))
    text["Parameters"] = [{"Name": "reason", "Type": "String"}]
    text["Steps"][0]["Arguments"]["Actions"][0]["Properties"]["Reason"] = {"Get": "Parameters.reason"}
    create(client, "parameters", json.dumps(text))
    assert "'reason' has no default" in refused(start, client=client, name="parameters")[1]
    unknown = [{"Name": "raeson", "Value": "x"}]
    assert (
        "Unknown Pipeline parameter 'raeson'"
        in refused(start, client=client, name="parameters", PipelineParameters=unknown)[1]
    )
    arn = start(client, "parameters", PipelineParameters=[{"Name": "reason", "Value": "a new model"}])
    assert execution_ended(client, arn)["PipelineExecutionStatus"] == "Succeeded"
    lineage = json.loads((evaluation_of(folder, arn).folder / "lineage.json").read_bytes())
    assert lineage["Actions"][0]["Properties"]["Reason"] == "a new model"
