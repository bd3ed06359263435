"""Agents in AWS, called with boto3 over HTTP: AgentCore runtimes and Lambda functions, alone and as the agent of a job."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiohttp import web
from botocore.exceptions import ClientError

import tests.support.scripted_agents as players
from heldout import MultiTurnRLEvaluator
from heldout.agents.agentcore import AgentCoreAgent
from heldout.agents.aws import retried
from heldout.agents.aws_lambda import LambdaForwarder
from heldout.agents.base import Agent, Outcome
from heldout.backends.local.job import play_rollouts
from heldout.backends.local.runtime_address import Exposure, exposure_of
from heldout.errors import ReferenceProblem
from heldout.job.document import (
    AgentConfig,
    DataSource,
    EvaluationConfig,
    InputChannel,
    JobConfigDocument,
    OutputDataConfig,
)
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.kinds.agentcore import AgentCoreRuntime
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.entry_point import EntryPoint
from heldout.job.kinds.http_agent import AgentContainer
from heldout.job.kinds.lambda_function import LambdaAgent
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.runs.run import Run
from tests.support.agents_support import attempt, until
from tests.support.aws_agents import LAMBDA_ARN, RUNTIME_ARN, aws_agents, free_port
from tests.support.jobs import rows, write_prompts
from tests.support.s3_service import forget_aws

KINDS = [AgentCoreRuntime(RUNTIME_ARN, "PROD"), LambdaAgent(LAMBDA_ARN)]
AwsReference = AgentCoreRuntime | LambdaAgent


def agent_of(reference: AwsReference) -> Agent:
    if isinstance(reference, LambdaAgent):
        return LambdaForwarder(reference, concurrency=8, timeout_seconds=30)
    return AgentCoreAgent(reference, concurrency=8, timeout_seconds=30)


@asynccontextmanager
async def started(reference: AwsReference) -> AsyncIterator[Agent]:
    agent = agent_of(reference)
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()


@pytest.fixture(params=KINDS, ids=["agentcore", "lambda"])
def reference(request: pytest.FixtureRequest) -> AwsReference:
    assert isinstance(request.param, AgentCoreRuntime | LambdaAgent)
    return request.param


async def test_the_agents_answer_is_the_rollouts(reference: AwsReference, monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch), started(reference) as agent:
        result = await agent.invoke(attempt('say {"reward": 0.5}'))
    assert (result.outcome, result.body) == (Outcome.RETURNED, {"reward": 0.5})


async def test_an_agentcore_attempt_has_a_session_of_its_own_at_the_qualifier(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch) as aws, started(AgentCoreRuntime(RUNTIME_ARN, "PROD")) as agent:
        first, second = attempt("one"), attempt("two")
        await agent.invoke(first)
        await agent.invoke(second)
    assert aws.sessions == [first.trajectory_id, second.trajectory_id]
    assert [query["qualifier"] for query in aws.queries] == ["PROD", "PROD"]


async def test_without_a_qualifier_it_is_the_default_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch) as aws, started(AgentCoreRuntime(RUNTIME_ARN)) as agent:
        await agent.invoke(attempt("one"))
    assert aws.queries == [{"qualifier": "DEFAULT"}]


async def test_the_last_event_of_a_stream_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch), started(AgentCoreRuntime(RUNTIME_ARN)) as agent:
        result = await agent.invoke(attempt('stream {"turn": 1}|{"reward": 1.0}'))
    assert (result.outcome, result.body) == (Outcome.RETURNED, {"reward": 1.0})


@pytest.mark.parametrize("code", ["ThrottlingException", "TooManyRequestsException", "ServiceUnavailable"])
async def test_throttling_is_waited_out(reference: AwsReference, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch) as aws, started(reference) as agent:
        result = await agent.invoke(attempt(f"busy {code}"))
    assert (result.outcome, aws.tries[f"busy {code}"]) == (Outcome.RETURNED, 3)


@pytest.mark.parametrize(
    "code", ["AccessDeniedException 403", "ValidationException 400", "ResourceNotFoundException 404"]
)
async def test_a_refusal_names_itself_and_is_not_repeated(
    reference: AwsReference, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aws_agents(monkeypatch) as aws, started(reference) as agent:
        result = await agent.invoke(attempt(f"refuse {code}"))
    assert (result.outcome, aws.tries.total()) == (Outcome.UNREACHABLE, 1)
    assert code.split()[0] in result.message
    assert "no, because" in result.message
    assert (RUNTIME_ARN in result.message) or (LAMBDA_ARN in result.message)


async def test_an_error_of_the_agent_itself_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch) as aws, started(AgentCoreRuntime(RUNTIME_ARN)) as agent:
        result = await agent.invoke(attempt("refuse RuntimeClientError 424"))
    assert (result.outcome, result.message, aws.tries.total()) == (Outcome.RAISED, "no, because", 1)


async def test_a_failed_function_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch) as aws, started(LambdaAgent(LAMBDA_ARN)) as agent:
        result = await agent.invoke(attempt("fail"))
    assert (result.outcome, result.message) == (Outcome.RAISED, "the function failed: KeyError: 'prompt'")
    assert aws.functions == [LAMBDA_ARN]


async def test_an_attempt_that_takes_too_long_is_abandoned_and_its_session_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with aws_agents(monkeypatch) as aws, started(AgentCoreRuntime(RUNTIME_ARN)) as agent:
        hanging = attempt("hang", timeout_seconds=0.2)
        result = await agent.invoke(hanging)
        await until(lambda: aws.stopped == [hanging.trajectory_id])
    assert (result.outcome, result.message) == (Outcome.TIMED_OUT, "no answer within 0.2 s")


async def test_an_abandoned_attempt_ends_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_agents(monkeypatch) as aws, started(AgentCoreRuntime(RUNTIME_ARN)) as agent:
        hanging = attempt("hang")
        playing = asyncio.create_task(agent.invoke(hanging))
        await until(lambda: aws.tries.total() == 1)
        playing.cancel()
        await until(lambda: aws.stopped == [hanging.trajectory_id])


async def test_as_many_attempts_play_at_once_as_the_job_wants(
    reference: AwsReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = asyncio.Barrier(8)

    async def answer(_: dict[str, Any]) -> web.StreamResponse:
        await together.wait()  # nobody is answered before all eight have asked
        return web.json_response({})

    async with aws_agents(monkeypatch, answer), started(reference) as agent:
        results = await asyncio.gather(*(agent.invoke(attempt(f"{number}")) for number in range(8)))
    assert [result.outcome for result in results] == [Outcome.RETURNED] * 8


async def test_missing_credentials_are_reported_before_anything_is_played(
    reference: AwsReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_aws(monkeypatch)
    with pytest.raises(ReferenceProblem, match="no AWS credentials to invoke agent"):
        await agent_of(reference).start()


def document(
    folder: Path, url: str, reference: AwsReference, *prompts: str, **hyperparameters: Any
) -> JobConfigDocument:
    return JobConfigDocument(
        agent_config=AgentConfig(agent=reference, runtime_url=f"http://127.0.0.1:{free_port()}"),
        input_data_config=(InputChannel(data_source=DataSource.of(str(write_prompts(folder, prompts)))),),
        output_data_config=OutputDataConfig.at(str(folder)),
        evaluation_config=EvaluationConfig.of(
            EndpointModel((url,), "scripted"), Hyperparameters(hyperparameters), accept_eula=True
        ),
    )


SCORED = 'say {"reward": 1}'
"""A prompt that is scored: a run without one has no results."""


async def played(folder: Path, reference: AwsReference, *prompts: str, **hyperparameters: Any) -> Run:
    async with ScriptedServer() as server:
        run = Run.create(
            folder / "run",
            name="test",
            run_name="base-model-eval",
            region="us-west-2",
            document=document(folder, server.url, reference, *prompts, **hyperparameters),
        )
        await play_rollouts(run, PlayContext())
    return run


async def test_a_job_plays_an_agent_in_agentcore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(payload: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(players.play, payload))

    async with aws_agents(monkeypatch, answer):
        run = await played(tmp_path, AgentCoreRuntime(RUNTIME_ARN), "1.0", "turns 2", "0.0")
    assert [(row["reward"], row["turns"]) for row in rows(run)] == [(1.0, 1), (1.0, 2), (0.0, 1)]


async def test_a_lambda_accepts_and_the_agent_behind_it_reports_with_credentials_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(payload: dict[str, Any]) -> web.StreamResponse:
        threading.Thread(target=report_later, args=(payload,)).start()
        return web.json_response({})

    async with aws_agents(monkeypatch, answer):
        run = await played(tmp_path, LambdaAgent(LAMBDA_ARN), "0.25", "0.75", rollout_timeout=20, rollout_max_retries=0)
    assert [(row["reward"], row["turns"]) for row in rows(run)] == [(0.25, 1), (0.75, 1)]


def report_later(payload: dict[str, Any]) -> None:
    """As an agent in AWS does it: with a boto3 client that is signed in as a role nobody here knows."""
    metadata = payload["metadata"]
    client = boto3.client(
        "sagemakerjobruntime",
        region_name="eu-west-1",
        endpoint_url=metadata["endpoint"],
        aws_access_key_id="a-role-of-the-agent",
        aws_secret_access_key="its-secret",
    )
    chat = {"model": "default", "messages": [{"role": "user", "content": "hello"}]}
    ids = {"JobArn": metadata["jobArn"], "TrajectoryId": metadata["rolloutId"]}
    client.sample(Body=json.dumps(chat).encode(), **ids)
    client.complete_rollout(**ids)
    client.update_reward(Rewards=[float(payload["prompt"])], **ids)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"errorType": "AccessDenied", "errorMessage": "not yours"}, "AccessDenied: not yours"),
        ({"status": "error", "error": "no such game"}, "no such game"),
    ],
)
async def test_a_forwarder_that_answers_an_error_fails_the_rollout(
    answer: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aws_agents(monkeypatch):
        prompt = f"say {json.dumps(answer)}"
        run = await played(tmp_path, LambdaAgent(LAMBDA_ARN), prompt, SCORED, rollout_max_retries=0)
    row, _ = rows(run)
    assert (row["status"], reason in row["error"]) == ("failed", True)


async def test_a_report_that_never_comes_is_waited_for_until_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aws_agents(monkeypatch):
        settings = {"rollout_timeout": 1, "rollout_max_retries": 0}
        run = await played(tmp_path, LambdaAgent(LAMBDA_ARN), "say {}", SCORED, **settings)
    row, _ = rows(run)
    assert row["error"].endswith("no reward was reported within 1 s of the invocation")


def test_an_agent_in_aws_without_a_url_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HELDOUT_RUNTIME_URL", raising=False)
    evaluator = MultiTurnRLEvaluator(
        model="http://127.0.0.1:9/v1#m",
        agent_config=RUNTIME_ARN,
        dataset=str(write_prompts(tmp_path, ["1"])),
        s3_output_path=str(tmp_path / "out"),
    )
    with pytest.raises(ReferenceProblem, match=r"has to reach the Job Runtime on this machine: .*--runtime-url URL"):
        evaluator.evaluate()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("url", "listen", "expected"),
    [
        ("http://10.0.0.5:9000", None, ("0.0.0.0", 9000)),
        ("https://abc.tunnel.example", None, ("127.0.0.1", 8700)),
        ("https://abc.tunnel.example/job", "0.0.0.0:81", ("0.0.0.0", 81)),
        ("https://abc.tunnel.example:8443", "127.0.0.1:9001", ("127.0.0.1", 9001)),
    ],
)
def test_the_url_of_the_job_runtime_decides_where_it_listens(
    url: str, listen: str | None, expected: tuple[str, int]
) -> None:
    environment = {"HELDOUT_RUNTIME_URL": url} | ({} if listen is None else {"HELDOUT_RUNTIME_LISTEN": listen})
    for reference in (AgentCoreRuntime(RUNTIME_ARN), LambdaAgent(LAMBDA_ARN), AgentContainer("http://agents:8080")):
        assert exposure_of(AgentConfig(agent=reference), environment) == Exposure(*expected, url)


def test_the_runtime_of_a_local_agent_listens_on_loopback_only() -> None:
    given = AgentConfig(agent=EntryPoint("agent.py:play"), runtime_url="http://10.0.0.5:9000")
    assert exposure_of(given, {}) == exposure_of(AgentConfig(agent=AgentContainer("http://agents:8080")), {})
    assert exposure_of(given, {}) == Exposure("127.0.0.1", 0, None)


@pytest.mark.parametrize(
    "url", ["ftp://host", "host:8700", "http://", "http://host:0", "http://[::1", "http://host?key=1"]
)
def test_an_invalid_runtime_url_is_named(url: str) -> None:
    with pytest.raises(ReferenceProblem, match="is not an address; expected https://host"):
        exposure_of(AgentConfig(agent=LambdaAgent(LAMBDA_ARN)), {"HELDOUT_RUNTIME_URL": url})


@pytest.mark.parametrize("asked", ["2", formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"])
async def test_a_throttled_call_to_aws_is_retried_after_the_given_wait(asked: str) -> None:
    waits: list[float] = []
    busy: Any = {"Error": {"Code": "ThrottlingException"}, "ResponseMetadata": {"HTTPHeaders": {"retry-after": asked}}}

    def call() -> str:
        if not waits:
            raise ClientError(busy, "Invoke")
        return "answered"

    async def note(seconds: float) -> None:
        waits.append(seconds)

    assert await retried(call, doing="Invoke", sleep=note) == "answered"
    assert len(waits) == 1
    assert waits[0] <= 2


@pytest.mark.parametrize("listen", ["x", ":x", "host:70000", "host:0", "host:8\N{SUPERSCRIPT TWO}"])
def test_an_invalid_listening_address_is_named(listen: str) -> None:
    environment = {"HELDOUT_RUNTIME_URL": "http://host", "HELDOUT_RUNTIME_LISTEN": listen}
    with pytest.raises(ReferenceProblem, match=r"HELDOUT_RUNTIME_LISTEN is .*expected host:port"):
        exposure_of(AgentConfig(agent=LambdaAgent(LAMBDA_ARN)), environment)


async def test_a_port_in_use_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("HELDOUT_RUNTIME_LISTEN", f"127.0.0.1:{taken.getsockname()[1]}")
        async with aws_agents(monkeypatch):
            with pytest.raises(ReferenceProblem, match=r"the Job Runtime cannot listen on .*another evaluation may be"):
                await played(tmp_path, LambdaAgent(LAMBDA_ARN), "1")
