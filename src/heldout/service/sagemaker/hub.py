"""The public hub: the registry's models as hub contents, with the metadata that SDKs require of a model to evaluate.

Checked against sagemaker-train 1.27, which reads a hub-content document's RecipeCollection, the search keywords
`@recipe:<type>_<technique>_<strategy>` and the file at a recipe's SmtjOverrideParamsS3Uri.
"""

import json
import os
import re
from typing import Any

from heldout.errors import did_you_mean
from heldout.job.kinds.hub_model import hub_content_name
from heldout.service.context import REGISTRY_CREATED_AT, Context
from heldout.service.s3.objects import OVERRIDES_KEY, RECIPE_BUCKET, overrides
from heldout.service.wire.faults import not_found
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import between, paged

OPERATIONS = OperationTable[Context]("sagemaker")

PUBLIC_HUB = "SageMakerPublicHub"
VERSION = "1.0.0"
"""The version of every model: a registry has no versions."""
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_KEYWORDS = ("@recipe:finetuning_mtrl", "@recipe:evaluation_mtrlevaluation")
"""Keywords that `list_supported_models` of the SDK's multi-turn RL trainer and evaluator filters by."""
_SORT_KEYS = {
    "HubContentName": "HubContentName",
    "CreationTime": "CreationTime",
    "HubContentStatus": "HubContentStatus",
    "": "HubContentArn",
}
_OPTIONAL_CALL: dict[str, Any] = {"connect_timeout": 3, "read_timeout": 10, "retries": {"total_max_attempts": 2}}
"""Client settings for an optional write to the user's S3, short because DescribeHubContent waits for it. In seconds."""


@OPERATIONS.operation("ListHubContents")
async def list_hub_contents(context: Context, params: Params) -> Reply:
    """Lists the registry's models, the only contents of the hub."""
    _check_hub(params["HubName"])
    names = model_names(context) if params["HubContentType"] == "Model" else []
    found = [_summary(context, name) for name in names if params.get("NameContains", "") in name]
    found = between(found, params, "CreationTime", "CreationTimeAfter", "CreationTimeBefore")
    return paged("HubContentSummaries", found, params, _SORT_KEYS)


@OPERATIONS.operation("DescribeHubContent")
def describe_hub_content(context: Context, params: Params) -> Reply:
    """Describes a model and its evaluation recipe."""
    _check_hub(params["HubName"])
    name, names = params["HubContentName"], model_names(context)
    version = params.get("HubContentVersion", VERSION)
    if params["HubContentType"] == "Model" and name in names and version != VERSION:
        raise not_found(f"hub content {name!r} of type Model has no version {version!r}; it has {VERSION!r}")
    if params["HubContentType"] != "Model" or name not in names:
        raise not_found(
            f"hub content {name!r} of type {params['HubContentType']} does not exist in {PUBLIC_HUB}; the registry maps "
            f"{', '.join(map(repr, names)) or 'no models'}.{did_you_mean(name, names)}"
        )
    return _summary(context, name) | {
        "HubName": PUBLIC_HUB,
        "HubArn": f"arn:aws:sagemaker:{context.region}:aws:hub/{PUBLIC_HUB}",
        "HubContentDocument": json.dumps({"RecipeCollection": [_evaluation_recipe(context)]}),
        "LastModifiedTime": REGISTRY_CREATED_AT,
    }


def model_names(context: Context) -> list[str]:
    """Names of the registry's models that are valid hub-content names, sorted."""
    return sorted({name for key in context.registry.models if _NAME.fullmatch(name := hub_content_name(key))})


def model_arn(context: Context, name: str) -> str:
    """The hub-content ARN of a model."""
    return f"arn:aws:sagemaker:{context.region}:aws:hub-content/{PUBLIC_HUB}/Model/{name}/{VERSION}"


def _summary(context: Context, name: str) -> Reply:
    return {
        "HubContentName": name,
        "HubContentArn": model_arn(context, name),
        "HubContentVersion": VERSION,
        "HubContentType": "Model",
        "DocumentSchemaVersion": "2.4.0",
        "HubContentDisplayName": name,
        "HubContentSearchKeywords": list(_KEYWORDS),
        "HubContentStatus": "Available",
        "SupportStatus": "Supported",
        "CreationTime": REGISTRY_CREATED_AT,
    }


def _evaluation_recipe(context: Context) -> dict[str, Any]:
    return {
        "Name": "agent-rft-evaluation",
        "DisplayName": "Multi-turn RL evaluation",
        "Type": "Evaluation",
        "EvaluationType": "MTRLEvaluation",
        "SmtjOverrideParamsS3Uri": f"s3://{_overrides_bucket(context)}/{OVERRIDES_KEY}",
    }


def _overrides_bucket(context: Context) -> str:
    """The bucket of the overrides file: the SDKs' default bucket if the user's S3 service has it, otherwise this server's own."""
    if not os.environ.get("AWS_ENDPOINT_URL_S3"):
        return RECIPE_BUCKET
    import boto3  # slow to import, and only needed here
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = f"sagemaker-{context.region}-{context.account}"
    try:
        client = boto3.session.Session(region_name=context.region).client("s3", config=Config(**_OPTIONAL_CALL))
        client.head_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=OVERRIDES_KEY, Body=overrides(), ContentType="application/json")
    except (BotoCoreError, ClientError):
        return RECIPE_BUCKET  # no such bucket, or no access to it: SDKs then use the defaults
    return bucket


def _check_hub(name: str) -> None:
    if name.rpartition("/")[2] != PUBLIC_HUB:
        raise not_found(f"hub {name!r} does not exist; this server has {PUBLIC_HUB}")
