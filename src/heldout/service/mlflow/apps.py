"""MLflow app operations. An app is a tracking store in the server's state folder; jobs that name its ARN log to it.

The server has one app of its own, so that clients that need a default app find one. Apps that the registry maps are listed too.
"""

import importlib.metadata
import secrets
import time
from datetime import UTC, datetime

from heldout.errors import did_you_mean
from heldout.job.registry import MlflowEntry, Registry
from heldout.service.context import REGISTRY_CREATED_AT, Context
from heldout.service.mlflow.pages import OWN_APP
from heldout.service.mlflow.rest_calls import tracking_uri
from heldout.service.store import Record
from heldout.service.tags import forget_tags, set_tags
from heldout.service.wire.faults import invalid, not_found
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import between, paged
from heldout.tracking.connection import ui_command, without_password

OPERATIONS = OperationTable[Context]("sagemaker")

_SORT_KEYS = {"CreationTime": "CreationTime", "Name": "Name", "Status": "Status", "": "Arn"}


class App(Record):
    """An MLflow app."""

    arn: str
    name: str
    tracking_uri: str
    artifact_store_uri: str | None = None
    role_arn: str | None = None
    is_account_default: bool = False
    domains: tuple[str, ...] = ()
    created_at: float
    changed_at: float

    @property
    def key(self) -> str:
        return self.arn


@OPERATIONS.operation("CreateMlflowApp")
def create_mlflow_app(context: Context, params: Params) -> Reply:
    """Creates an app. Its artifacts are stored next to its database; `ArtifactStoreUri` is only recorded."""
    app_id = f"app-{secrets.token_hex(6).upper()}"
    app = _new(
        context,
        app_id,
        params["Name"],
        artifact_store_uri=params["ArtifactStoreUri"],
        role_arn=params["RoleArn"],
        is_account_default=params.get("AccountDefaultStatus") == "ENABLED",
        domains=tuple(params.get("DefaultDomainIdList", ())),
    )
    with context.store.transaction():
        if any(other.name == app.name for other in mlflow_apps(context)):
            raise invalid(f"MLflow app with the name {app.name!r} already exists")
        _put(context, app)
        set_tags(context.store, app.arn, params.get("Tags"))
        context.pages.make_folder(app_id)
    return {"Arn": app.arn}


@OPERATIONS.operation("UpdateMlflowApp")
def update_mlflow_app(context: Context, params: Params) -> Reply:
    """Changes an app's name, artifact location and defaults."""
    with context.store.transaction():
        app = _find(context, params["Arn"])
        default = params.get("AccountDefaultStatus")
        changed = app.model_copy(
            update={
                "name": params.get("Name", app.name),
                "artifact_store_uri": params.get("ArtifactStoreUri", app.artifact_store_uri),
                "is_account_default": app.is_account_default if default is None else default == "ENABLED",
                "domains": tuple(params.get("DefaultDomainIdList", app.domains)),
                "changed_at": time.time(),
            }
        )
        _put(context, changed)
    return {"Arn": app.arn}


@OPERATIONS.operation("DescribeMlflowApp")
def describe_mlflow_app(context: Context, params: Params) -> Reply:
    """Describes an app by its ARN."""
    app = _find(context, params["Arn"])
    return _summary(app) | {
        "ArtifactStoreUri": app.artifact_store_uri,
        "RoleArn": app.role_arn,
        "ModelRegistrationMode": "AutoModelRegistrationDisabled",
        "AccountDefaultStatus": _default_status(app),
        "DefaultDomainIdList": list(app.domains),
    }


@OPERATIONS.operation("ListMlflowApps")
def list_mlflow_apps(context: Context, params: Params) -> Reply:
    """Lists the apps that pass the request's filters."""
    domain, default, version = (params.get(n) for n in ("DefaultForDomainId", "AccountDefaultStatus", "MlflowVersion"))
    found = [
        _summary(app)
        for app in mlflow_apps(context)
        if domain in (None, *app.domains) and default in (None, _default_status(app)) and version in (None, _version())
    ]
    found = [app for app in found if params.get("Status", app["Status"]) == app["Status"]]
    found = between(found, params, "CreationTime", "CreatedAfter", "CreatedBefore")
    return paged("Summaries", found, params, _SORT_KEYS, is_descending=True)


