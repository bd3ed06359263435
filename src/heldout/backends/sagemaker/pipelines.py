"""Pipelines in AWS: a version of its own for every evaluation, so that none ever runs another's definition.

UpdatePipeline says which version it made, and StartPipelineExecution starts just that one, whatever others have made of the
pipeline in between. Where an endpoint knows no versions, each evaluation gets a pipeline of its own. Only pipelines with the
tag of evaluations are touched: UpdatePipeline takes no condition, so the tag is looked for right before each update, and again
before anything is started. Source: botocore's service model `sagemaker` (1.44).
"""

import json
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from heldout.backends.sagemaker.account import Account, code_of, is_absent, pages, told
from heldout.errors import CloudError
from heldout.pipeline.definition import PIPELINE_PREFIX

SHARED_NAME = f"{PIPELINE_PREFIX}-heldout"
"""Of the pipeline whose versions the evaluations are. Not the SDK's: that starts the latest version, whoever made it."""
TAG = {"Key": "SagemakerModelEvaluation", "Value": "true"}
_MAX_TRIES = 12
_DESCRIPTION = "Multi-turn RL evaluation by Heldout"


def pipeline_name(account: Account) -> str:
    """The pipeline that a new evaluation is a version of: the shared one, or a new one where that name is another's."""
    with told(f"pipeline {SHARED_NAME}"):
        return own_name() if _is_ours(account, SHARED_NAME) is False else SHARED_NAME


def own_name() -> str:
    """A name that no other pipeline has."""
    return f"{SHARED_NAME}-{secrets.token_hex(6)}"


def put_definition(account: Account, name: str, definition: Mapping[str, Any], *, role_arn: str) -> int | None:
    """Makes a version of the pipeline with this definition, and the pipeline where it is not there.

    Returns the version's id; None when the endpoint knows no versions, or the pipeline is not one of evaluations: then nothing
    may be started of it. Raises CloudError.
    """
    text = json.dumps(definition)
    with told(f"pipeline {name}"):
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
    """A new pipeline with this definition. Raises CloudError."""
    with told(f"pipeline {name}"):
        _create(account, name, json.dumps(definition), role_arn)


def start(account: Account, name: str, *, version: int | None, display_name: str, role_arn: str) -> str:
    """Starts a version of the pipeline, None being its only one; the execution's ARN. Raises CloudError."""
    chosen = {} if version is None else {"PipelineVersionId": version, "RoleArn": role_arn}
    with told(f"pipeline {name}"):
        started = account.sagemaker.start_pipeline_execution(
            PipelineName=name,
            PipelineExecutionDisplayName=display_name,
            ClientRequestToken=secrets.token_hex(16),
            **chosen,
        )
    return str(started["PipelineExecutionArn"])


def evaluation_executions(account: Account) -> Iterator[str]:
    """ARNs of all executions of evaluation pipelines in the account, the last started first. Raises CloudError."""
    found: list[tuple[Any, str]] = []
    client = account.sagemaker
    with told("the account's evaluations"):
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
    """The reply of UpdatePipeline, since that of CreatePipeline has no version; None when the pipeline is someone else's."""
    for number in range(1, _MAX_TRIES + 1):
        try:
            if not _is_there(account, name, text, role_arn):
                return None
            updated: Mapping[str, Any] = account.sagemaker.update_pipeline(
                PipelineName=name, PipelineDefinition=text, RoleArn=role_arn
            )
            return updated
        except ClientError as error:
            # Others update it at this moment, or have just deleted it.
            if number == _MAX_TRIES or not (code_of(error) == "ConflictException" or is_absent(error)):
                raise
            time.sleep(min(0.1 * 2.0**number, 5.0) * random.random())
    raise AssertionError("the last try returns or raises")


def _is_there(account: Account, name: str, text: str, role_arn: str) -> bool:
    """Whether there is a pipeline of this name for evaluations, made now where there was none."""
    is_ours = _is_ours(account, name)
    if is_ours is not None:
        return is_ours
    try:
        _create(account, name, text, role_arn)
    except ClientError:
        # Someone else may have been quicker, which each service tells in words of its own.
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
    """Whether the pipeline of this name has the tag of evaluations; None: there is none of this name."""
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
