"""Log lines of managed jobs for a waiting user: from CloudWatch Logs, with boto3 on the wire."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from heldout import Execution
from heldout.backends.base import LogLine
from heldout.backends.sagemaker.account import Account
from heldout.backends.sagemaker.job_logs import JobLogs, JobToLookAt
from heldout.cli.evaluate import app
from tests.support.cloud import OUTPUT, Cloud, cloud_in, evaluator, session
from tests.support.intercepting_proxy import Middle, Refusal, middle
from tests.support.job_logs import NOON_MS, logged, named
from tests.support.live_service import KEYS, REGION, Served, served
from tests.support.s3_service import forget_aws
from tests.support.service_registry import MODEL, RUNTIME

ENDPOINT = "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served") / "state") as running:
        yield running


@pytest.fixture
def between(service: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Middle]:
    """What stands between the client and the server."""
    forget_aws(monkeypatch)
    with middle(service.url) as made:
        monkeypatch.setenv(ENDPOINT, made.url)
        yield made


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOON_MS / 1000

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logs(between: Middle, clock: Clock) -> JobLogs:
    keys = boto3.Session(KEYS.access_key, KEYS.secret_key, region_name=REGION)
    return JobLogs(Account(keys), clock)


def job(service: Served, name: str, *, ended_at: datetime | None = None, run: str = "base-model-eval") -> JobToLookAt:
    return JobToLookAt(run, service.context.arn(f"job/AgentRFTEvaluation/{name}"), ended_at)


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_each_line_is_given_once_with_its_time_and_its_run(service: Served, logs: JobLogs) -> None:
    base, tuned = named("base"), named("tuned")
    jobs = [job(service, base), job(service, tuned, run="fine-tuned-model-eval")]
    assert logs.new_lines(jobs) == []
    logged(service, base, (0, "playing"), (1, "played"))
    at = datetime.fromtimestamp(NOON_MS / 1000, UTC)
    assert logs.new_lines(jobs)[0] == LogLine(at, "base-model-eval", "playing")
    assert logs.new_lines(jobs) == []
    logged(service, tuned, (2, "playing"))
    logged(service, base, (3, "logging to MLflow"))
    assert [(line.run, line.text) for line in logs.new_lines(jobs)] == [
        ("base-model-eval", "logging to MLflow"),
        ("fine-tuned-model-eval", "playing"),
    ]


def test_streams_that_appear_later_are_found(service: Served, logs: JobLogs) -> None:
    name = named("worker")
    logged(service, f"{name}-1", (0, "first"))
    assert texts(logs.new_lines([job(service, name)])) == ["first"]
    logged(service, f"{name}-2", (1, "second"))
    assert texts(logs.new_lines([job(service, name)])) == ["second"]


def test_many_lines_are_returned_in_order_and_complete(service: Served, logs: JobLogs) -> None:
    name = named("many")
    expected = [f"line {number}" for number in range(12_000)]
    logged(service, name, *enumerate(expected))
    looks = [texts(logs.new_lines([job(service, name)])) for _ in range(4)]
    assert [len(look) for look in looks] == [5_000, 5_000, 2_000, 0]
    assert [text for look in looks for text in look] == expected


def test_a_missing_log_group_has_no_lines(service: Served, between: Middle, logs: JobLogs) -> None:
    name = named("early")
    logged(service, name, (0, "said"))
    between.refused["DescribeLogStreams"] = Refusal("ResourceNotFoundException", times=1)
    assert logs.new_lines([job(service, name)]) == []
    assert texts(logs.new_lines([job(service, name)])) == ["said"]


def test_who_may_not_read_logs_is_told_the_permissions_once(service: Served, between: Middle, logs: JobLogs) -> None:
    name = named("denied")
    logged(service, name, (0, "said"))
    between.refused["GetLogEvents"] = Refusal("AccessDeniedException")
    (line,) = logs.new_lines([job(service, name)])
    assert line.text == (
        "log lines are not shown: GetLogEvents was refused: AccessDeniedException: as the test wants it (waiting needs "
        "logs:DescribeLogStreams and logs:GetLogEvents on log group /aws/sagemaker/Job/AgentRFTEvaluation)"
    )
    asked = between.asked.total()
    assert logs.new_lines([job(service, name)]) == []
    assert between.asked.total() == asked


def test_throttling_loses_no_line(service: Served, between: Middle, logs: JobLogs) -> None:
    name = named("throttled")
    first, second = logged(service, f"{name}-a", (0, "one")), logged(service, f"{name}-b", (1, "two"))
    assert first < second

    def throttled_from_here_on(reply: dict[str, Any]) -> dict[str, Any]:
        between.refused["GetLogEvents"] = Refusal("ThrottlingException")
        return reply

    between.changed["GetLogEvents"] = throttled_from_here_on  # the first page is let through
    assert texts(logs.new_lines([job(service, name)])) == ["one"]
    between.changed.clear()
    between.refused.clear()
    assert texts(logs.new_lines([job(service, name)])) == ["two"]


def test_an_endpoint_that_cannot_be_reached_is_told_once_and_looked_for_again(
    service: Served, between: Middle, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = named("away")
    logged(service, name, (0, "said"))
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")  # nothing answers there
    account = Account(boto3.Session(KEYS.access_key, KEYS.secret_key, region_name=REGION))
    logs = JobLogs(account, clock)
    (line,) = logs.new_lines([job(service, name)])
    assert line.text.startswith("log lines are not shown while CloudWatch cannot be reached: ")
    assert "http://127.0.0.1:9" in line.text
    lead_to(between.url, account.client("logs", is_glance=True))
    assert logs.new_lines([job(service, name)]) == []
    clock.now += 61
    assert texts(logs.new_lines([job(service, name)])) == ["said"]


def lead_to(url: str, client: Any) -> None:
    """Has a client's requests go there instead."""

    def led(request: Any, **_: Any) -> None:
        request.url = url

    client.meta.events.register("before-sign", led)


