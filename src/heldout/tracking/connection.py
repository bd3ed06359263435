"""Connections to MLflow stores: checks before a job, required packages, clients, and links to pages.

MLflow's process-wide settings stay unchanged: clients are made for one store, and the user's own tracking URI, active run and
experiment are neither used nor changed. The exception is a SageMaker ARN: its plugin reads the process's tracking URI, which is
set to the ARN while a run is logged there.
"""

import importlib.util
import json
import logging
import os
import re
import shlex
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from heldout.errors import HeldoutError, InputError, MissingExtra, ReferenceProblem, StorageError, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

_LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves by default."""
_ERROR_CHARACTERS = 300
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's defaults, 7 retries of 120 seconds, delay the results of a job by minutes when its server is down."""
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "genai_development"}
"""The kind of experiment whose pages show traces and evaluation runs. Without the tag MLflow guesses the kind."""
_SCHEMES = frozenset({"sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "arn"})
"""Schemes of MLflow 3's tracking stores. Packages can add more."""
_HEALTH_TIMEOUT_SECONDS = 5.0
_NAMED_BY = "--mlflow, mlflow_resource_arn or MLFLOW_TRACKING_URI"


@dataclass(frozen=True, slots=True)
class Connection:
    """Clients of one MLflow store."""

    uri: str
    client: "MlflowClient"
    traces: "TracingClient"
    artifacts: Path | None
    """The artifact folder of new experiments; None if a server decides."""

    def experiment(self, name: str) -> str:
        """The id of the experiment with this name, which is created if missing. Raises InputError if it is deleted."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                artifacts = None if self.artifacts is None else self.artifacts.as_uri()
                return self.client.create_experiment(name, artifacts, tags=_EXPERIMENT_TAGS)
            except MlflowException:
                found = self.client.get_experiment_by_name(name)  # another process has just created it
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(f"MLflow experiment {shown(name)} is deleted; restore it or choose another name")
        return str(found.experiment_id)


@contextmanager
def connected(uri: str, output: Path) -> Iterator[Connection]:
    """Yields clients of the store at `uri`. A missing SQLite file is created.

    output: the folder for artifacts of a database server's store.
    Raises MissingExtra if MLflow or the plugin for SageMaker ARNs is not installed, and StorageError for every MLflow error
    raised in the block.
    """
    require_packages(uri)
    # MLflow reads it on import and on every call: no telemetry unless the user has turned it on.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        with _patience(), _tracking_uri(uri) if uri.startswith("arn:") else nullcontext():
            yield _connect(uri, output.absolute())
    except HeldoutError:
        raise
    except Exception as error:  # MLflow, its plugins and drivers share no base class
        reason = " ".join(str(error).replace(uri, without_password(uri)).split()) or type(error).__name__
        raise StorageError(f"MLflow at {without_password(uri)}: {reason[:_ERROR_CHARACTERS]}") from error


def check_store(uri: str) -> None:
    """Checks the URI of a store before a job starts, in a moment and without an import of MLflow, which takes seconds.

    A server passes if it answers in HTTP at all; wrong users and certificates are found when a run is logged.
    Raises ReferenceProblem if `uri` is not a store's, or names a server that does not answer.
    """
    scheme = "databricks" if re.fullmatch(r"databricks(-\w+)?", uri) else urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _check_server(without_password(uri))
    elif scheme not in _SCHEMES and not (scheme and entry_points(group="mlflow.tracking_store", name=scheme)):
        raise ReferenceProblem(
            f"MLflow tracking URI {shown(without_password(uri))} is of no kind that MLflow has; expected http://host:port, "
            f"sqlite:///path/mlflow.db, a SageMaker MLflow ARN or 'off' ({_NAMED_BY})"
        )


def logged_metrics(tracking_uri: str, run_id: str) -> dict[str, float]:
    """The latest value of every metric of an MLflow run.

    Raises MissingExtra without MLflow or the plugin for SageMaker ARNs, StorageError if the store refuses or has no such run.
    """
    with connected(tracking_uri, Path.cwd()) as store:
        return {name: float(value) for name, value in store.client.get_run(run_id).data.metrics.items()}


def require_packages(uri: str) -> None:
    """Raises MissingExtra, with the install command, if a package that the store at `uri` needs is missing."""
    missing = [name for name in ("mlflow", "sqlalchemy", "alembic") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"MLflow tracking needs {', '.join(missing)}: pip install '.[mlflow]' (in Heldout's clone)")
    if uri.startswith("arn:") and importlib.util.find_spec("sagemaker_mlflow") is None:
        raise MissingExtra(f"MLflow at {shown(uri)} needs the package sagemaker-mlflow: pip install sagemaker-mlflow")


def run_link(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """The URL of a run's page. For a store without a server, run `ui_command` first.

    None for a store whose pages are at an unknown address. A SageMaker ARN gets a link that works once, within five minutes;
    None if AWS refuses one.
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
    """The path of MLflow's page that compares the metrics and parameters of two runs. base, fine_tuned: run ids."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in ([base, fine_tuned], [experiment_id]))
    return f"/compare-runs?runs={runs}&experiments={experiments}"


def rollouts_path(experiment_id: str, *, base: str, fine_tuned: str) -> str:
    """The path of MLflow's page that pairs the traces of two runs by prompt and rollout. base, fine_tuned: run ids."""
    return f"/experiments/{experiment_id}/evaluation-runs?selectedRunUuid={fine_tuned}&compareToRunUuid={base}"


def presigned_root(sagemaker: Any, arn: str) -> str | None:
    """A presigned link to the pages of an MLflow app or tracking server; None for another ARN. sagemaker: a boto3 client.

    Source: CreatePresignedMlflowAppUrl and CreatePresignedMlflowTrackingServerUrl of botocore's service model `sagemaker` (1.44).
    Raises botocore's ClientError if AWS refuses.
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
    """The command that serves MLflow's pages for a store without a server; None if the store has one."""
    if tracking_uri.startswith("databricks") or urlsplit(tracking_uri).scheme in ("http", "https", "arn"):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(without_password(tracking_uri))}"


def without_password(uri: str) -> str:
    """Removes user and password from a URI."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _check_server(address: str) -> None:
    # Imported here: they take some milliseconds, which only an evaluation with a server has to wait for.
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        with urlopen(f"{address.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_SECONDS):
            return
    except HTTPError as error:
        error.close()
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, ssl.SSLError):
            cause = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise ReferenceProblem(
                f"no MLflow server answers at {shown(address)}: {cause}; start it, or give another place or 'off' ({_NAMED_BY})"
            ) from error


def _connect(uri: str, output: Path) -> Connection:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

    artifacts = _artifact_folder(uri, output)
    return Connection(uri, MlflowClient(uri, uri), TracingClient(uri), artifacts)


@contextmanager
def _patience() -> Iterator[None]:
    """Limits MLflow's retries and timeouts in the block, unless the user's environment sets them.

    MLflow reads the variables on each request.
    """
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    """Sets the process's tracking URI in the block: sagemaker-mlflow 0.5 reads the ARN for its headers from there."""
    import mlflow

    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    before = mlflow.get_tracking_uri() if is_set else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None resets it


def _artifact_folder(uri: str, output: Path) -> Path | None:
    """The artifact folder of a database store. MLflow's default is the working directory."""
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
    """Creates the tables, so that MLflow's own first experiment stores its artifacts in the same folder as ours."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it logs every new database
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
