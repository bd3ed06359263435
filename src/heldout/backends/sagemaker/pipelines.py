"""Pipelines in AWS: a version of its own for every evaluation, so that none ever runs another's definition.

UpdatePipeline says which version it made, and StartPipelineExecution starts just that one, whatever others have made of the
pipeline in between. Where an endpoint knows no versions, each evaluation gets a pipeline of its own. Only pipelines with the
tag of evaluations are touched. Source: botocore's service model `sagemaker` (1.44).
"""

import json
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from heldout.backends.sagemaker.account import Account, code_of, is_absent, pages, told
from heldout.pipeline.definition import PIPELINE_PREFIX

SHARED_NAME = f"{PIPELINE_PREFIX}-heldout"
"""Of the pipeline whose versions the evaluations are. Not the SDK's: that starts the latest version, whoever made it."""
TAG = {"Key": "SagemakerModelEvaluation", "Value": "true"}
_MAX_TRIES = 12
_DESCRIPTION = "Multi-turn RL evaluation by Heldout"


def pipeline_name(account: Account) -> str:
    """The pipeline that a new evaluation is a version of: the shared one, or a new one where that name is another's."""
    with told(f"pipeline {SHARED_NAME}"):
        try:
            described = account.sagemaker.describe_pipeline(PipelineName=SHARED_NAME)
        except ClientError as error:
            if is_absent(error):
                return SHARED_NAME
            raise
        return SHARED_NAME if _is_evaluation(account, described["PipelineArn"]) else own_name()


def own_name() -> str:
    """A name that no other pipeline has."""
    return f"{SHARED_NAME}-{secrets.token_hex(6)}"


def put_definition(account: Account, name: str, definition: Mapping[str, Any], *, role_arn: str) -> int | None:
    """Makes a version of the pipeline with this definition, and the pipeline where it is not there.

    Returns the version's id; None when the endpoint knows no versions: then nothing may be started of this pipeline that is not
    new. Raises CloudError.
    """
    text = json.dumps(definition)
    with told(f"pipeline {name}"):
        for number in range(1, _MAX_TRIES + 1):
            try:
                return _updated(account, name, text, role_arn)
            except ClientError as error:
                # Others update it at this moment, or have just made it.
                if code_of(error) != "ConflictException" or number == _MAX_TRIES:
                    raise
                time.sleep(min(0.1 * 2.0**number, 5.0) * random.random())
    raise AssertionError("the last try returns or raises")


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


def _updated(account: Account, name: str, text: str, role_arn: str) -> int | None:
    client = account.sagemaker
    asked = {"PipelineName": name, "PipelineDefinition": text, "RoleArn": role_arn}
    try:
        updated = client.update_pipeline(**asked)
    except ClientError as error:
        if not is_absent(error):
            raise
        updated = _created_and_updated(account, name, asked)
    version = updated.get("PipelineVersionId")
    return None if version is None else int(version)


def _created_and_updated(account: Account, name: str, asked: Mapping[str, str]) -> Mapping[str, Any]:
    """What UpdatePipeline says once the pipeline is there: CreatePipeline does not say which version it made."""
    refusal = None
    try:
        _create(account, name, asked["PipelineDefinition"], asked["RoleArn"])
    except ClientError as error:
        refusal = error  # another evaluation may have been quicker, which each service tells in words of its own
    try:
        updated: Mapping[str, Any] = account.sagemaker.update_pipeline(**asked)
    except ClientError as error:
        if refusal is not None and is_absent(error):
            raise refusal from error
        raise
    return updated


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


def _is_evaluation(account: Account, arn: str) -> bool:
    listed = pages(account.sagemaker.list_tags, ResourceArn=arn)
    return any(tag == TAG for page in listed for tag in page["Tags"])
