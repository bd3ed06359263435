"""MLflow in AWS: the default app of an account, and links to its runs.

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

from heldout.backends.sagemaker.account import Account, pages, translated_errors
from heldout.errors import CloudError
from heldout.tracking.connection import presigned_root

_NAME = "heldout-evaluations"
"""The name of the app that is made where there is none. It is fixed, so that concurrent evaluations find each other's app."""
_READY = frozenset({"Created", "Updated"})
_COMING = frozenset({"Creating", "Updating"})
_STUDIO_FILE = Path("/opt/ml/metadata/resource-metadata.json")
"""The file in which SageMaker Studio names the domain of a notebook."""
_POLL_SECONDS = 10.0
_LONGEST_SECONDS = 900.0
"""An app takes some minutes to come up."""


def default_app(account: Account) -> str | None:
    """The ARN of the existing app that runs are logged to by default; None if there is none."""
    with translated_errors("the account's MLflow apps"):
        domain = _domain()
        filters: list[dict[str, str]] = [{"DefaultForDomainId": domain}] if domain else []
        for chosen in (*filters, {"AccountDefaultStatus": "ENABLED"}, {}):
            apps = list(_usable_apps(account, **chosen))
            ready = [app for app in apps if app["Status"] in _READY]
            if ready:
                return str(ready[0]["Arn"])
            if apps:  # of several that are being made, the first: `create_app` keeps that one
                return str(min(apps, key=_age)["Arn"])
    return None


def create_app(account: Account, *, role_arn: str, output: str) -> str:
    """Makes an app for evaluations, with its artifacts in the bucket of `output`. Returns its ARN.

    Concurrent evaluations get the same app. Where an endpoint accepts each name once, the first request makes the app
    and the others are refused; where it does not, the first app is kept and its duplicates are deleted by those who
    made them. Raises CloudError.
    """
    bucket = output.removeprefix("s3://").partition("/")[0]
    client, made, refusal = account.sagemaker, list[Mapping[str, Any]](), None
    with translated_errors("a new MLflow app"):
        try:
            created = client.create_mlflow_app(
                Name=_NAME,
                ArtifactStoreUri=f"s3://{bucket}/mlflow-artifacts",
                RoleArn=role_arn,
                AccountDefaultStatus="DISABLED",
            )
            made = [client.describe_mlflow_app(Arn=created["Arn"])]
        except ClientError as error:
            refusal = error  # the name may be taken; each service words that differently
        named = [app for app in _usable_apps(account) if app["Name"] == _NAME]
        first = min((*made, *named), key=_age, default=None)
        if first is None:
            assert refusal is not None  # what was made is among them
            raise refusal
        if made and made[0]["Arn"] != first["Arn"]:
            with contextlib.suppress(ClientError):  # without permission to delete, an unused app remains
                client.delete_mlflow_app(Arn=made[0]["Arn"])
    return str(first["Arn"])


def wait_for_app(account: Account, arn: str) -> None:
    """Waits until the app accepts runs. Raises CloudError when it does not start."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while (status := _status(account, arn)) not in _READY:
        if status not in _COMING or time.monotonic() > deadline:
            raise CloudError(f"MLflow app {arn} is {status}; name another with mlflow_resource_arn, or 'off'")
        time.sleep(_POLL_SECONDS)


def run_link(account: Account, arn: str, details: dict[str, Any]) -> str | None:
    """A link to a run in its app, which works once and for five minutes. None for an ARN of another kind.

    details: the job's MlflowDetails. Raises CloudError.
    """
    with translated_errors(f"a link to MLflow at {arn}"):
        root = presigned_root(account.sagemaker, arn)
    experiment, run = details.get("ExperimentId"), details.get("RunId")
    if root is None or not experiment:
        return root
    return f"{root}#/experiments/{experiment}" + (f"/runs/{run}" if run else "")


def _usable_apps(account: Account, **chosen: str) -> Iterator[Mapping[str, Any]]:
    for page in pages(account.sagemaker.list_mlflow_apps, **chosen):
        yield from (app for app in page.get("Summaries", ()) if app["Status"] in _READY | _COMING)


def _age(app: Mapping[str, Any]) -> tuple[Any, str]:
    """The sort key of apps, by which every evaluation finds the same first one."""
    return app["CreationTime"], app["Arn"]


def _status(account: Account, arn: str) -> str:
    with translated_errors(f"MLflow app {arn}", absent=f"MLflow app {arn} does not exist"):
        return str(account.sagemaker.describe_mlflow_app(Arn=arn)["Status"])


def _domain() -> str | None:
    try:
        domain = json.loads(_STUDIO_FILE.read_bytes()).get("DomainId")
    except (OSError, ValueError):
        return None
    return domain if isinstance(domain, str) else None
