"""Logs run folders and their comparison to MLflow. Reads run folders and never runs anything.

A run folder keeps the ids of its MLflow run in `mlflow.json`, so that logging it again after it was resumed or rescored updates
that run. Names are those of the wire contract. MLflow shows:

    metrics        every metric, the headline ones first; on the fine-tuned run `difference/<name>` as well
    tags           the intervals of the headline metrics; Heldout's version, the run's folder, the user's own
    parameters     model, agent, dataset and every hyperparameter
    description    the numbers with their intervals; the comparison's verdict and table
    traces         the trajectories, turns as spans, with reward, success and the agent's metrics as assessments
    artifacts      report.html, metrics.json, job.json and the tables
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from heldout.errors import RunError
from heldout.runs.run import JobStatus, Run, write_whole
from heldout.tracking.comparison_data import ComparisonData
from heldout.tracking.connection import (
    Connection,
    connected,
    numbers_path,
    rollouts_path,
    run_link,
    ui_command,
    without_password,
)
from heldout.tracking.run_data import RunData, metric_name

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

RECORD_FILE = "mlflow.json"
MAX_TRACES = 100
_OWN_TAGS = "heldout."
_METRICS_AT_ONCE = 1_000
"""MLflow's limit of one call."""
_DIGEST_CHARACTERS = 36
_STATUS = {
    JobStatus.IN_PROGRESS: "RUNNING",
    JobStatus.COMPLETED: "FINISHED",
    JobStatus.FAILED: "FAILED",
    JobStatus.STOPPED: "KILLED",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """The MLflow run of a run folder. The first four fields are the service's MlflowDetails."""

    experiment_name: str
    experiment_id: str
    run_name: str
    run_id: str
    url: str | None
    """The URL of the run's page; None for a store whose links expire (see `run_url`)."""
    ui_command: str | None
    """The command that serves `url` for a store without a server: `mlflow ui ...` (package `mlflow`)."""


def log_run(
    run_folder: Path,
    *,
    tracking_uri: str,
    experiment_name: str,
    run_name: str,
    tags: Mapping[str, str] | None = None,
    max_traces: int = MAX_TRACES,
) -> LoggedRun:
    """Logs a run, or updates its MLflow run if it was logged to the same store and experiment before.

    tracking_uri: any MLflow tracking URI or a SageMaker MLflow ARN. tags: of the MLflow run. max_traces: how many trajectories
    become traces at most.
    Raises RunError if there is no run, MissingExtra if MLflow is not installed, InputError for a deleted experiment,
    StorageError if the store cannot be reached or refuses a request.
    """
    run = Run.open(run_folder)
    data = RunData.of(run)
    with connected(tracking_uri, _output(run_folder)) as store:
        experiment_id = store.experiment(experiment_name)
        target = _mlflow_run(store, run, experiment_id, run_name)
        logged = LoggedRun(
            experiment_name=experiment_name,
            experiment_id=experiment_id,
            run_name=run_name,
            run_id=target.info.run_id,
            url=None if store.uri.startswith("arn:") else run_link(store.uri, experiment_id, target.info.run_id),
            ui_command=ui_command(store.uri),
        )
        record = {"tracking_uri": without_password(store.uri)} | asdict(logged)
        write_whole(run_folder / RECORD_FILE, orjson.dumps(record, option=orjson.OPT_INDENT_2))
        _log_data(store, run, data, target, {metric_name(key): value for key, value in (tags or {}).items()})
        _log_traces(store, run, logged, max_traces)
        _end(store, run, logged.run_id)
    return logged


def log_comparison(comparison: Path, *, base: Path, fine_tuned: Path, tracking_uri: str) -> None:
    """Logs a comparison to the MLflow runs of both its run folders.

    Both runs get the verdict as tag `heldout.verdict`; in their description a table of base, fine-tuned, difference, interval and
    p-value, with links that show both side by side; and comparison.json and the evaluation's report as artifacts. The fine-tuned
    run also gets the metrics `difference/<name>`, with intervals and p-values of the headline ones as tags.
    Raises RunError if a run was not logged or there is no comparison; otherwise like `log_run`.
    """
    compared = ComparisonData.read(comparison)
    of_base, of_fine_tuned = _record(base), _record(fine_tuned)
    experiment_id = of_base["experiment_id"]
    run_ids = {"base": of_base["run_id"], "fine_tuned": of_fine_tuned["run_id"]}
    with connected(tracking_uri, _output(base)) as store:
        numbers, rollouts = (path(experiment_id, **run_ids) for path in (numbers_path, rollouts_path))
        note = f"{compared.note}\n\nSide by side: [all numbers](#{numbers}), [rollouts and their traces](#{rollouts})"
        for folder, run_id in zip((base, fine_tuned), run_ids.values(), strict=True):
            run = Run.open(folder)
            _put_comparison(store, run, run_id, compared, note)
            if folder == fine_tuned:
                _log_metrics(store, run_id, compared.metrics, run)
                for name, value in compared.tags.items():
                    store.client.set_tag(run_id, name, value)
            for file in (comparison, comparison.with_name("report.html")):
                if file.is_file():
                    store.client.log_artifact(run_id, str(file), "comparison")


def run_url(run_folder: Path) -> str | None:
    """The URL of a logged run's page; for a SageMaker ARN a link that works once, within five minutes.

    None if there is no such link. Raises RunError if the run was not logged.
    """
    record = _record(run_folder)
    return run_link(record["tracking_uri"], record["experiment_id"], record["run_id"])


def _output(run_folder: Path) -> Path:
    """The output folder of output / evaluation / run."""
    return run_folder.absolute().parent.parent


def _record(run_folder: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads((run_folder / RECORD_FILE).read_bytes()))
    except FileNotFoundError as error:
        raise RunError(f"run {run_folder} was not logged to MLflow: it has no {RECORD_FILE}") from error


def _mlflow_run(store: Connection, run: Run, experiment_id: str, run_name: str) -> "MlflowRun":
    """The MLflow run of an earlier logging, or a new one."""
    earlier = _earlier(store, run, experiment_id)
    if earlier is not None:
        store.client.update_run(earlier.info.run_id, status="RUNNING", name=run_name)
        return earlier
    started_at = run.state.started_at or run.state.created_at
    return store.client.create_run(experiment_id, start_time=int(started_at * 1_000), run_name=run_name)


def _earlier(store: Connection, run: Run, experiment_id: str) -> "MlflowRun | None":
    from mlflow.exceptions import MlflowException

    if not (run.folder / RECORD_FILE).exists():
        return None
    record = _record(run.folder)
    if record["tracking_uri"] != without_password(store.uri) or record["experiment_id"] != experiment_id:
        return None
    try:
        found = store.client.get_run(record["run_id"])
    except MlflowException:
        return None  # permanently deleted, or another store at the same address
    return found if found.info.lifecycle_stage == "active" else None


def _log_data(store: Connection, run: Run, data: RunData, target: "MlflowRun", tags: Mapping[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    run_id = target.info.run_id
    # MLflow refuses to change a parameter, so a path that moved with its folder keeps its first value.
    params = [Param(key, value) for key, value in data.parameters.items() if key not in target.data.params]
    run_tags = {"mlflow.note.content": data.note, **data.tags, **tags}
    for stale in target.data.tags.keys() - run_tags.keys():
        if stale.startswith(_OWN_TAGS):
            store.client.delete_tag(run_id, stale)
    store.client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in run_tags.items()])
    _log_metrics(store, run_id, data.metrics, run)
    for name in data.artifacts:
        store.client.log_artifact(run_id, str(run.folder / name))
    if run.state.dataset_hash is not None:
        location = data.parameters["dataset"]
        dataset = Dataset(
            name=location.rstrip("/").rpartition("/")[2],
            digest=run.state.dataset_hash[:_DIGEST_CHARACTERS],
            source_type="s3" if location.startswith("s3://") else "local",
            source=orjson.dumps({"uri": location}).decode(),
            profile=orjson.dumps({"num_prompts": run.state.num_prompts}).decode(),
        )
        store.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])


