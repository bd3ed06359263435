"""Pipelines in AWS: every evaluation has its own version, so that none runs another's definition.

UpdatePipeline returns the version that it made, and StartPipelineExecution starts exactly that one, also after updates by others.
Where an endpoint has no versions, each evaluation gets its own pipeline. Only pipelines with the tag of evaluations are changed:
UpdatePipeline takes no condition, so the tag is checked before each update and again before the start. Source:
botocore's service model `sagemaker` (1.44).
"""

import json
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from heldout.backends.sagemaker.account import Account, code_of, is_absent, pages, translated_errors
from heldout.errors import CloudError
from heldout.pipeline.definition import PIPELINE_PREFIX

SHARED_NAME = f"{PIPELINE_PREFIX}-heldout"
"""The pipeline whose versions are the evaluations. It is not the SDK's pipeline: the SDK starts the latest version of that."""
TAG = {"Key": "SagemakerModelEvaluation", "Value": "true"}
_MAX_TRIES = 12
_DESCRIPTION = "Multi-turn RL evaluation by Heldout"


def pipeline_name(account: Account) -> str:
    """The pipeline of a new evaluation: the shared one, or a new one if another owner uses that name."""
    with translated_errors(f"pipeline {SHARED_NAME}"):
        return own_name() if _is_ours(account, SHARED_NAME) is False else SHARED_NAME


def own_name() -> str:
    """A new, unique pipeline name."""
    return f"{SHARED_NAME}-{secrets.token_hex(6)}"


def put_definition(account: Account, name: str, definition: Mapping[str, Any], *, role_arn: str) -> int | None:
    """Makes a version of the pipeline with this definition, and the pipeline itself if it does not exist.

    Returns the id of the version. None means that the endpoint has no versions or that the pipeline is not one of
    evaluations: it must not be started. Raises CloudError.
    """
    text = json.dumps(definition)
    with translated_errors(f"pipeline {name}"):
        updated = _updated(account, name, text, role_arn)
        if updated is None:
            return None
        version = updated.get("PipelineVersionId")
        if not _is_evaluation(account, updated["PipelineArn"]):
            raise CloudError(
                f"pipeline {name} was replaced by one without the tag {TAG['Key']} just before it got version {version}, this "
                "evaluation's; nothing was started: tell its owner, and start again"
            )
        return None if version is None else int(version)


def create_own(account: Account, name: str, definition: Mapping[str, Any], *, role_arn: str) -> None:
    """Makes a new pipeline with this definition. Raises CloudError."""
    with translated_errors(f"pipeline {name}"):
        _create(account, name, json.dumps(definition), role_arn)


def start(account: Account, name: str, *, version: int | None, display_name: str, role_arn: str) -> str:
    """Starts a version of the pipeline; None is its only version. Returns the ARN of the execution. Raises CloudError."""
    chosen = {} if version is None else {"PipelineVersionId": version, "RoleArn": role_arn}
    with translated_errors(f"pipeline {name}"):
        started = account.sagemaker.start_pipeline_execution(
            PipelineName=name,
            PipelineExecutionDisplayName=display_name,
            ClientRequestToken=secrets.token_hex(16),
            **chosen,
        )
    return str(started["PipelineExecutionArn"])


def evaluation_executions(account: Account) -> Iterator[str]:
    """The ARNs of all executions of evaluation pipelines in the account, the latest first. Raises CloudError."""
    found: list[tuple[Any, str]] = []
    client = account.sagemaker
    with translated_errors("the account's evaluations"):
        for page in pages(client.list_pipelines, PipelineNamePrefix=PIPELINE_PREFIX):
            for pipeline in page["PipelineSummaries"]:
                if not _is_evaluation(account, pipeline["PipelineArn"]):
                    continue
                for listed in pages(client.list_pipeline_executions, PipelineName=pipeline["PipelineName"]):
                    found += [
                        (execution["StartTime"], execution["PipelineExecutionArn"])
                        for execution in listed["PipelineExecutionSummaries"]
                    ]
    yield from (arn for _, arn in sorted(found, reverse=True))


def _updated(account: Account, name: str, text: str, role_arn: str) -> Mapping[str, Any] | None:
    """The reply of UpdatePipeline (that of CreatePipeline has no version); None for another owner's pipeline."""
    for number in range(1, _MAX_TRIES + 1):
        try:
            if not _is_there(account, name, text, role_arn):
                return None
            updated: Mapping[str, Any] = account.sagemaker.update_pipeline(
                PipelineName=name, PipelineDefinition=text, RoleArn=role_arn
            )
            return updated
        except ClientError as error:
            # A concurrent update, or a deletion a moment ago.
            if number == _MAX_TRIES or not (code_of(error) == "ConflictException" or is_absent(error)):
                raise
            time.sleep(min(0.1 * 2.0**number, 5.0) * random.random())
    raise AssertionError("the last try returns or raises")


def _is_there(account: Account, name: str, text: str, role_arn: str) -> bool:
    """Whether the pipeline of this name is one of evaluations. Makes it if it does not exist."""
    is_ours = _is_ours(account, name)
    if is_ours is not None:
        return is_ours
    try:
        _create(account, name, text, role_arn)
    except ClientError:
        # Another evaluation may have made it; each service words that differently.
        is_ours = _is_ours(account, name)
        if is_ours is None:
            raise
        return is_ours
    return True


def _create(account: Account, name: str, text: str, role_arn: str) -> None:
    account.sagemaker.create_pipeline(
        PipelineName=name,
        PipelineDisplayName=name,
        PipelineDescription=_DESCRIPTION,
        PipelineDefinition=text,
        RoleArn=role_arn,
        ClientRequestToken=secrets.token_hex(16),
        Tags=[TAG],
    )


def _is_ours(account: Account, name: str) -> bool | None:
    """Whether the pipeline of this name has the tag of evaluations; None if it does not exist."""
    try:
        described = account.sagemaker.describe_pipeline(PipelineName=name)
        return _is_evaluation(account, described["PipelineArn"])
    except ClientError as error:
        if is_absent(error):
            return None
        raise


def _is_evaluation(account: Account, arn: str) -> bool:
    listed = pages(account.sagemaker.list_tags, ResourceArn=arn)
    return any(tag == TAG for page in listed for tag in page["Tags"])
