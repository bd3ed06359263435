"""An AWS account for tests: a live service with two models, and evaluators that use it."""

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from heldout import Execution, MultiTurnRLEvaluator
from tests.support.agents_support import AGENTS
from tests.support.intercepting_proxy import Middle, middle
from tests.support.live_service import KEYS, REGION, ROLE, served
from tests.support.model_servers import model_server
from tests.support.s3_service import forget_aws
from tests.support.service_registry import MODEL, RUNTIME, registry_of, registry_text

AGENT = f"{AGENTS / 'agreeing.py'}:play"
OUTPUT = "s3://my-bucket/out"
HELD = "arn:aws:lambda:us-west-2:123456789012:function:held"
"""A function that plays a prompt until the file that the prompt names exists."""
HELD_ENTRY = f'[agents."{HELD}"]\nagent = "{AGENTS / "agreeing.py"}:until_released"\n'
DEADLINE_SECONDS = 180.0
BUCKETS = '[buckets."my-bucket"]\nfolder = "bucket"\n'


class Cloud(NamedTuple):
    """A server with two models: the base model replies "no", the tuned model "yes"."""

    url: str
    folder: Path
    buckets: str
    """Path of a registry file that maps only the bucket."""
    everything: str
    """Path of the server's registry file, for an evaluation on this machine."""


@contextmanager
def cloud_in(folder: Path) -> Iterator[Cloud]:
    """Runs the server with its files in `folder`. In the block, AWS clients connect to it."""
    write_prompts(folder / "bucket" / "prompts.jsonl", range(8))
    (folder / "buckets.toml").write_text(BUCKETS)
    with (
        pytest.MonkeyPatch.context() as patch,
        model_server(folder, "no", "base") as base,
        model_server(folder, "yes", "tuned") as tuned,
        served(folder / "server", registry_of(folder, base, tuned, AGENT, HELD_ENTRY)) as server,
    ):
        forget_aws(patch)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("HELDOUT_REGISTRY", str(folder / "buckets.toml"))
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS.secret_key)
        patch.setenv("AWS_REGION", REGION)
        (folder / "everything.toml").write_text(registry_text(base, tuned, AGENT))
        yield Cloud(server.url, folder, str(folder / "buckets.toml"), str(folder / "everything.toml"))


@contextmanager
def between_sagemaker_and(cloud: Cloud) -> Iterator[Middle]:
    """Puts an intercepting proxy between SageMaker clients and the server in the block."""
    with pytest.MonkeyPatch.context() as patch, middle(cloud.url) as made:
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", made.url)
        yield made


def write_prompts(path: Path, prompts: Iterable[object]) -> None:
    """Writes a dataset of these prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": str(prompt)}) + "\n" for prompt in prompts))


@functools.lru_cache(maxsize=1)
def session() -> boto3.Session:
    """One shared session, so that botocore reads each service's model once."""
    return boto3.Session()


def evaluator(**fields: Any) -> MultiTurnRLEvaluator:
    given: dict[str, Any] = {
        "sagemaker_session": session(),
        "model": MODEL,
        "agent_config": RUNTIME,
        "dataset": "s3://my-bucket/prompts.jsonl",
        "s3_output_path": OUTPUT,
        "mlflow_resource_arn": "off",
        "role": ROLE,
    }
    return MultiTurnRLEvaluator(**given | fields)


def wait(execution: Execution) -> None:
    execution.wait(poll=0.2, timeout=DEADLINE_SECONDS)


def documents(definition: str) -> dict[str, dict[str, Any]]:
    """The job documents of a pipeline definition by step name."""
    steps = [step for step in json.loads(definition)["Steps"] if step["Type"] == "Job"]
    return {step["Name"]: json.loads(step["Arguments"]["JobConfigDocument"]) for step in steps}