def _log_metrics(store: Connection, run_id: str, metrics: Mapping[str, float], run: Run) -> None:
    from mlflow.entities import Metric

    at = int((run.state.ended_at or run.state.created_at) * 1_000)
    values = [Metric(name, value, at, 0) for name, value in metrics.items()]
    for start in range(0, len(values), _METRICS_AT_ONCE):
        store.client.log_batch(run_id, metrics=values[start : start + _METRICS_AT_ONCE])


def _log_traces(store: Connection, run: Run, logged: LoggedRun, max_traces: int) -> None:
    from heldout.tracking.traces import log_traces  # imports MLflow

    traces = log_traces(
        store.traces,
        run,
        experiment_id=logged.experiment_id,
        run_id=logged.run_id,
        run_name=logged.run_name,
        max_traces=max_traces,
        source=run.document.agent_config.agent.text,
    )
    if traces.is_capped:
        store.client.set_tag(logged.run_id, "heldout.traces", traces.text)
        _log.info("MLflow traces of %s: %s", run.folder, traces.text)


def _put_comparison(store: Connection, run: Run, run_id: str, compared: ComparisonData, note: str) -> None:
    """note: Markdown to put before the run's own description."""
    own = RunData.of(run).note
    store.client.set_tag(run_id, "mlflow.note.content", f"{note}\n\n---\n\n{own}")
    store.client.set_tag(run_id, "heldout.verdict", compared.verdict)


def _end(store: Connection, run: Run, run_id: str) -> None:
    status = _STATUS[run.state.status]
    if run.state.status is not JobStatus.IN_PROGRESS:
        store.client.set_terminated(run_id, status, int((run.state.ended_at or run.state.created_at) * 1_000))
