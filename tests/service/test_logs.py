"""CloudWatch Logs operations, through boto3: a job's log."""

import os
import signal
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from heldout.pipeline.definition import JOB_LOG_GROUP
from heldout.storage.lock import holder_of
from tests.support.job_logs import NOON_MS, RUN, logged, named
from tests.support.live_service import ROLE, Served, served
from tests.support.service_jobs import (
    CATEGORY,
    SLOW_AGENT,
    create,
    definition,
    document,
    ended,
    execution_ended,
    refused,
    registry,
    until,
)

GROUP = {"logGroupName": JOB_LOG_GROUP}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Served]:
    with registry(folder) as names, served(folder / "state", names) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Served) -> Any:
    return service.client("logs")


def texts(page: Any) -> list[str]:
    return [event["message"] for event in page["events"]]


def paged(client: Any, stream: str, direction: str, **asked: Any) -> list[list[str]]:
    """The pages of a stream, until a token comes back as it was given."""
    token = {"f": "nextForwardToken", "b": "nextBackwardToken"}[direction]
    page = client.get_log_events(**GROUP, logStreamName=stream, startFromHead=direction == "f", **asked)
    found = [texts(page)]
    while True:
        given = page[token]
        page = client.get_log_events(
            **GROUP, logStreamName=stream, startFromHead=direction == "f", nextToken=given, **asked
        )
        if page[token] == given:
            assert texts(page) == []
            return found
        found.append(texts(page))


# Real jobs.


def test_a_jobs_stream_has_its_progress_with_times(service: Served, client: Any, folder: Path) -> None:
    sagemaker = service.client("sagemaker")
    create(sagemaker, "real", document(folder, ["1", "raise no luck"], rollout_max_retries=0))
    job = ended(sagemaker, "real")
    (stream,) = client.describe_log_streams(**GROUP, logStreamNamePrefix="real")["logStreams"]
    events = client.get_log_events(**GROUP, logStreamName=stream["logStreamName"], startFromHead=True)["events"]
    said = [event["message"] for event in events]
    assert "playing 2 rollouts" in said
    assert any("the first with agent: raised: " in text and "no luck" in text for text in said)
    assert any(text.startswith("played 2/2 rollouts") for text in said)
    times = [event["timestamp"] for event in events]
    assert times == sorted(times)
    assert job["CreationTime"].timestamp() * 1000 - 1_000 <= times[0]
    assert (stream["firstEventTimestamp"], stream["lastEventTimestamp"]) == (times[0], times[-1])


def test_each_job_of_an_execution_has_its_own_lines(service: Served, client: Any, folder: Path) -> None:
    sagemaker = service.client("sagemaker")
    text = definition(document(folder, ["1"]), document(folder, ["1", "1", "1"]))
    asked: dict[str, Any] = {"RoleArn": ROLE, "PipelineDefinition": text, "ClientRequestToken": str(uuid.uuid4())}
    sagemaker.create_pipeline(PipelineName="two", **asked)
    started = sagemaker.start_pipeline_execution(PipelineName="two", ClientRequestToken=str(uuid.uuid4()))
    arn = started["PipelineExecutionArn"]
    assert execution_ended(sagemaker, arn)["PipelineExecutionStatus"] == "Succeeded"
    steps = sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
    jobs = [step["Metadata"]["Job"]["Arn"] for step in steps["PipelineExecutionSteps"] if "Job" in step["Metadata"]]
    said = []
    for job in jobs:
        (stream,) = client.describe_log_streams(**GROUP, logStreamNamePrefix=job.rpartition("/")[2])["logStreams"]
        said.append(texts(client.get_log_events(**GROUP, logStreamName=stream["logStreamName"], startFromHead=True)))
    for lines, count in zip(said, (1, 3), strict=True):
        assert lines[0] == f"playing {count} rollouts"
        assert [line.split(" rollouts")[0] for line in lines if line.startswith("played")] == [
            f"played {count}/{count}"
        ]