@OPERATIONS.operation("DeleteMlflowApp")
def delete_mlflow_app(context: Context, params: Params) -> Reply:
    """Deletes an app. Its tracking store stays in the state folder."""
    with context.store.transaction():
        app = _find(context, params["Arn"])
        if app.arn == context.arn(f"mlflow-app/{OWN_APP}") or app.arn in context.registry.mlflow:
            raise invalid(f"MLflow app {app.arn} cannot be deleted: it belongs to the server or its registry")
        context.store.remove(App, app.arn)
        forget_tags(context.store, app.arn)
    return {"Arn": app.arn}


@OPERATIONS.operation("CreatePresignedMlflowAppUrl")
def create_presigned_mlflow_app_url(context: Context, params: Params) -> Reply:
    """Returns a link that opens the app in a browser until it expires."""
    app = _find(context, params["Arn"])
    if app.tracking_uri.startswith(("http://", "https://")):
        return {"AuthorizedUrl": app.tracking_uri.rstrip("/")}
    if app.arn in context.registry.mlflow:
        command = ui_command(app.tracking_uri)
        raise invalid(
            f"MLflow app {app.arn} is mapped by the registry to {without_password(app.tracking_uri)} and has no pages here"
            + (f"; to open it: {command}" if command else "")
        )
    app_id, seconds = app.arn.rpartition("/")[2], params.get("ExpiresInSeconds", 300)
    return {"AuthorizedUrl": context.pages.authorized_url(context.endpoint, app_id, seconds)}


def mlflow_apps(context: Context) -> list[App]:
    """The server's own app, those that clients created, and those that the registry maps."""
    own = _new(context, OWN_APP, "heldout", is_account_default=True, since=REGISTRY_CREATED_AT.timestamp())
    mapped = [
        App(
            arn=arn,
            name=arn.rpartition("/")[2],
            tracking_uri=entry.tracking_uri,
            created_at=REGISTRY_CREATED_AT.timestamp(),
            changed_at=REGISTRY_CREATED_AT.timestamp(),
        )
        for arn, entry in context.registry.mlflow.items()
        if ":mlflow-app/" in arn
    ]
    found = {app.arn: app for app in (own, *mapped, *context.store.all(App))}
    return list(found.values())


def registry_with_apps(context: Context) -> Registry:
    """The registry for jobs: with every app's ARN mapped to its tracking store."""
    mapped = {app.arn: MlflowEntry(tracking_uri=app.tracking_uri) for app in mlflow_apps(context)}
    return context.registry.model_copy(update={"mlflow": {**mapped, **context.registry.mlflow}})


def _new(
    context: Context,
    app_id: str,
    name: str,
    *,
    artifact_store_uri: str | None = None,
    role_arn: str | None = None,
    is_account_default: bool = False,
    domains: tuple[str, ...] = (),
    since: float | None = None,
) -> App:
    created = time.time() if since is None else since
    return App(
        arn=context.arn(f"mlflow-app/{app_id}"),
        name=name,
        tracking_uri=tracking_uri(context.pages.folder_of(app_id)),
        artifact_store_uri=artifact_store_uri,
        role_arn=role_arn,
        is_account_default=is_account_default,
        domains=domains,
        created_at=created,
        changed_at=created,
    )


def _put(context: Context, app: App) -> None:
    """Stores an app. If it is a default (of the account or of a domain), other apps lose that role."""
    for other in mlflow_apps(context):
        if other.arn == app.arn:
            continue
        kept = tuple(domain for domain in other.domains if domain not in app.domains)
        is_default = other.is_account_default and not app.is_account_default
        if (kept, is_default) != (other.domains, other.is_account_default):
            context.store.put(other.model_copy(update={"domains": kept, "is_account_default": is_default}))
    context.store.put(app)


def _find(context: Context, arn: str) -> App:
    apps = {app.arn: app for app in mlflow_apps(context)}
    if arn not in apps:
        raise not_found(f"MLflow app {arn!r} does not exist.{did_you_mean(arn, apps)}")
    return apps[arn]


def _summary(app: App) -> Reply:
    return {
        "Arn": app.arn,
        "Name": app.name,
        "Status": "Created" if app.created_at == app.changed_at else "Updated",
        "CreationTime": datetime.fromtimestamp(app.created_at, UTC),
        "LastModifiedTime": datetime.fromtimestamp(app.changed_at, UTC),
        "MlflowVersion": _version(),
    }


def _default_status(app: App) -> str:
    return "ENABLED" if app.is_account_default else "DISABLED"


def _version() -> str | None:
    """Version of the installed MLflow."""
    try:
        return importlib.metadata.version("mlflow-skinny")
    except importlib.metadata.PackageNotFoundError:
        return None
