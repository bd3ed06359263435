"""Models in AWS: hub content and model packages, resolved to the names that a job document needs.

Source: DescribeHubContent, DescribeModelPackage and ListHubContents of botocore's service model `sagemaker` (1.44); the
keywords and the base model of a package as sagemaker-train 1.27 reads them.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from heldout.backends.sagemaker.account import Account, pages, translated_errors
from heldout.errors import ReferenceProblem, shown
from heldout.job.kinds.base import ModelReference
from heldout.job.kinds.hub_model import HubModel, hub_content_name
from heldout.job.kinds.model_package import ModelPackage
from heldout.pipeline.resolution import Policies

PUBLIC_HUB = "SageMakerPublicHub"
_KEYWORD = "@recipe:finetuning_mtrl"
"""The keyword of models that multi-turn RL can train, and therefore evaluate."""
_HUB_ARN = re.compile(
    r"arn:[^:]+:sagemaker:[^:]*:[^:]*:hub-content/(?P<hub>[^/]+)/(?P<kind>Model|ModelReference)/(?P<name>[^/]+)"
    r"(?:/(?P<version>[\d.]+))?"
)


class CloudModels(NamedTuple):
    """The models as job documents name them."""

    policies: Policies
    """The base model by its hub-content ARN, the fine-tuned one by its package's."""
    base_name: str
    """The base model's name in its hub."""


def resolve_models(account: Account, policies: Policies) -> CloudModels:
    """Looks up the models of an evaluation. Raises ReferenceProblem for one that is not in AWS or does not exist."""
    package = policies.fine_tuned
    if package is None:
        base = _hub_model(account, policies.evaluated)
        return CloudModels(Policies(base, None), hub_content_name(base.name))
    if isinstance(package, HubModel):
        raise ReferenceProblem(
            f"model {package.name!r} is given a base model, so it is a fine-tuned one; in AWS that is a model package's ARN"
        )
    if not isinstance(package, ModelPackage):
        raise not_in_aws("model", package.text)
    base = _hub_model(account, policies.base) if policies.base is not None else _base_of(account, package)
    if policies.base is not None:
        _describe_package(account, package)  # a missing package is an error now, not a failed job later
    return CloudModels(Policies(base, package), hub_content_name(base.name))


def supported_models(account: Account) -> list[str]:
    """Names of the hub's models that can be evaluated, sorted. Raises CloudError."""
    names = []
    with translated_errors("the hub's models"):
        for page in pages(account.sagemaker.list_hub_contents, HubName=_hub(), HubContentType="Model"):
            for content in page["HubContentSummaries"]:
                keywords = [keyword.lower() for keyword in content.get("HubContentSearchKeywords", ())]
                if any(keyword == _KEYWORD or keyword.startswith(f"{_KEYWORD}_") for keyword in keywords):
                    names.append(content["HubContentName"])
    return sorted(names)


def not_in_aws(what: str, value: str) -> ReferenceProblem:
    """The error for a model, an agent or a place that only this machine has."""
    expected = {
        "model": "a hub model's name or ARN, or a model package ARN",
        "agent": "a Bedrock AgentCore ARN or a Lambda ARN",
        "dataset": "s3://bucket/key or a hub-content DataSet ARN",
        "s3_output_path": "s3://bucket/prefix",
        "mlflow_resource_arn": "the ARN of an MLflow app or tracking server, 'off', or nothing for the account's default app",
    }[what]
    return ReferenceProblem(
        f"{what} {shown(value, 160)} is not in AWS, where backend 'sagemaker' runs; give {expected}, or backend='local'"
    )


def _hub_model(account: Account, model: ModelReference) -> HubModel:
    if not isinstance(model, HubModel):
        raise not_in_aws("model", model.text)
    found = _HUB_ARN.fullmatch(model.name)
    if found is None:
        return HubModel(_content_arn(account, _hub(), "Model", model.name, None))
    return HubModel(_content_arn(account, found["hub"], found["kind"], found["name"], found["version"]))


def _content_arn(account: Account, hub: str, kind: str, name: str, version: str | None) -> str:
    absent = f"model {name!r} is not in hub {hub!r} in {account.region}; list_supported_models() names those that are"
    chosen = {} if version is None else {"HubContentVersion": version}
    with translated_errors(f"model {name!r}", absent=absent):
        described = account.sagemaker.describe_hub_content(
            HubName=hub, HubContentType=kind, HubContentName=name, **chosen
        )
    return str(described["HubContentArn"])


def _base_of(account: Account, package: ModelPackage) -> HubModel:
    containers = _describe_package(account, package).get("InferenceSpecification", {}).get("Containers", [])
    base = containers[0].get("BaseModel", {}) if containers else {}
    name, version = base.get("HubContentName"), base.get("HubContentVersion")
    if not name:
        raise ReferenceProblem(
            f"model package {package.arn!r} does not say what it was tuned from, as those that SageMaker's fine-tuning makes "
            "do; name it: base_model=..., or --compare-with BASE"
        )
    return HubModel(_content_arn(account, _hub(), "Model", name, version))


def _describe_package(account: Account, package: ModelPackage) -> Mapping[str, Any]:
    absent = (
        f"model package {package.arn!r} does not exist, or belongs to another account or region than {account.region}"
    )
    with translated_errors(f"model package {package.arn!r}", absent=absent):
        described: Mapping[str, Any] = account.sagemaker.describe_model_package(ModelPackageName=package.arn)
    if (status := described.get("ModelPackageStatus", "Completed")) != "Completed":
        raise ReferenceProblem(f"model package {package.arn!r} is {status}; it can be evaluated once it is Completed")
    return described


def _hub() -> str:
    """The hub of a model's plain name. The SDK reads the same variable."""
    return os.environ.get("SAGEMAKER_HUB_NAME") or PUBLIC_HUB
