"""The Job Runtime at the server's own address, used by AWS clients that know no other."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from heldout.job.records import Boundary
from heldout.runs.run import Run
from heldout.runtime.signing import Credentials
from tests.support.jobs import rows, write_prompts
from tests.support.live_service import ROLE, Served, served
from tests.support.model_servers import model_server
from tests.support.service_jobs import refused, until
from tests.support.service_registry import BUCKET, MODEL, RUNTIME, registry_of

PROMPTS = ("1", "0.5", "0")
BOTO3_AGENT = """
import json

import boto3

def play(payload):
    metadata = payload["metadata"]
    runtime = boto3.client("sagemakerjobruntime", endpoint_url=URL, region_name=metadata["region"])
    of = {"JobArn": metadata["jobArn"], "TrajectoryId": metadata["rolloutId"]}
    chat = {"model": "default", "messages": [{"role": "user", "content": payload["prompt"]}]}
    said = json.loads(runtime.sample(**of, Body=json.dumps(chat))["Body"].read())["choices"][0]["message"]["content"]
    streamed = runtime.sample_with_response_stream(**of, Body=json.dumps(chat | {"stream": True}))["Body"].read()
    assert said == "the reply", said
    assert streamed.startswith(b"data:"), streamed
    runtime.complete_rollout(**of, ClientToken="a")
    runtime.update_reward(**of, Rewards=[float(payload["prompt"])], ClientToken="b")
    return {}
"""
SDK_AGENT = """
import rft_handler_agent

async def play(payload):
    payload["metadata"]["endpoint"] = URL
    return await rft_handler_agent.invoke(payload)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("runtime")
    with (
        model_server(folder, "the reply") as model,
        served(folder / "state", registry_of(folder, model, agent="agent.py:play")) as running,
    ):
        yield running


def named(name: str) -> dict[str, str]:
    return {"JobName": name, "JobCategory": "AgentRFTEvaluation"}


