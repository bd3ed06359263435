"""Checks before the start: dataset, agent, model package group and MLflow app exist, and tags are valid.

Only a definite "does not exist" is an error. The user may lack permissions that the execution role has, and an
endpoint may not serve every operation: the job itself reports what could not be checked.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from heldout.backends.sagemaker.account import Account, is_absent, pages, translated_errors
from heldout.errors import InputError, ReferenceProblem, shown
from heldout.job.kinds.agentcore import AgentCoreRuntime
from heldout.job.kinds.base import AgentReference
from heldout.job.kinds.lambda_function import LambdaAgent
from heldout.pipeline.places import Dataset, S3Place

_DATASET_ARN = re.compile(r".*:hub-content/(?P<hub>[^/]+)/DataSet/(?P<name>[^/]+)(?:/(?P<version>[\d.]+))?")

_MOST_TAGS = 50


def check_dataset(account: Account, dataset: Dataset) -> None:
    """Raises ReferenceProblem for an `s3://` URI without objects, and for a DataSet that does not exist."""
    if isinstance(dataset, S3Place):
        _check_objects(account, dataset)
        return
    found = _DATASET_ARN.fullmatch(str(dataset))
    if found is not None:
        version = {"HubContentVersion": found["version"]} if found["version"] else {}
        _refuse_if_absent(
            lambda: account.sagemaker.describe_hub_content(
                HubName=found["hub"], HubContentType="DataSet", HubContentName=found["name"], **version
            ),
            f"dataset {str(dataset)!r} is not in hub {found['hub']!r} in {account.region}",
        )


def check_agent(account: Account, agent: AgentReference) -> None:
    """Raises ReferenceProblem for an AgentCore runtime or a Lambda function that does not exist in the session's region."""
    if isinstance(agent, AgentCoreRuntime | LambdaAgent) and agent.arn.split(":")[3] != account.region:
        return  # the session looks in its own region only
    if isinstance(agent, LambdaAgent):
        _refuse_if_absent(
            lambda: account.client("lambda", is_glance=True).invoke(FunctionName=agent.arn, InvocationType="DryRun"),
            f"agent {agent.arn!r} does not exist in {account.region}",
        )
    if isinstance(agent, AgentCoreRuntime):
        _refuse_if_absent(
            lambda: account.client("bedrock-agentcore-control", is_glance=True).get_agent_runtime(
                agentRuntimeId=agent.arn.rpartition("/")[2]
            ),
            f"agent {agent.arn!r} does not exist in {account.region}; list_bedrock_agentcore_runtimes() names those that do",
        )


def check_tags(tags: Sequence[tuple[str, str]]) -> None:
    """Raises InputError for tags that a job does not accept. Source: the shape `TagList` of botocore 1.43's model of
    SageMaker."""
    if len(tags) > _MOST_TAGS:
        raise InputError(f"'tags' has {len(tags)} tags; a job has {_MOST_TAGS} at most")
    seen = set[str]()
    for key, value in tags:
        if key in seen:
            raise InputError(f"'tags' has the key {key!r} twice; give it one value")
        seen.add(key)
        for text, most in ((key, 128), (value, 256)):
            if len(text) > most or not all(map(_is_of_tags, text)):
                raise InputError(
                    f"'tags' holds {shown(text)}; it must be up to {most} letters, digits, spaces and _.:/=+-@"
                )
        if not key or key.lower().startswith("aws:"):
            raise InputError(f"'tags' has the key {key!r}; it must have a character, and not begin with 'aws:'")


def check_group(account: Account, group: str) -> None:
    """Raises ReferenceProblem for a model package group that does not exist."""
    _refuse_if_absent(
        lambda: account.sagemaker.describe_model_package_group(ModelPackageGroupName=group),
        f"model package group {group!r} does not exist in {account.region}",
    )


def check_mlflow(account: Account, arn: str) -> None:
    """Raises ReferenceProblem for an MLflow app that does not exist."""
    if ":mlflow-app/" in arn:
        _refuse_if_absent(
            lambda: account.sagemaker.describe_mlflow_app(Arn=arn),
            f"MLflow app {arn!r} does not exist in {account.region}",
        )


def agentcore_runtimes(account: Account) -> list[dict[str, str]]:
    """`name`, `runtime_id`, `arn` and `status` of every AgentCore runtime in the account. Raises CloudError."""
    with translated_errors("the account's AgentCore runtimes"):
        client = account.client("bedrock-agentcore-control")
        return [
            {
                "name": runtime.get("agentRuntimeName", ""),
                "runtime_id": runtime.get("agentRuntimeId", ""),
                "arn": runtime["agentRuntimeArn"],
                "status": runtime.get("status", ""),
            }
            for page in pages(client.list_agent_runtimes, token="nextToken")
            for runtime in page["agentRuntimes"]
        ]


def _check_objects(account: Account, place: S3Place) -> None:
    bucket, _, key = place.uri.removeprefix("s3://").partition("/")
    absent = f"dataset {place.uri!r}: there is no such bucket, file or folder"
    s3 = account.client("s3", is_glance=True)
    listed = _refuse_if_absent(lambda: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1), absent)
    if listed is not None and listed.get("KeyCount") == 0:
        raise ReferenceProblem(absent)


def _refuse_if_absent(look: Callable[[], Mapping[str, Any]], absent: str) -> Mapping[str, Any] | None:
    """Returns AWS's answer to `look`; None without the permission, or if AWS cannot be reached."""
    try:
        return look()
    except ClientError as error:
        if is_absent(error):
            raise ReferenceProblem(absent) from error
    except BotoCoreError:
        pass
    return None


def _is_of_tags(character: str) -> bool:
    return character.isalnum() or character in "_.:/=+-@" or unicodedata.category(character).startswith("Z")
