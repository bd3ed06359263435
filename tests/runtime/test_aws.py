"""Agents that use AWS's clients unmodified: boto3, and the client published in sagemaker-train."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from types import ModuleType
from typing import TypeVar

import boto3
import openai
import orjson
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from heldout.runtime import Credentials, Report, ReportKind, ReportRefused, Trajectory
from tests.support.runtime_support import JOB_ARN, KEY_PAIR, REGION, Answer, Bench, Json, published, running_bench

ASK = orjson.dumps({"model": "default", "messages": [{"role": "user", "content": "who is there?"}]})
OTHER_JOB = "arn:aws:sagemaker:us-west-2:123456789012:job/AgentRFTEvaluation/other"
T = TypeVar("T")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_bench() as running:
        yield running


@pytest.fixture(scope="module")
def rft() -> ModuleType:
    return published("sagemaker.train.rft")


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_PAIR.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY_PAIR.secret_key)


class Aws:
    """boto3's client for the Job Runtime, in a thread of its own."""

    def __init__(self, bench: Bench, trajectory: Trajectory, keys: Credentials = KEY_PAIR, job: str = JOB_ARN) -> None:
        self._client = boto3.client(
            "sagemakerjobruntime",
            endpoint_url=bench.runtime.endpoint,
            region_name=REGION,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            config=Config(retries={"total_max_attempts": 1}),
        )
        self.exceptions = self._client.exceptions
        self.names = {"JobArn": job, "TrajectoryId": trajectory.id}

    async def call(self, operation: str, **members: object) -> Json:
        def run() -> Json:
            answer: Json = getattr(self._client, operation)(**self.names, **members)
            body = answer.get("Body")
            return answer if body is None else {**answer, "Body": body.read()}  # type: ignore[attr-defined]

        return await asyncio.to_thread(run)


async def test_boto3_samples_the_model(bench: Bench) -> None:
    trajectory = bench.open()
    answer = await Aws(bench, trajectory).call("sample", Body=ASK)
    assert answer["ContentType"] == "application/json"
    reply = orjson.loads(answer["Body"])  # type: ignore[arg-type]
    assert reply["choices"][0]["message"]["content"] == "Hello, who is there?"
    assert trajectory.turns[0].status == 200


async def test_boto3_samples_the_model_as_a_stream(bench: Bench) -> None:
    trajectory = bench.open()
    answer = await Aws(bench, trajectory).call("sample_with_response_stream", Body=ASK)
    assert answer["ContentType"] == "text/event-stream"
    body = answer["Body"]
    assert isinstance(body, bytes)
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    assert orjson.loads(trajectory.turns[0].reply)[0]["content"] == "Hello, who is there?"


async def test_boto3_completes_a_rollout_and_rewards_it(bench: Bench) -> None:
    trajectory = bench.open("p1")
    aws = Aws(bench, trajectory)
    await aws.call("complete_rollout")
    await aws.call("update_reward", Rewards=[0.25, 0.5])
    assert bench.reports == [("p1", Report(ReportKind.COMPLETED)), ("p1", Report(ReportKind.REWARDED, (0.25, 0.5)))]


async def test_boto3_reports_a_failure(bench: Bench) -> None:
    await Aws(bench, bench.open()).call("complete_rollout", Status="failed")
    ((_, report),) = bench.reports
    assert (report.kind, report.failure_kind) == (ReportKind.FAILED, "reported_failed")


async def test_boto3_raises_the_right_exception(bench: Bench) -> None:
    trajectory, closed = bench.open(), bench.open()
    closed.close()
    aws = Aws(bench, trajectory)
    errors = aws.exceptions
    with pytest.raises(errors.ValidationException, match="must be a list of finite numbers"):
        await aws.call("update_reward", Rewards=[float("nan")])
    with pytest.raises(errors.ValidationException, match="the body is not JSON"):
        await aws.call("sample", Body=b"no json")
    with pytest.raises(errors.ConflictException, match="not in valid status"):
        await Aws(bench, closed).call("update_reward", Rewards=[1.0])
    with pytest.raises(errors.AccessDeniedException, match="does not match"):
        await Aws(bench, trajectory, Credentials(KEY_PAIR.access_key, "guessed")).call("sample", Body=ASK)
    with pytest.raises(errors.AccessDeniedException, match=f"not of '{OTHER_JOB}'"):
        await Aws(bench, trajectory, job=OTHER_JOB).call("update_reward", Rewards=[1.0])


