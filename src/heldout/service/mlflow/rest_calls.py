"""The two calls of MLflow's REST API that SDKs make for links to their runs, answered from an app's store.

Source: MLflow's REST API 2.0, `experiments/get-by-name` and `runs/search`; checked against sagemaker-train 1.27. The replies have
the fields that these clients read: ids, names, status and times, and the metrics and tags of runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from heldout.errors import StorageError, shown
from heldout.tracking.connection import connected

if TYPE_CHECKING:
    from mlflow.entities import Run

STORE_FILE = "mlflow.db"


class CallRefused(Exception):
    """A call names a missing resource or has invalid parameters."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """MLflow's error code, such as `RESOURCE_DOES_NOT_EXIST`."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        return 404 if self.code == "RESOURCE_DOES_NOT_EXIST" else 400


def tracking_uri(folder: Path) -> str:
    """The tracking URI of the store in a folder."""
    return f"sqlite:///{folder / STORE_FILE}"


def experiment_by_name(folder: Path, name: str) -> dict[str, Any]:
    """The experiment of this name. Raises CallRefused if it does not exist."""
    found = None
    if (
        folder / STORE_FILE
    ).exists():  # before the first run is logged there is no store, and loading MLflow would take seconds
        with connected(tracking_uri(folder), folder) as store:
            found = store.client.get_experiment_by_name(name)
    if found is None:
        raise CallRefused("RESOURCE_DOES_NOT_EXIST", f"Could not find experiment with name {shown(name, 300)}")
    fields = ("experiment_id", "name", "artifact_location", "lifecycle_stage")
    return {"experiment": {field: getattr(found, field) for field in fields}}


def search_runs(folder: Path, body: bytes) -> dict[str, Any]:
    """Searches runs by the request's JSON body. Raises CallRefused if the body or the filter is invalid."""
    try:
        query = orjson.loads(body or b"{}")
        experiments = [str(experiment) for experiment in query.get("experiment_ids", ())]
    except (ValueError, AttributeError, TypeError) as error:
        raise CallRefused("INVALID_PARAMETER_VALUE", f"the request's body is not a valid search: {error}") from None
    if not (folder / STORE_FILE).exists():
        return {"runs": []}
    try:
        with connected(tracking_uri(folder), folder) as store:
            found = store.client.search_runs(
                experiments,
                str(query.get("filter", "")),
                max_results=int(query.get("max_results", 1_000)),
                order_by=query.get("order_by"),
            )
    except (StorageError, ValueError, TypeError) as error:
        raise CallRefused("INVALID_PARAMETER_VALUE", str(error)) from None
    return {"runs": [_run(run) for run in found]}


def _run(run: "Run") -> Mapping[str, Any]:
    info = run.info
    return {
        "info": {
            "run_id": info.run_id,
            "run_name": info.run_name,
            "experiment_id": info.experiment_id,
            "status": info.status,
            "start_time": info.start_time,
            "end_time": info.end_time,
            "lifecycle_stage": info.lifecycle_stage,
        },
        "data": {
            "metrics": [{"key": key, "value": value} for key, value in run.data.metrics.items()],
            "tags": [{"key": key, "value": value} for key, value in run.data.tags.items()],
        },
    }
