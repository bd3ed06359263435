"""MLflow in AWS: the app that runs go to when none is named, and links that open it.

Source: ListMlflowApps, CreateMlflowApp, DescribeMlflowApp and CreatePresignedMlflowAppUrl of botocore's service model
`sagemaker` (1.44). Which app is the default is chosen as sagemaker-train 1.27 does: the domain's, the account's, the first
that is ready, a new one.
"""

import json
import secrets
import time
from pathlib import Path
from typing import Any

from heldout.backends.sagemaker.account import Account, pages, told
from heldout.errors import CloudError

_READY = frozenset({"Created", "Updated"})
_COMING = frozenset({"Creating", "Updating"})
_STUDIO_FILE = Path("/opt/ml/metadata/resource-metadata.json")
"""Where SageMaker Studio says which domain a notebook is in."""
_POLL_SECONDS = 10.0
_LONGEST_SECONDS = 900.0
"""An app takes some minutes to come up."""


def default_app(account: Account) -> str | None:
    """The ARN of the app that is there already and that runs go to by default; None when there is none."""
    client = account.sagemaker
    with told("the account's MLflow apps"):
        domain = _domain()
        filters: list[dict[str, str]] = [{"DefaultForDomainId": domain}] if domain else []
        for chosen in (*filters, {"AccountDefaultStatus": "ENABLED"}, {}):
            listed = (app for page in pages(client.list_mlflow_apps, **chosen) for app in page.get("Summaries", ()))
            apps = [app for app in listed if app["Status"] in _READY | _COMING]
            # One that is ready rather than one that is coming; the sort keeps the order otherwise.
            for app in sorted(apps, key=lambda app: app["Status"] not in _READY):
                return str(app["Arn"])
    return None


def create_app(account: Account, *, role_arn: str, output: str) -> str:
    """A new app, with its artifacts in the bucket of `output`; its ARN."""
    bucket = output.removeprefix("s3://").partition("/")[0]
    with told("a new MLflow app"):
        created = account.sagemaker.create_mlflow_app(
            Name=f"heldout-{secrets.token_hex(4)}",
            ArtifactStoreUri=f"s3://{bucket}/mlflow-artifacts",
            RoleArn=role_arn,
            AccountDefaultStatus="DISABLED",
        )
    return str(created["Arn"])


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
    resource = arn.rpartition(":")[2]
    kind, _, name = resource.partition("/")
    with told(f"a link to MLflow at {arn}"):
        if kind == "mlflow-app":
            root = account.sagemaker.create_presigned_mlflow_app_url(Arn=arn)["AuthorizedUrl"]
        elif kind == "mlflow-tracking-server":
            root = account.sagemaker.create_presigned_mlflow_tracking_server_url(TrackingServerName=name)[
                "AuthorizedUrl"
            ]
        else:
            return None
    experiment, run = details.get("ExperimentId"), details.get("RunId")
    if not experiment:
        return str(root)
    return f"{root}#/experiments/{experiment}" + (f"/runs/{run}" if run else "")


def _status(account: Account, arn: str) -> str:
    with told(f"MLflow app {arn}", absent=f"MLflow app {arn} does not exist"):
        return str(account.sagemaker.describe_mlflow_app(Arn=arn)["Status"])


def _domain() -> str | None:
    try:
        domain = json.loads(_STUDIO_FILE.read_bytes()).get("DomainId")
    except (OSError, ValueError):
        return None
    return domain if isinstance(domain, str) else None
