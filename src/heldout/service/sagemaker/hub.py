"""The public hub: the registry's models as its content, described in the words that SDKs look for in a model to evaluate.

A hub-content document's RecipeCollection, the search keywords `@recipe:<type>_<technique>_<strategy>` and the file that a
recipe's SmtjOverrideParamsS3Uri names are read by sagemaker-train 1.27 as they are written here.
"""

import json
import os
import re
from datetime import UTC, datetime
from typing import Any

from heldout.errors import did_you_mean
from heldout.job.hyperparameters import SPECIFICATIONS, Specification
from heldout.job.registry import hub_content_name
from heldout.service.context import Context
from heldout.service.operations import Params, Reply, Room
from heldout.service.paging import between, paged
from heldout.service.wire.faults import not_found

ROOM = Room("sagemaker")

PUBLIC_HUB = "SageMakerPublicHub"
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
"""When everything was made that a registry lists: it says no times, and lists sorted by them need one that stays."""
VERSION = "1.0.0"
"""Of every model: a registry knows no versions."""
RECIPE_BUCKET = "heldout-recipes"
OVERRIDES_KEY = "heldout/agent-rft-evaluation/hyperparameters.json"
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_KEYWORDS = ("@recipe:finetuning_mtrl", "@recipe:evaluation_mtrlevaluation")
"""What list_supported_models of the SDK's multi-turn RL trainer and evaluator look for."""
_SORT_KEYS = {
    "HubContentName": "HubContentName",
    "CreationTime": "CreationTime",
    "HubContentStatus": "HubContentStatus",
    "": "HubContentArn",
}
_GLANCE: dict[str, Any] = {"connect_timeout": 3, "read_timeout": 10, "retries": {"total_max_attempts": 2}}
"""For a look at the user's S3 that may as well fail: whoever describes a model waits for it."""
_SDK_HYPERPARAMETERS = (
    "eval_group_size",
    "sampling_temperature",
    "top_p",
    "max_tokens",
    "pass_k_values",
    "success_threshold",
)
"""Those the SDK's evaluator hands on."""


@ROOM.operation("ListHubContents")
async def list_hub_contents(context: Context, params: Params) -> Reply:
    """The registry's models; a hub holds nothing else here."""
    _check_hub(params["HubName"])
    names = model_names(context) if params["HubContentType"] == "Model" else []
    found = [_summary(context, name) for name in names if params.get("NameContains", "") in name]
    found = between(found, params, "CreationTime", "CreationTimeAfter", "CreationTimeBefore")
    return paged("HubContentSummaries", found, params, _SORT_KEYS)


@ROOM.operation("DescribeHubContent")
def describe_hub_content(context: Context, params: Params) -> Reply:
    """A model, and the evaluation recipe that it has."""
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
        "LastModifiedTime": SINCE,
    }


def model_names(context: Context) -> list[str]:
    """The registry's models that have a name as the hub has them, sorted."""
    return sorted({name for key in context.registry.models if _NAME.fullmatch(name := hub_content_name(key))})


def model_arn(context: Context, name: str) -> str:
    """The hub-content ARN of a model."""
    return f"arn:aws:sagemaker:{context.region}:aws:hub-content/{PUBLIC_HUB}/Model/{name}/{VERSION}"


def overrides() -> bytes:
    """The file at RECIPE_BUCKET/OVERRIDES_KEY: what each hyperparameter of an evaluation may be, and its default."""
    return json.dumps({name: _override(SPECIFICATIONS[name]) for name in _SDK_HYPERPARAMETERS}, indent=2).encode()


def _override(specification: Specification) -> dict[str, Any]:
    default = specification.default
    kind = "integer" if isinstance(default, int) else "float" if isinstance(default, float) else "list"
    limits = {
        name: value for name, value in (("min", specification.low), ("max", specification.high)) if value is not None
    }
    return {"type": kind, "default": default, "required": False, "description": specification.meaning, **limits}


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
        "CreationTime": SINCE,
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
    """Where SDKs find the file: their default bucket, if the S3 service of the user's has one; else one of this server's own."""
    if not os.environ.get("AWS_ENDPOINT_URL_S3"):
        return RECIPE_BUCKET
    import boto3  # slow to import, and only needed here
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = f"sagemaker-{context.region}-{context.account}"
    try:
        client = boto3.session.Session(region_name=context.region).client("s3", config=Config(**_GLANCE))
        client.head_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=OVERRIDES_KEY, Body=overrides(), ContentType="application/json")
    except (BotoCoreError, ClientError):
        return RECIPE_BUCKET  # no such bucket, or not for us: SDKs then go by the defaults
    return bucket


def _check_hub(name: str) -> None:
    if name.rpartition("/")[2] != PUBLIC_HUB:
        raise not_found(f"hub {name!r} does not exist; the one that is served here is {PUBLIC_HUB}")
