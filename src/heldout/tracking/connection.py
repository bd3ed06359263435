"""The way to an MLflow store: which one is meant, what it needs installed, and where a person opens it.

MLflow's process-wide settings stay as they are: clients are made for one store, and the user's own tracking URI, active run
and experiment are neither used nor changed. The one exception is a SageMaker ARN, whose plugin looks nowhere else: it is the
process's tracking URI while something is logged there.
"""

import importlib.util
import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from heldout.errors import HeldoutError, InputError, MissingExtra, StorageError, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

_LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves by default."""
_ERROR_CHARACTERS = 300
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own, 7 retries of 120 seconds, hold up the results of a job by minutes when its server is gone."""
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "genai_development"}
"""The kind of experiment whose pages are traces and evaluation runs; MLflow otherwise guesses from what it finds."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Clients of one MLflow store."""

    uri: str
    client: "MlflowClient"
    traces: "TracingClient"
    artifacts: Path | None
    """Where artifacts of new experiments go; None where a server decides."""

    def experiment(self, name: str) -> str:
        """The id of the experiment with this name, made when there is none. Raises InputError for a deleted one."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                artifacts = None if self.artifacts is None else self.artifacts.as_uri()
                return self.client.create_experiment(name, artifacts, tags=_EXPERIMENT_TAGS)
            except MlflowException:
                found = self.client.get_experiment_by_name(name)  # another process was quicker
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(f"MLflow experiment {shown(name)} is deleted; restore it there or give another name")
        return str(found.experiment_id)


@contextmanager
def connected(uri: str, output: Path) -> Iterator[Connection]:
    """Clients of the store at `uri` while inside; an SQLite file is made when it is not there.

    output: where artifacts go beside a database that is no file.

    Raises MissingExtra when MLflow, or the plugin for SageMaker ARNs, is not installed, and StorageError for whatever
    goes wrong inside with the store.
    """
    require_packages(uri)
    # Read by MLflow on import and on every call: nothing phones home unless the user turned it on.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        with _patience(), _tracking_uri(uri) if uri.startswith("arn:") else nullcontext():
            yield _connect(uri, output.absolute())
    except HeldoutError:
        raise
    except Exception as error:  # MLflow, its plugins and drivers share no base class
        words = " ".join(str(error).replace(uri, without_password(uri)).split()) or type(error).__name__
        raise StorageError(f"MLflow at {without_password(uri)}: {words[:_ERROR_CHARACTERS]}") from error


def require_packages(uri: str) -> None:
    """Raises MissingExtra, with the command that helps, when what the store at `uri` needs is not installed."""
    missing = [name for name in ("mlflow", "sqlalchemy", "alembic") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"MLflow tracking needs {', '.join(missing)}: pip install '.[mlflow]' (in Heldout's clone)")
    if uri.startswith("arn:") and importlib.util.find_spec("sagemaker_mlflow") is None:
        raise MissingExtra(f"MLflow at {shown(uri)} needs the package sagemaker-mlflow: pip install sagemaker-mlflow")


def run_link(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """Opens a run in a browser; for a store without a server, once `ui_command` serves it.

    None for a store whose address says nothing about its pages. A SageMaker ARN gets a link that works once, for five
    minutes; None when AWS refuses one.
    """
    path = f"/experiments/{experiment_id}/runs/{run_id}"
    if tracking_uri.startswith("databricks"):
        return None
    match urlsplit(tracking_uri).scheme:
        case "http" | "https":
            return f"{without_password(tracking_uri).rstrip('/')}/#{path}"
        case "arn":
            root = _presigned(tracking_uri)
            return None if root is None else f"{root}#{path}"
        case _:
            return f"{_LOCAL_SERVER}/#{path}"


def numbers_path(experiment_id: str, *, base: str, fine_tuned: str) -> str:
    """The page of MLflow's UI that has two runs' metrics and parameters side by side. base, fine_tuned: run ids."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in ([base, fine_tuned], [experiment_id]))
    return f"/compare-runs?runs={runs}&experiments={experiments}"


def rollouts_path(experiment_id: str, *, base: str, fine_tuned: str) -> str:
    """The page of MLflow's UI that has two runs' traces paired by prompt and rollout."""
    return f"/experiments/{experiment_id}/evaluation-runs?selectedRunUuid={fine_tuned}&compareToRunUuid={base}"


def presigned_root(sagemaker: Any, arn: str) -> str | None:
    """Opens MLflow's pages of an app or a tracking server; None for another ARN. sagemaker: a boto3 client.

    Source: CreatePresignedMlflowAppUrl and CreatePresignedMlflowTrackingServerUrl of botocore's service model `sagemaker` (1.44).
    Raises what boto3 does when AWS refuses.
    """
    kind, _, name = arn.rpartition(":")[2].partition("/")
    match kind:
        case "mlflow-app":
            return str(sagemaker.create_presigned_mlflow_app_url(Arn=arn)["AuthorizedUrl"])
        case "mlflow-tracking-server":
            found = sagemaker.create_presigned_mlflow_tracking_server_url(TrackingServerName=name)
            return str(found["AuthorizedUrl"])
        case _:
            return None


def ui_command(tracking_uri: str) -> str | None:
    """The command that serves MLflow's pages for a store without a server; None when it has one."""
    if tracking_uri.startswith("databricks") or urlsplit(tracking_uri).scheme in ("http", "https", "arn"):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(without_password(tracking_uri))}"


def without_password(uri: str) -> str:
    """The URI without the user and password that it may hold."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _connect(uri: str, output: Path) -> Connection:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

    artifacts = _artifact_folder(uri, output)
    return Connection(uri, MlflowClient(uri, uri), TracingClient(uri), artifacts)


@contextmanager
def _patience() -> Iterator[None]:
    """Bounds how long MLflow tries a server inside, where the user's environment does not: it reads these at every request."""
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    """Makes `uri` the process's tracking URI while inside: sagemaker-mlflow 0.5 names the ARN in its headers from there."""
    import mlflow

    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    before = mlflow.get_tracking_uri() if is_set else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes it back


def _artifact_folder(uri: str, output: Path) -> Path | None:
    """Where artifacts go beside a database; MLflow by itself would put them into the working directory."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if urlsplit(uri).scheme.partition("+")[0] not in DATABASE_ENGINES:
        return None
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    if not url.drivername.startswith("sqlite") or not url.database:
        return output / "mlartifacts"
    file = Path(url.database).absolute()
    folder = file.parent / "mlartifacts"
    if not file.exists():
        _create_database(uri, folder)
    return folder


def _create_database(uri: str, artifacts: Path) -> None:
    """Makes the tables, so that MLflow's own first experiment has its artifacts in the same place as ours."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it tells of every new database
    try:
        SqlAlchemyStore(uri, artifacts.as_uri())  # type: ignore[no-untyped-call]
    finally:
        logger.setLevel(level)


def _presigned(arn: str) -> str | None:
    import boto3  # slow to import, and only needed here
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return presigned_root(boto3.client("sagemaker", region_name=arn.split(":")[3]), arn)
    except (BotoCoreError, ClientError) as error:
        logging.getLogger(__name__).warning("no link to %s: %s", arn, error)
        return None