@pytest.mark.slow
def test_lines_of_a_resumed_job_follow_those_of_its_first_process(service: Served, client: Any, folder: Path) -> None:
    sagemaker = service.client("sagemaker")
    create(sagemaker, "killed", document(folder, ["0.5"] * 30, agent=SLOW_AGENT, rollout_max_concurrency=3))
    asked = {**GROUP, "logStreamName": "killed/runner", "startFromHead": True}
    before = until(lambda: client.get_log_events(**asked), lambda page: "playing 30 rollouts" in texts(page))
    pid = holder_of(folder / "bucket" / "output" / "killed" / RUN)
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert ended(sagemaker, "killed")["JobStatus"] == "Completed"
    assert client.get_log_events(**asked)["events"][: len(before["events"])] == before["events"]
    after = client.get_log_events(**asked, nextToken=before["nextForwardToken"])
    assert texts(after)[0] == "started"
    assert any(text.startswith("played 30/30 rollouts") for text in texts(after))


# Groups and streams.


def test_the_log_group_is_found_by_name_by_part_of_it_and_by_arn(client: Any) -> None:
    (group,) = client.describe_log_groups()["logGroups"]
    assert group["logGroupName"] == JOB_LOG_GROUP == "/aws/sagemaker/Job/AgentRFTEvaluation"
    for asked in (
        {"logGroupNamePrefix": "/aws/sagemaker/"},
        {"logGroupNamePattern": "agentrft"},
        {"logGroupIdentifiers": [group["logGroupArn"]]},
    ):
        assert client.describe_log_groups(**asked)["logGroups"] == [group]
    assert client.describe_log_groups(logGroupNamePrefix="/aws/lambda")["logGroups"] == []


def test_streams_are_listed_in_pages_by_name_or_by_their_last_line(service: Served, client: Any) -> None:
    prefix = named("listed")
    names = [
        logged(service, f"{prefix}-{name}", (after, "said"))
        for name, after in (("a", 3_000_000), ("b", 1_000_000), ("c", 2_000_000))
    ]
    pages = client.get_paginator("describe_log_streams").paginate(
        **GROUP, logStreamNamePrefix=prefix, PaginationConfig={"PageSize": 2}
    )
    assert [[stream["logStreamName"] for stream in page["logStreams"]] for page in pages] == [names[:2], names[2:]]
    latest = client.describe_log_streams(**GROUP, orderBy="LastEventTime", descending=True)["logStreams"]
    assert [stream["logStreamName"] for stream in latest if stream["logStreamName"] in names] == [
        names[0],
        names[2],
        names[1],
    ]
    (stream,) = client.describe_log_streams(**GROUP, logStreamNamePrefix=names[0])["logStreams"]
    assert stream["arn"].endswith(f":log-group:{JOB_LOG_GROUP}:log-stream:{names[0]}")
    assert stream["lastEventTimestamp"] == NOON_MS + 3_000_000


def test_a_job_without_log_lines_has_an_empty_stream(service: Served, client: Any) -> None:
    stream = logged(service, named("silent"))
    (found,) = client.describe_log_streams(**GROUP, logStreamNamePrefix=stream)["logStreams"]
    assert "lastEventTimestamp" not in found
    page = client.get_log_events(**GROUP, logStreamName=stream, startFromHead=True)
    assert texts(page) == []
    logged(service, stream.partition("/")[0], (0, "at last"))
    page = client.get_log_events(**GROUP, logStreamName=stream, startFromHead=True, nextToken=page["nextForwardToken"])
    assert texts(page) == ["at last"]


# Events of a stream.


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 10_000])
@pytest.mark.parametrize("direction", ["f", "b"])
def test_pages_of_any_size_hold_every_line_once(service: Served, client: Any, limit: int, direction: str) -> None:
    job = named("paged")
    logged(service, job, (0, "of the other run"), run="other")
    stream = logged(service, job, *[(number, f"line {number}") for number in range(7)])
    logged(service, job, (8, "of the other run"), run="other")
    pages = paged(client, stream, direction, limit=limit)
    assert all(len(page) <= limit for page in pages)
    if direction == "b":
        pages.reverse()
    assert [line for page in pages for line in page] == [f"line {number}" for number in range(7)]


