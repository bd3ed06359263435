"""MLflow in AWS: the app that runs go to when none is named, and links that open it.

Source: ListMlflowApps, CreateMlflowApp and DescribeMlflowApp of botocore's service model `sagemaker` (1.44). Which app is the
default is chosen as sagemaker-train 1.27 does: the domain's, the account's, the first that is ready, a new one.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from heldout.backends.sagemaker.account import Account, pages, told
from heldout.errors import CloudError
from heldout.tracking.connection import presigned_root

_NAME = "heldout-evaluations"
"""Of the app that is made where there is none: one name, so that those who make one at the same moment find each other's."""
_READY = frozenset({"Created", "Updated"})
_COMING = frozenset({"Creating", "Updating"})
_STUDIO_FILE = Path("/opt/ml/metadata/resource-metadata.json")
"""Where SageMaker Studio says which domain a notebook is in."""
_POLL_SECONDS = 10.0
_LONGEST_SECONDS = 900.0
"""An app takes some minutes to come up."""


def default_app(account: Account) -> str | None:
    """The ARN of the app that is there already and that runs go to by default; None when there is none."""
    with told("the account's MLflow apps"):
        domain = _domain()
        filters: list[dict[str, str]] = [{"DefaultForDomainId": domain}] if domain else []
        for chosen in (*filters, {"AccountDefaultStatus": "ENABLED"}, {}):
            apps = list(_usable_apps(account, **chosen))
            ready = [app for app in apps if app["Status"] in _READY]
            if ready:
                return str(ready[0]["Arn"])
            if apps:  # of those that are coming the first that was made: `create_app` keeps that one
                return str(min(apps, key=_age)["Arn"])
    return None


def create_app(account: Account, *, role_arn: str, output: str) -> str:
    """The ARN of an app for evaluations, made with its artifacts in the bucket of `output`.

    Evaluations that find none at the same moment get the same one. Where the endpoint lets each name be given once, the first
    request makes it and the others are refused; where it does not, the first that was made is kept, and who made another one
    deletes it again. Raises CloudError.
    """
    bucket = output.removeprefix("s3://").partition("/")[0]
    client, made, refusal = account.sagemaker, list[Mapping[str, Any]](), None
    with told("a new MLflow app"):
        try:
            created = client.create_mlflow_app(
                Name=_NAME,
                ArtifactStoreUri=f"s3://{bucket}/mlflow-artifacts",
                RoleArn=role_arn,
                AccountDefaultStatus="DISABLED",
            )
            made = [client.describe_mlflow_app(Arn=created["Arn"])]
        except ClientError as error:
            refusal = error  # the name may be taken, which each service tells in words of its own
        named = [app for app in _usable_apps(account) if app["Name"] == _NAME]
        first = min((*made, *named), key=_age, default=None)
        if first is None:
            assert refusal is not None  # what was made is among them
            raise refusal
        if made and made[0]["Arn"] != first["Arn"]:
            with contextlib.suppress(ClientError):  # who may not delete leaves one too many, which nobody uses
                client.delete_mlflow_app(Arn=made[0]["Arn"])
    return str(first["Arn"])


def wait_for_app(account: Account, arn: str) -> None:
    """Returns when the app can be logged to. Raises CloudError when it does not come up."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while (status := _status(account, arn)) not in _READY:
        if status not in _COMING or time.monotonic() > deadline:
            raise CloudError(f"MLflow app {arn} is {status}; name another with mlflow_resource_arn, or 'off'")
        time.sleep(_POLL_SECONDS)


def run_link(account: Account, arn: str, details: dict[str, Any]) -> str | None:
    """Opens a run in its app: a link that works once, for five minutes. None for what is no app or tracking server.

    details: the job's MlflowDetails. Raises CloudError.
    """
    with told(f"a link to MLflow at {arn}"):
        root = presigned_root(account.sagemaker, arn)
    experiment, run = details.get("ExperimentId"), details.get("RunId")
    if root is None or not experiment:
        return root
    return f"{root}#/experiments/{experiment}" + (f"/runs/{run}" if run else "")


def _usable_apps(account: Account, **chosen: str) -> Iterator[Mapping[str, Any]]:
    for page in pages(account.sagemaker.list_mlflow_apps, **chosen):
        yield from (app for app in page.get("Summaries", ()) if app["Status"] in _READY | _COMING)


def _age(app: Mapping[str, Any]) -> tuple[Any, str]:
    """By which whoever looks finds the same one to be the first."""
    return app["CreationTime"], app["Arn"]


def _status(account: Account, arn: str) -> str:
    with told(f"MLflow app {arn}", absent=f"MLflow app {arn} does not exist"):
        return str(account.sagemaker.describe_mlflow_app(Arn=arn)["Status"])


def _domain() -> str | None:
    try:
        domain = json.loads(_STUDIO_FILE.read_bytes()).get("DomainId")
    except (OSError, ValueError):
        return None
    return domain if isinstance(domain, str) else None