def test_a_job_that_ended_is_looked_at_for_a_minute_more(
    service: Served, between: Middle, logs: JobLogs, clock: Clock
) -> None:
    name = named("ended")
    over = job(service, name, ended_at=datetime.fromtimestamp(clock.now, UTC))
    logged(service, name, (0, "played"))
    assert texts(logs.new_lines([over])) == ["played"]
    clock.now += 30
    logged(service, name, (1, "late"))
    assert texts(logs.new_lines([over])) == ["late"]
    clock.now += 31
    assert logs.new_lines([over]) == []
    asked = between.asked.total()
    assert logs.new_lines([over]) == []
    assert between.asked.total() == asked


# In an evaluation.


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud_in(tmp_path_factory.mktemp("cloud")) as made:
        yield made


def test_waiting_shows_what_the_jobs_said(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    execution = evaluator().evaluate()
    execution.wait(poll=0.2, timeout=180.0)
    shown = capsys.readouterr().out
    assert "base-model-eval: playing 8 rollouts" in shown
    assert shown.count("base-model-eval: played 8/8 rollouts") == 1
    execution.wait()
    assert "played" not in capsys.readouterr().out
    again = Execution.get(execution.arn, session=session())
    again.wait()
    assert "base-model-eval: played 8/8 rollouts" in capsys.readouterr().out


def test_waiting_for_an_evaluation_on_this_machine_shows_the_same(
    cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execution = evaluator(registry=cloud.everything, s3_output_path=str(tmp_path / "out")).evaluate()
    execution.wait(poll=0.2, timeout=180.0)
    shown = capsys.readouterr().out
    (name,) = execution.runs()
    assert f"{name}: playing 8 rollouts" in shown
    assert shown.count(f"{name}: played 8/8 rollouts") == 1


def test_the_terminal_shows_what_the_jobs_said(cloud: Cloud) -> None:
    given = ["--model", MODEL, "--agent", RUNTIME, "--dataset", "s3://my-bucket/prompts.jsonl", "--output", OUTPUT]
    done = CliRunner().invoke(app, ["evaluate", "--backend", "sagemaker", *given, "--mlflow", "off"])
    assert done.exit_code == 0, done.output
    assert "base-model-eval: playing 8 rollouts" in done.output