def test_a_token_repeats_at_the_end_and_later_returns_the_new_lines(service: Served, client: Any) -> None:
    job = named("followed")
    stream = logged(service, job, (0, "first"))
    asked = {**GROUP, "logStreamName": stream, "startFromHead": True}
    token = client.get_log_events(**asked)["nextForwardToken"]
    for _ in range(2):
        page = client.get_log_events(**asked, nextToken=token)
        assert (texts(page), page["nextForwardToken"]) == ([], token)
    logged(service, job, (1, "second"))
    page = client.get_log_events(**asked, nextToken=token)
    assert texts(page) == ["second"]
    assert texts(client.get_log_events(**asked, nextToken=page["nextBackwardToken"])) == ["first"]


def test_without_a_token_the_last_page_is_returned_unless_start_from_head(service: Served, client: Any) -> None:
    stream = logged(service, named("tail"), *[(number, f"line {number}") for number in range(5)])
    asked = {**GROUP, "logStreamName": stream, "limit": 2}
    assert texts(client.get_log_events(**asked)) == ["line 3", "line 4"]
    assert texts(client.get_log_events(**asked, startFromHead=True)) == ["line 0", "line 1"]


def test_a_page_holds_no_more_than_a_megabyte(service: Served, client: Any) -> None:
    stream = logged(service, named("large"), *[(number, f"{number} " + "x" * 60_000) for number in range(20)])
    assert [len(page) for page in paged(client, stream, "f")] == [17, 3]


def test_a_time_range_includes_its_start_and_excludes_its_end(service: Served, client: Any) -> None:
    stream = logged(service, named("times"), *[(number, f"line {number}") for number in range(5)])
    between = {"startTime": NOON_MS + 1, "endTime": NOON_MS + 3}
    for direction in ("f", "b"):
        assert [line for page in paged(client, stream, direction, **between) for line in page] == ["line 1", "line 2"]


def test_tokens_stay_valid_after_a_restart_of_the_server(tmp_path: Path) -> None:
    with served(tmp_path / "state") as first:
        stream = logged(first, "restarted", (0, "before"))
        page = first.client("logs").get_log_events(**GROUP, logStreamName=stream, startFromHead=True)
    with served(tmp_path / "state") as second:
        logged(second, "restarted", (1, "after"))
        again = second.client("logs").get_log_events(
            **GROUP, logStreamName=stream, startFromHead=True, nextToken=page["nextForwardToken"]
        )
    assert [(event["message"], event["timestamp"]) for event in again["events"]] == [("after", NOON_MS + 1)]


# Events of several streams.


@pytest.fixture(scope="module")
def mixed(service: Served) -> str:
    """What the names of two streams begin with, whose lines come in turn."""
    prefix = named("mixed")
    logged(service, f"{prefix}-a", (0, "ERROR one"), (2, "all is well"), (4, 'a "quoted" ERROR again'))
    logged(service, f"{prefix}-b", (1, "WARN two"), (2, "ERROR retried"), (5, "last: not logged to MLflow"))
    return prefix


EVERYTHING = [
    "ERROR one",
    "WARN two",
    "all is well",
    "ERROR retried",
    'a "quoted" ERROR again',
    "last: not logged to MLflow",
]


def filtered(client: Any, prefix: str, **asked: Any) -> list[str]:
    """The lines of all pages."""
    pages = client.get_paginator("filter_log_events").paginate(**GROUP, logStreamNamePrefix=prefix, **asked)
    return [line for page in pages for line in texts(page)]


@pytest.mark.parametrize("limit", [1, 2, 4, 10_000])
def test_lines_of_several_streams_are_sorted_by_time(client: Any, mixed: str, limit: int) -> None:
    sizes = {"PaginationConfig": {"PageSize": limit}}
    assert filtered(client, mixed, **sizes) == EVERYTHING
    backward = {"startFromHead": False, "startTime": NOON_MS}
    assert filtered(client, mixed, **sizes, **backward) == EVERYTHING[::-1]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("ERROR", [0, 3, 4]),
        ("error", []),
        ("ERROR again", [4]),
        ('"not logged"', [5]),
        (r'"\"quoted\""', [4]),
        ("ERROR -retried", [0, 4]),
        ("?WARN ?well", [1, 2]),
    ],
)
def test_filter_patterns_select_lines(client: Any, mixed: str, pattern: str, expected: Sequence[int]) -> None:
    assert filtered(client, mixed, filterPattern=pattern) == [EVERYTHING[number] for number in expected]