def begun(server: Served, agent: str, prompts: tuple[str, ...], name: str) -> str:
    """The ARN of a new job of this agent. `URL` in the agent is the server's."""
    folder = server.context.state.parent
    (folder / "agent.py").write_text(f"URL = {server.url!r}\n{agent}")
    write_prompts(folder / "bucket" / name, prompts)
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/{name}/prompts.jsonl"}}
    document = {
        "AgentConfig": {"BedrockAgentCoreConfig": {"AgentRuntimeArn": RUNTIME}},
        "InputDataConfig": [{"ChannelName": "evaluation", "DataSource": data}],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/output"},
        "EvaluationConfig": {
            "BaseModelArn": MODEL,
            "AcceptEula": True,
            "HyperParameters": {"rollout": {"max_retries": 0}},
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }
    arn: str = server.client("sagemaker").create_job(
        **named(name), RoleArn=ROLE, JobConfigSchemaVersion="1.0.0", JobConfigDocument=json.dumps(document)
    )["JobArn"]
    return arn


def played(server: Served, agent: str, prompts: tuple[str, ...], name: str) -> str:
    """The ARN of a job that has been played to its end."""
    arn = begun(server, agent, prompts, name)
    wait_until_completed(server, name)
    return arn


def wait_until_completed(server: Served, name: str) -> None:
    sagemaker = server.client("sagemaker")
    deadline = time.monotonic() + 120
    while (status := sagemaker.describe_job(**named(name))["JobStatus"]) == "InProgress":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status == "Completed"


@pytest.fixture(scope="module")
def job(server: Served) -> str:
    return played(server, BOTO3_AGENT, PROMPTS, "with-boto3")


def run_of(server: Served, name: str) -> Run:
    return Run.open(server.context.state.parent / "bucket" / "output" / name / "base-model-eval")


def test_an_agent_reaches_the_model_and_reports_at_the_server_with_boto3(server: Served, job: str) -> None:
    played = rows(run_of(server, "with-boto3"))
    assert [row["error"] for row in played] == [None] * 3
    assert [(row["reward"], row["turns"]) for row in played] == [(1.0, 2), (0.5, 2), (0.0, 2)]


def test_reports_on_an_ended_job_are_a_conflict_with_the_text_that_clients_match(server: Served, job: str) -> None:
    runtime = server.client("sagemakerjobruntime")
    with pytest.raises(runtime.exceptions.ConflictException, match="not in valid status"):
        runtime.update_reward(JobArn=job, TrajectoryId="some-trajectory", Rewards=[1.0])
    with pytest.raises(runtime.exceptions.ResourceNotFoundException, match="has no Job Runtime now"):
        runtime.sample(JobArn=job, TrajectoryId="some-trajectory", Body=b"{}")


def test_an_unknown_job_is_not_found_and_a_request_without_a_job_is_invalid(server: Served, job: str) -> None:
    runtime = server.client("sagemakerjobruntime")
    with pytest.raises(runtime.exceptions.ResourceNotFoundException, match="there is no job"):
        runtime.complete_rollout(JobArn=f"{job}-2", TrajectoryId="some-trajectory")
    reply = requests.post(f"{server.url}/v1/chat/completions", json={})
    assert (reply.status_code, reply.headers["x-amzn-errortype"]) == (400, "ValidationException")
    assert "X-Amzn-SageMaker-Job-Arn" in reply.json()["Message"]


WAITING_AGENT = """
import pathlib
import time

def play(payload):
    while not pathlib.Path(__file__).with_name("may-end").exists():
        time.sleep(0.05)
    return {"reward": 1.0}
"""


def test_an_unauthenticated_caller_cannot_learn_which_jobs_exist(server: Served, job: str) -> None:
    playing = begun(server, WAITING_AGENT, ("1",), "playing")
    run = server.context.state.parent / "bucket" / "output" / "playing" / "base-model-eval"
    until(lambda: (run / "runtime-address").exists(), bool)
    target = {"TrajectoryId": "some-trajectory"}

    def answers(arn: str) -> list[tuple[int, bytes, set[str]]]:
        """To model calls and reports by callers without a proof, with a made-up one and with a wrong one."""
        of = {"X-Amzn-SageMaker-Job-Arn": arn}
        replies = [requests.get(f"{server.url}/v1/models", headers=of)]
        for headers in ({}, {"Authorization": "Bearer made-up"}, {"Authorization": "Bearer sagemaker-api-key-made-up"}):
            replies.append(requests.post(f"{server.url}/v1/chat/completions", json={}, headers=of | headers))
            replies.append(
                requests.post(f"{server.url}/complete-rollout", json=target | {"JobArn": arn}, headers=headers)
            )
        return [(reply.status_code, reply.content, set(reply.headers)) for reply in replies]

    def signed_wrongly(arn: str) -> tuple[str, str]:
        other = server.client("sagemakerjobruntime", Credentials("AKIDOTHER", "another/secret"))
        return refused(other.complete_rollout, JobArn=arn, TrajectoryId="some-trajectory")

    told, told_signed = answers(playing), signed_wrongly(playing)
    (server.context.state.parent / "may-end").touch()
    wait_until_completed(server, "playing")
    assert {status for status, _, _ in told} == {403}
    assert told_signed[0] == "AccessDeniedException"
    for arn in (job, f"{job}-2"):
        assert answers(arn) == told
        assert signed_wrongly(arn) == told_signed


@pytest.mark.slow
def test_an_agent_on_the_published_handler_authenticates_with_bearer_tokens(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support" / "agents"))
    played(server, SDK_AGENT, ("say: reply", "raise", "say: other"), "with-tokens")
    ended = rows(run_of(server, "with-tokens"))
    assert [row["reward"] for row in ended] == [1.0, None, 0.0]
    assert [row["status"] for row in ended] == ["scored", "failed", "scored"]
    assert Boundary.AGENT in ended[1]["error"]
