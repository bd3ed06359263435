"""An account in AWS for tests: a server of its protocols with two models, and evaluators of Heldout that run there."""

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
DEADLINE_SECONDS = 180.0
BUCKETS = '[buckets."my-bucket"]\nfolder = "bucket"\n'


class Cloud(NamedTuple):
    """A server with two models, the base's saying "no" and the tuned one's "yes"."""

    url: str
    folder: Path
    buckets: str
    """A registry that maps nothing but the bucket."""
    everything: str
    """The server's registry, for an evaluation on this machine."""


@contextmanager
def cloud_in(folder: Path) -> Iterator[Cloud]:
    """The server, with its files in this folder; while inside, what asks AWS asks it."""
    write_prompts(folder / "bucket" / "prompts.jsonl", range(8))
    (folder / "buckets.toml").write_text(BUCKETS)
    with (
        pytest.MonkeyPatch.context() as patch,
        model_server(folder, "no", "base") as base,
        model_server(folder, "yes", "tuned") as tuned,
        served(folder / "server", registry_of(folder, base, tuned, AGENT)) as server,
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
    """What stands between SageMaker's client and the server, while inside."""
    with pytest.MonkeyPatch.context() as patch, middle(cloud.url) as made:
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", made.url)
        yield made


def write_prompts(path: Path, prompts: Iterable[object]) -> None:
    """A dataset of these prompts, as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": str(prompt)}) + "\n" for prompt in prompts))


@functools.lru_cache(maxsize=1)
def session() -> boto3.Session:
    """One for all: the models of the services are read once."""
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
    """The job documents of a pipeline definition, by step."""
    steps = [step for step in json.loads(definition)["Steps"] if step["Type"] == "Job"]
    return {step["Name"]: json.loads(step["Arguments"]["JobConfigDocument"]) for step in steps}