def test_an_event_has_its_stream_and_a_unique_id(client: Any, mixed: str) -> None:
    events = client.filter_log_events(**GROUP, logStreamNamePrefix=mixed, startTime=NOON_MS + 2, endTime=NOON_MS + 4)
    assert [event["message"] for event in events["events"]] == EVERYTHING[2:5]  # its end is in it, unlike GetLogEvents'
    assert [event["logStreamName"][-8] for event in events["events"]] == ["a", "b", "a"]
    assert len({event["eventId"] for event in events["events"]}) == 3
    one = client.filter_log_events(**GROUP, logStreamNames=[f"{mixed}-b/runner"])
    assert texts(one) == [EVERYTHING[number] for number in (1, 3, 5)]


# Refusals.


@pytest.mark.parametrize(
    ("operation", "changes", "code", "expected"),
    [
        ("get_log_events", {"logGroupName": "/aws/other"}, "ResourceNotFoundException", "log group does not exist"),
        ("get_log_events", {"logStreamName": "nobody/runner"}, "ResourceNotFoundException", "log stream does not"),
        ("get_log_events", {"logStreamName": "nobody"}, "ResourceNotFoundException", "log stream does not exist"),
        ("get_log_events", {"nextToken": "f/x"}, "InvalidParameterException", "nextToken is invalid: 'f/x'"),
        ("get_log_events", {"limit": 0}, "InvalidParameterException", "at 'limit' failed to satisfy constraint"),
        ("get_log_events", {"logGroupIdentifier": JOB_LOG_GROUP}, "InvalidParameterException", "exactly one of"),
        ("filter_log_events", {"nextToken": "f/x"}, "InvalidParameterException", "nextToken is invalid: 'f/x'"),
        ("filter_log_events", {"filterPattern": "{ $.a = 1 }"}, "InvalidParameterException", "'{ $.a = 1 }' is not"),
        ("filter_log_events", {"filterPattern": "%a+%"}, "InvalidParameterException", "double-quoted phrases"),
        (
            "filter_log_events",
            {"filterPattern": "?a b"},
            "InvalidParameterException",
            "cannot be combined with other terms",
        ),
        ("filter_log_events", {"startFromHead": False}, "InvalidParameterException", "on or after 2024-01-01"),
        (
            "filter_log_events",
            {"logStreamNames": ["a"], "logStreamNamePrefix": "a"},
            "InvalidParameterException",
            "cannot be given together",
        ),
        (
            "describe_log_streams",
            {"orderBy": "LastEventTime", "logStreamNamePrefix": "a"},
            "InvalidParameterException",
            "Cannot order by LastEventTime",
        ),
        ("describe_log_streams", {"nextToken": "x"}, "InvalidParameterException", "was not returned by this operation"),
        ("describe_log_streams", {"logGroupName": None}, "InvalidParameterException", "exactly one of"),
    ],
)
def test_invalid_log_requests_get_the_services_errors(
    service: Served, client: Any, operation: str, changes: dict[str, Any], code: str, expected: str
) -> None:
    asked: dict[str, Any] = dict(GROUP)
    if operation == "get_log_events":
        asked["logStreamName"] = logged(service, "refused")
    asked = {name: value for name, value in (asked | changes).items() if value is not None}
    assert (refusal := refused(getattr(client, operation), **asked))[0] == code
    assert expected in refusal[1]


def test_an_unsupported_log_operation_is_unknown(client: Any) -> None:
    assert refused(client.create_log_group, logGroupName="mine")[0] == "UnknownOperationException"


def test_a_deleted_jobs_stream_is_gone(service: Served, client: Any) -> None:
    job = named("deleted")
    stream = logged(service, job, (0, "said"))
    service.client("sagemaker").delete_job(JobName=job, JobCategory=CATEGORY)
    code, _ = refused(client.get_log_events, **GROUP, logStreamName=stream)
    assert code == "ResourceNotFoundException"