async def test_a_trajectory_that_never_existed_is_not_found(bench: Bench) -> None:
    trajectory = bench.open()
    aws = Aws(bench, trajectory)
    aws.names["TrajectoryId"] = trajectory.id[:-1] + ("0" if trajectory.id[-1] != "0" else "1")
    for operation, members in (
        ("sample", {"Body": ASK}),
        ("complete_rollout", {}),
        ("update_reward", {"Rewards": [1.0]}),
    ):
        with pytest.raises(aws.exceptions.ResourceNotFoundException, match="there is no trajectory"):
            await aws.call(operation, **members)
    assert bench.reports == []


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "ValidationException"),
        (404, "ResourceNotFoundException"),
        (429, "ThrottlingException"),
        (500, "InternalServiceError"),
    ],
)
async def test_errors_of_the_policy_are_boto3_exceptions(bench: Bench, status: int, name: str) -> None:
    bench.model.script.append(Answer(status=status, error="scripted trouble"))
    with pytest.raises(ClientError, match="scripted trouble") as raised:
        await Aws(bench, bench.open()).call("sample", Body=ASK)
    assert raised.value.response["Error"]["Code"] == name


async def test_a_policy_that_cannot_be_reached_is_not_asked_again_by_boto3() -> None:
    async with running_bench(policy_url="http://127.0.0.1:1/v1") as bench:
        trajectory = bench.open()
        aws = Aws(bench, trajectory)
        with pytest.raises(aws.exceptions.InternalServiceError, match="the policy is unavailable"):
            await aws.call("sample", Body=ASK)
        assert len(trajectory.turns) == 1


def metadata(bench: Bench, trajectory: Trajectory) -> dict[str, str]:
    return {"jobArn": JOB_ARN, "rolloutId": trajectory.id, "endpoint": bench.runtime.endpoint, "region": REGION}


async def play(rft: ModuleType, bench: Bench, trajectory: Trajectory, agent: Callable[[Json], T]) -> T:
    """Invokes an agent written with the published decorator."""
    handler = rft.sagemaker_rft_handler(agent)
    answer: T = await asyncio.to_thread(handler, {"prompt": "hi", "metadata": metadata(bench, trajectory)})
    return answer


@pytest.mark.parametrize(("returned", "rewards"), [(0.75, (0.75,)), ([0.25, 0.5], (0.25, 0.5)), (1, (1.0,))])
@pytest.mark.usefixtures("aws_environment")
async def test_the_published_handler_completes_and_rewards(
    rft: ModuleType, bench: Bench, returned: object, rewards: tuple[float, ...]
) -> None:
    await play(rft, bench, bench.open(), lambda _: {"reward": returned})
    assert [report for _, report in bench.reports] == [
        Report(ReportKind.COMPLETED),
        Report(ReportKind.REWARDED, rewards),
    ]


