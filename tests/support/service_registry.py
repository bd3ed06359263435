"""A registry for tests: AWS names of models, packages, agents and a bucket, mapped to local ones."""

from pathlib import Path

from heldout.job.registry import Registry
from tests.support.jobs import PLAYERS

MODEL = "openai-reasoning-gpt-oss-20b"
GROUP_ARN = "arn:aws:sagemaker:us-west-2:123456789012:model-package-group/tuned"
PACKAGE = "arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"
RUNTIME = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/players-a1b2c3d4e5"
FUNCTION = "arn:aws:lambda:us-west-2:123456789012:function:forward"
BUCKET = "my-bucket"
NOWHERE = "http://127.0.0.1:9/v1#scripted"


def registry_of(
    folder: Path, model: str = NOWHERE, tuned: str = NOWHERE, agent: str = f"{PLAYERS}:play", more: str = ""
) -> Registry:
    """The registry; `s3://my-bucket` is `folder`/bucket."""
    return Registry.parse(registry_text(model, tuned, agent) + more, where="registry", folder=folder)


def registry_text(model: str, tuned: str, agent: str = f"{PLAYERS}:play") -> str:
    """The text of the registry file. model, tuned: `http://...#name`."""
    return f"""
[models."{MODEL}"]
endpoint = "{model}"
[model-packages."{PACKAGE}"]
endpoint = "{tuned}"
base-model = "{MODEL}"
[agents."{RUNTIME}"]
agent = "{agent}"
[agents."{FUNCTION}"]
agent = "{agent}"
[buckets."{BUCKET}"]
folder = "bucket"
"""
