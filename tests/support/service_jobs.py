"""AWS jobs for tests of the service, with a registry that maps their names to a scripted model and agents."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from botocore.exceptions import ClientError

from heldout.job.document import JobConfigDocument
from heldout.job.registry import Registry
from heldout.pipeline.definition import EvaluationJobs, Surroundings, render
from heldout.runs.run import Run
from tests.support.jobs import PLAYERS
from tests.support.live_service import REGION, ROLE
from tests.support.model_servers import model_server

CATEGORY = "AgentRFTEvaluation"
AGENT = f"arn:aws:bedrock-agentcore:{REGION}:123456789012:runtime/player-0123456789"
SLOW_AGENT = f"arn:aws:bedrock-agentcore:{REGION}:123456789012:runtime/slow-0123456789"
MODEL = f"arn:aws:sagemaker:{REGION}:aws:hub-content/SageMakerPublicHub/Model/scripted/1.0.0"
DEADLINE_SECONDS = 60.0
REGISTRY_FILE = "registry.toml"
T = TypeVar("T")


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """A registry of the model, the agents and the bucket `bucket` (`folder`/bucket). Also written to `folder`/REGISTRY_FILE."""
    with model_server(folder) as model:
        text = f"""
            [models."scripted"]
            endpoint = "{model}"
            [agents."{AGENT}"]
            agent = "{PLAYERS}:play"
            [agents."{SLOW_AGENT}"]
            agent = "{PLAYERS}:slow"
            [buckets."bucket"]
            folder = "bucket"
        """
        (folder / REGISTRY_FILE).write_text(text)
        yield Registry.parse(text, where="test", folder=folder)


def document(folder: Path, prompts: Sequence[str], *, agent: str = AGENT, **hyperparameters: Any) -> dict[str, Any]:
    """A job document in the developer guide's form, with its prompts in the bucket below `folder`."""
    name = f"prompts-{abs(hash(tuple(prompts)))}.jsonl"
    (folder / "bucket").mkdir(exist_ok=True)
    (folder / "bucket" / name).write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://bucket/{name}"}}
    return {
        "AgentConfig": {"BedrockAgentCoreConfig": {"AgentRuntimeArn": agent}},
        "InputDataConfig": [{"ChannelName": "evaluation", "DataSource": source}],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/output/"},
        "EvaluationConfig": {"BaseModelArn": MODEL, "AcceptEula": True, "HyperParameters": hyperparameters},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }


def definition(*documents: dict[str, Any]) -> str:
    """A pipeline definition of one job, or of a base model's and a fine-tuned model's job."""
    jobs = [JobConfigDocument.parse(json.dumps(each)) for each in documents]
    around = Surroundings(REGION, "000000000000", ROLE, "pipeline")
    return json.dumps(render(EvaluationJobs(jobs[0], jobs[1] if len(jobs) > 1 else None), around))


def create(client: Any, name: str, given: dict[str, Any], **changes: Any) -> str:
    """Creates a job and returns its ARN."""
    asked = {
        "JobName": name,
        "RoleArn": ROLE,
        "JobCategory": CATEGORY,
        "JobConfigSchemaVersion": "1.0.0",
        "JobConfigDocument": json.dumps(given),
    }
    return str(client.create_job(**asked | changes)["JobArn"])


def describe(client: Any, name: str) -> dict[str, Any]:
    return dict(client.describe_job(JobName=name, JobCategory=CATEGORY))


def ended(client: Any, name: str) -> dict[str, Any]:
    """The job's description once it has ended."""
    return until(lambda: describe(client, name), lambda job: job["JobStatus"] not in ("InProgress", "Stopping"))


def execution_ended(client: Any, arn: str) -> dict[str, Any]:
    """The execution's description once it has ended."""
    return until(
        lambda: dict(client.describe_pipeline_execution(PipelineExecutionArn=arn)),
        lambda found: found["PipelineExecutionStatus"] not in ("Executing", "Stopping"),
    )


def until(look: Callable[[], T], is_it: Callable[[T], bool]) -> T:
    """Calls `look` until its value passes `is_it`, and returns the value."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_it(found := look()):
        assert time.monotonic() < deadline, f"not in {DEADLINE_SECONDS} seconds: {found}"
        time.sleep(0.05)
    return found


def run_of(folder: Path, name: str, run: str = "base-model-eval") -> Run:
    """The run in the bucket of a job, or of an execution's evaluation, with this name."""
    return Run.open(folder / "bucket" / "output" / name / run)


def refused(call: Any, **params: Any) -> tuple[str, str]:
    """Code and message of the error that a call raises."""
    with pytest.raises(ClientError) as caught:
        call(**params)
    reply: Any = caught.value.response
    return reply["Error"]["Code"], reply["Error"]["Message"]