@pytest.mark.usefixtures("aws_environment")
async def test_the_published_handler_reports_a_failure_and_its_reward_of_zero_counts_for_nothing(
    rft: ModuleType, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await play(rft, bench, bench.open(), lambda _: {"status": "error", "error": "tool broke"})
    assert [report.kind for _, report in bench.reports] == [ReportKind.FAILED]
    assert "Failed /update-reward" not in caplog.text


@pytest.mark.usefixtures("aws_environment")
async def test_the_published_handler_stays_quiet_when_its_trajectory_is_over(rft: ModuleType, bench: Bench) -> None:
    trajectory = bench.open()

    def agent(payload: Json) -> Json:
        trajectory_headers = rft.make_inference_headers(payload["metadata"])
        token = published("sagemaker.core.token_generator").generate_token(REGION)
        with openai.OpenAI(
            base_url=f"{bench.runtime.endpoint}/v1", api_key=token, default_headers=trajectory_headers
        ) as client:
            client.chat.completions.create(model="default", messages=[{"role": "user", "content": "hi"}])
        return {"reward": 1.0}

    trajectory.close()
    assert await play(rft, bench, trajectory, agent) == {"status": "skipped", "error": ANY_CONFLICT}
    assert bench.reports == []


class _AnyConflict:
    def __eq__(self, other: object) -> bool:
        return "is not in valid status for model calls" in str(other)


ANY_CONFLICT = _AnyConflict()


@pytest.mark.usefixtures("aws_environment")
async def test_the_published_client_only_logs_a_missing_trajectory(
    rft: ModuleType, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    client = rft.RolloutFeedbackClient({**metadata(bench, bench.open()), "rolloutId": "made-up"})
    await asyncio.to_thread(client.report_complete, 1.0)
    assert "CompleteRollout 404" in caplog.text


@pytest.mark.usefixtures("aws_environment")
async def test_a_token_of_the_published_generator_opens_the_model(bench: Bench) -> None:
    trajectory = bench.open()
    token = published("sagemaker.core.token_generator").generate_token(REGION)
    answer = await post(
        bench, "/v1/chat/completions", ASK, bench.headers(trajectory) | {"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200


@pytest.mark.usefixtures("aws_environment")
async def test_an_expired_token_or_one_for_another_region_is_denied(bench: Bench) -> None:
    generator = published("sagemaker.core.token_generator")
    trajectory = bench.open()
    tokens = {
        generator.generate_token(REGION, None, timedelta(seconds=1)): "expired",
        generator.generate_token("us-east-1"): "region",
    }
    for token, why in tokens.items():
        headers = bench.headers(trajectory) | {"Authorization": f"Bearer {token}"}
        deadline = asyncio.get_running_loop().time() + 5
        while (answer := await post(bench, "/sample", ASK, headers)).status_code == 200:
            assert asyncio.get_running_loop().time() < deadline, "the token never expired, though it was taken before"
        assert answer.status_code == 403
        assert answer.headers["x-amzn-errortype"] == "AccessDeniedException"
        assert why in answer.json()["Message"]


@pytest.mark.parametrize(
    "authorization", ["", "Bearer ", "Bearer guessed", "Basic dTpw", "Bearer sagemaker-api-key-zzz", "Bearer \xe9"]
)
async def test_a_request_without_a_key_is_refused(bench: Bench, authorization: str) -> None:
    trajectory = bench.open()
    headers = bench.headers(trajectory) | {"Authorization": authorization}
    for path in ("/v1/chat/completions", "/sample", "/update-reward", "/v1/models"):
        answer = await post(bench, path, ASK, headers, method="GET" if path.endswith("models") else "POST")
        assert answer.status_code == 403
    assert (trajectory.turns, bench.model.requests, bench.reports) == ([], [], [])


async def test_another_trajectorys_url_or_a_guessed_one_opens_nothing(bench: Bench) -> None:
    ours, theirs = bench.open(), bench.open()
    path = ours.base_url.removeprefix(bench.runtime.endpoint)
    swapped = path.replace(ours.id, theirs.id)
    assert (await post(bench, f"{swapped}/chat/completions", ASK, {})).status_code == 403
    report = orjson.dumps({"TrajectoryId": theirs.id, "Rewards": [1.0]})
    assert (await post(bench, f"{path}/update-reward", report, {})).status_code == 403
    assert (await post(bench, f"{path}/update-reward", b'{"Rewards": [1.0]}', {})).status_code == 200
    assert [name for name, _ in bench.reports] == [ours.id.rpartition("-")[0]]


async def test_a_url_of_another_runtime_opens_nothing(bench: Bench) -> None:
    async with running_bench() as other:
        trajectory = other.open("p1")
        bench.open("p1")
        path = trajectory.base_url.removeprefix(other.runtime.endpoint)
        assert (await post(bench, f"{path}/chat/completions", ASK, {})).status_code == 403
        assert (await post(bench, "/sample", ASK, other.headers(trajectory))).status_code == 403


async def test_a_report_refused_by_the_engine_is_a_conflict(bench: Bench) -> None:
    def refuse(report: Report) -> None:
        raise ReportRefused("the rollout is decided: it timed out")

    aws = Aws(bench, bench.open(on_report=refuse))
    with pytest.raises(aws.exceptions.ConflictException, match="the rollout is decided: it timed out"):
        await aws.call("update_reward", Rewards=[1.0])


async def post(
    bench: Bench, path: str, body: bytes, headers: dict[str, str], *, method: str = "POST"
) -> requests.Response:
    """Sends a request as given."""
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    return await asyncio.to_thread(
        requests.request, method, bench.runtime.endpoint + path, data=body, headers=encoded, timeout=10
    )
