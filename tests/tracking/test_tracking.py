"""The MLflow run of an evaluation, read back through MLflow's own client from a real SQLite store."""

import asyncio
import importlib.util
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import orjson
import pytest

from heldout.errors import InputError, MissingExtra, ReferenceProblem, RunError, StorageError
from heldout.runs.comparison import compare_runs, comparison_document, prompt_texts
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN, JobStatus, Run
from heldout.tracking.connection import check_store, run_link, ui_command
from heldout.tracking.run_logging import LoggedRun, log_comparison, log_run, run_url
from tests.support.jobs import played, rows
from tests.support.report_runs import Play, written_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:sqlalchemy")

PROMPTS = ["0", "0.25", "turns 3", "raise oh no", "0.1", "0.5", "0.2", "0.3"]
BETTER = ["1", "0.75", "turns 3", "1", "0.9", "1", "0.7", "1"]
SETTINGS: dict[str, Any] = {"eval_group_size": 2, "rollout_max_retries": 0, "pass_k_values": [1, 2]}


class Evaluated(NamedTuple):
    """One evaluation of two policies, logged."""

    base: Path
    fine_tuned: Path
    comparison: Path
    logged: LoggedRun
    tuned: LoggedRun
    client: Any


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    output = tmp_path_factory.mktemp("output")
    evaluation = output / "evaluation"
    base = _play(evaluation, BASE_RUN, PROMPTS)
    # The agent of these tests plays what its prompt says, so the better policy gets other words at the same places.
    tuned = _play(evaluation, FINE_TUNED_RUN, BETTER)
    comparison = evaluation / "comparison.json"
    comparison.write_bytes(orjson.dumps(_compared(base, tuned)))
    (evaluation / "report.html").write_text("<p>both</p>")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("working-directory"))
        logged, better = _log(base, tags={"team": "evals", "cost+centre": "7"}), _log(tuned)
        _log_comparison(comparison, base, tuned)
        assert list(Path.cwd().iterdir()) == []  # MLflow's own default is a folder here
    from mlflow import MlflowClient

    return Evaluated(base, tuned, comparison, logged, better, MlflowClient(_store(output)))


def _play(evaluation: Path, run_name: str, prompts: list[str]) -> Path:
    run = asyncio.run(played(evaluation / f"{run_name}-job", prompts, **SETTINGS))
    run.update(name="evaluation", run_name=run_name)
    return run.folder.rename(evaluation / run_name)


def _compared(base: Path, tuned: Path) -> dict[str, Any]:
    """comparison.json; the prompts of the two runs count as the same where they stand at the same place."""
    runs = Run.open(base), Run.open(tuned)
    (tuned / "prompts.parquet").write_bytes((base / "prompts.parquet").read_bytes())
    comparison = compare_runs(*runs)
    return comparison_document(comparison, prompt_texts(comparison, runs[0]))


def _store(output: Path) -> str:
    return f"sqlite:///{output}/mlflow.db"


def _log(folder: Path, **options: Any) -> LoggedRun:
    usual = {"tracking_uri": _store(folder.parents[1]), "experiment_name": "guesses", "run_name": folder.name}
    return log_run(folder, **usual | options)


def _log_comparison(comparison: Path, base: Path, fine_tuned: Path) -> None:
    log_comparison(comparison, base=base, fine_tuned=fine_tuned, tracking_uri=_store(fine_tuned.parents[1]))


def _traces(evaluated: Evaluated, logged: LoggedRun) -> list[Any]:
    return list(evaluated.client.search_traces(locations=[logged.experiment_id], run_id=logged.run_id, max_results=100))


def test_every_metric_of_a_run_is_in_mlflow_under_its_name_and_nothing_else(evaluated: Evaluated) -> None:
    written = orjson.loads((evaluated.base / "metrics.json").read_bytes())
    assert evaluated.client.get_run(evaluated.logged.run_id).data.metrics == written["metrics"]


def test_headline_metrics_are_the_first_columns_in_mlflow(evaluated: Evaluated) -> None:
    headlines = ["eval/reward/pass_at_1", "eval/reward/mean", "eval/turns/mean", "eval/tokens/response_mean"]
    for run in evaluated.client.search_runs([evaluated.logged.experiment_id]):
        assert list(run.data.metrics)[:4] == headlines  # MLflow's page has the store's order


def test_the_primary_metric_is_the_first_column_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "output" / "evaluation" / "run"
    run = written_run(folder, [[Play(0.5)]] * 2, primary_metric="mean reward")
    logged = _log(run.folder)
    from mlflow import MlflowClient

    [found] = MlflowClient(_store(tmp_path / "output")).search_runs([logged.experiment_id])
    assert list(found.data.metrics)[:2] == ["eval/reward/mean", "eval/reward/pass_at_1"]


def test_intervals_of_headline_metrics_are_tags_and_all_are_in_an_artifact(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    written = orjson.loads((evaluated.base / "metrics.json").read_bytes())
    tags = evaluated.client.get_run(evaluated.logged.run_id).data.tags
    for name in ("eval/reward/pass_at_1", "eval/reward/mean"):
        assert orjson.loads(tags[f"heldout.interval.{name}"]) == written["intervals"][name]
    artifact = evaluated.client.download_artifacts(evaluated.logged.run_id, "metrics.json", str(tmp_path))
    assert orjson.loads(Path(artifact).read_bytes())["intervals"] == written["intervals"]


def test_metrics_whose_names_collide_in_mlflow_are_all_there_and_the_names_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = {"acc%": 0.25, "acc#": 0.5, "acc#.low": 0.75, "reward": 7.0, "success": 8.0}
    run = written_run(tmp_path / "output" / "evaluation" / "run", [[Play(1.0, metrics=metrics)]] * 2)
    logged = _log(run.folder)
    from mlflow import MlflowClient

    client = MlflowClient(_store(tmp_path / "output"))
    found = client.get_run(logged.run_id).data
    assert sorted(found.metrics[name] for name in found.metrics if name.startswith("agent/")) == [0.25, 0.5, 0.75, 7, 8]
    note = found.tags["mlflow.note.content"]
    assert "`agent/acc#` is `agent/acc_`" in note
    assert "`agent/acc%` is `agent/acc__2`" in note
    [trace, _] = client.search_traces(locations=[logged.experiment_id], run_id=logged.run_id)
    assessed = {one.name: one.value for one in trace.info.assessments}
    assert assessed["reward"] == 1.0
    assert assessed["success"] is True
    assert (assessed["agent/reward"], assessed["agent/success"]) == (7.0, 8.0)


def test_parameters_have_the_canonical_names_and_say_what_was_evaluated(evaluated: Evaluated) -> None:
    parameters = evaluated.client.get_run(evaluated.logged.run_id).data.params
    assert parameters["eval_group_size"] == "2"
    assert parameters["pass_k_values"] == "1,2"
    assert parameters["seed"] == "0"
    assert parameters["model"].startswith("http://127.0.0.1:")
    assert parameters["model"].endswith("/v1#scripted")
    assert parameters["agent"].endswith("scripted_agents.py:play")
    assert parameters["dataset"].endswith("prompts.jsonl")


def test_a_run_has_the_users_tags_its_job_and_its_status(evaluated: Evaluated) -> None:
    run = evaluated.client.get_run(evaluated.logged.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == BASE_RUN
    assert run.data.tags["team"] == "evals"
    assert run.data.tags["cost_centre"] == "7"  # MLflow takes no "+" in the name of a tag
    assert run.data.tags["heldout.job_arn"] == Run.open(evaluated.base).state.arn
    assert run.inputs.dataset_inputs[0].dataset.name == "prompts.jsonl"


def test_tables_and_reports_are_artifacts_next_to_the_store(evaluated: Evaluated) -> None:
    client, run_id = evaluated.client, evaluated.tuned.run_id
    names = {file.path for file in client.list_artifacts(run_id)}
    assert {"metrics.json", "job.json", "rollouts.parquet", "trajectories.parquet", "attempts.parquet"} <= names
    assert {file.path for file in client.list_artifacts(run_id, "comparison")} == {
        "comparison/comparison.json",
        "comparison/report.html",
    }
    artifacts = client.get_run(run_id).info.artifact_uri
    assert artifacts.startswith((evaluated.base.parents[1] / "mlartifacts").as_uri())


def test_a_trajectory_is_a_trace_with_its_turns_as_spans(evaluated: Evaluated) -> None:
    played = next(row for row in rows(Run.open(evaluated.base)) if row["turns"] == 3)
    trace = next(t for t in _traces(evaluated, evaluated.logged) if t.info.client_request_id == played["trajectory_id"])
    place = f"{played['prompt_index']}.{played['rollout_index']}"
    assert (trace.info.tags["mlflow.traceName"], trace.info.tags["rollout"]) == (place, place)
    root, *turns = trace.data.spans
    assert root.inputs == {"prompt": "turns 3"}
    assert root.outputs["reward"] == played["reward"]
    assert [turn.name for turn in turns] == ["turn 0", "turn 1", "turn 2"]
    assert all(turn.parent_id == root.span_id for turn in turns)
    # Each turn shows only what was new in it; the reply before it is in the span before it.
    assert [len(turn.inputs["messages"]) for turn in turns] == [1, 1, 1]
    assert turns[0].outputs["choices"][0]["message"]["content"] == "ok"
    assert trace.info.token_usage["input_tokens"] == played["prompt_tokens"]
    assert trace.info.token_usage["output_tokens"] == played["response_tokens"]
    assert {a.name: a.value for a in trace.info.assessments} == {
        "reward": played["reward"],
        "success": played["success"],
        **played["metrics"],
    }
    assert played["metrics"]["turns_played"] == 3.0


def test_a_failed_rollout_is_a_failed_trace_that_says_why(evaluated: Evaluated) -> None:
    failed = [t for t in _traces(evaluated, evaluated.logged) if t.info.state == "ERROR"]
    assert {trace.info.request_preview for trace in failed} == {"raise oh no", "raise oh no · rollout 1"}
    assert "oh no" in failed[0].info.response_preview
    rewards = [a for a in failed[0].info.assessments if a.name == "reward"]
    assert rewards[0].value is None
    assert rewards[0].error.error_code == "raised"


def test_the_comparison_is_on_the_fine_tuned_run_as_metrics_and_on_both_as_a_verdict(evaluated: Evaluated) -> None:
    document = orjson.loads(evaluated.comparison.read_bytes())
    tuned = evaluated.client.get_run(evaluated.tuned.run_id).data
    base = evaluated.client.get_run(evaluated.logged.run_id).data
    found = document["metrics"]["eval/reward/mean"]
    assert tuned.metrics["difference/eval/reward/mean"] == found["difference"]
    assert not any(name.endswith((".low", ".high", ".p_value")) for name in tuned.metrics)
    assert orjson.loads(tuned.tags["heldout.interval.difference/eval/reward/mean"]) == found["interval"]
    assert float(tuned.tags["heldout.p_value.difference/eval/reward/mean"]) == found["p_value"]
    assert not any("difference/" in name for name in base.metrics | base.tags)
    for data in (tuned, base):
        assert data.tags["heldout.verdict"] == document["verdict"]
        assert document["verdict"] in data.tags["mlflow.note.content"]
        assert "`eval/reward/mean`" in data.tags["mlflow.note.content"]


def test_a_runs_link_opens_the_run_and_its_description_links_to_both_runs(evaluated: Evaluated) -> None:
    note = evaluated.client.get_run(evaluated.logged.run_id).data.tags["mlflow.note.content"]
    link = note.partition("[all numbers](#/compare-runs?runs=")[2].partition(")")[0]
    assert evaluated.logged.run_id in link
    assert evaluated.tuned.run_id in link
    assert evaluated.logged.url == run_url(evaluated.base)
    assert (
        evaluated.logged.ui_command == f"mlflow ui --backend-store-uri sqlite:///{evaluated.base.parents[1]}/mlflow.db"
    )


def test_logging_a_run_again_updates_it_and_adds_nothing(evaluated: Evaluated) -> None:
    before = _traces(evaluated, evaluated.tuned)
    again = _log(evaluated.fine_tuned)
    assert again.run_id == evaluated.tuned.run_id
    assert len(evaluated.client.search_runs([again.experiment_id])) == 2
    after = _traces(evaluated, evaluated.tuned)
    assert {t.info.trace_id for t in after} == {t.info.trace_id for t in before}
    assert all(len(t.info.assessments) == len({a.name for a in t.info.assessments}) for t in after)
    assert len(evaluated.client.get_metric_history(again.run_id, "eval/reward/mean")) == 1


def test_a_cap_on_traces_keeps_first_rollouts_and_is_noted_on_the_run(evaluated: Evaluated, tmp_path: Path) -> None:
    logged = _log(evaluated.base, experiment_name="capped", max_traces=9)
    places = {(t.info.tags["rollout_index"], t.info.tags["prompt_index"]) for t in _traces(evaluated, logged)}
    assert places == {("0", str(prompt)) for prompt in range(8)} | {("1", "0")}
    assert evaluated.client.get_run(logged.run_id).data.tags["heldout.traces"].startswith("9 of 16 rollouts")

    fewer = _log(evaluated.base, experiment_name="capped", max_traces=2)
    assert fewer.run_id == logged.run_id
    assert len(_traces(evaluated, fewer)) == 2


def test_a_failed_job_is_a_failed_run_with_its_reason(evaluated: Evaluated) -> None:
    folder = evaluated.base.parent / "never-played"
    source = Run.open(evaluated.base)
    run = Run.create(folder, name="never", run_name=BASE_RUN, region="us-west-2", document=source.document)
    run.update(status=JobStatus.FAILED, failure_reason="the agent is not there")
    logged = _log(folder)
    stored = evaluated.client.get_run(logged.run_id)
    assert stored.info.status == "FAILED"
    assert "the agent is not there" in stored.data.tags["mlflow.note.content"]
    assert stored.data.metrics == {}
    evaluated.client.delete_run(logged.run_id)


def test_the_users_tracking_uri_and_environment_stay_unchanged(evaluated: Evaluated) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    _log(evaluated.base)
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_deleted_experiment_is_named_and_not_written_to(evaluated: Evaluated) -> None:
    evaluated.client.delete_experiment(evaluated.client.create_experiment("gone"))
    with pytest.raises(InputError, match="experiment 'gone' is deleted"):
        _log(evaluated.base, experiment_name="gone")


def test_a_store_that_cannot_be_used_is_named_without_its_password(evaluated: Evaluated) -> None:
    with pytest.raises(StorageError, match=r"MLflow at nonsense://host: ") as caught:
        _log(evaluated.base, tracking_uri="nonsense://me:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("given", "requests"), [(None, 3), ("0", 1)])
def test_a_refusing_server_is_retried_a_few_times_or_as_the_environment_sets(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, given: str | None, requests: int
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    if given is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", given)
    asked: list[str] = []

    class Away(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Away) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        check_store(address := f"http://127.0.0.1:{server.server_port}")  # it does answer
        asked.clear()
        with pytest.raises(StorageError, match=f"MLflow at {address}"):
            _log(evaluated.base, tracking_uri=address)
        server.shutdown()
    assert len(asked) == requests
    assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == given


@pytest.mark.parametrize(
    "uri", ["sqlite:///m.db", "postgresql+psycopg2://h/d", "databricks", "arn:aws:sagemaker:x", "file:///x"]
)
def test_every_kind_of_mlflow_store_is_accepted(uri: str) -> None:
    check_store(uri)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nonsense", "is of no kind"),
        ("./mlruns", "is of no kind"),
        ("gs://bucket/x", "is of no kind"),
        ("http://127.0.0.1:9", "Connection refused; start it"),
        ("http://127.0.0.1:99999", "no MLflow server answers"),
        ("http://", "no MLflow server answers"),
    ],
)
def test_an_unusable_store_is_reported_before_the_job_starts(uri: str, words: str) -> None:
    with pytest.raises(ReferenceProblem, match=words):
        check_store(uri)


def test_a_sagemaker_arn_without_its_plugin_says_what_to_install(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hide(monkeypatch, "sagemaker_mlflow")
    with pytest.raises(MissingExtra, match="pip install sagemaker-mlflow"):
        _log(evaluated.base, tracking_uri="arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-1")


def test_without_mlflow_the_error_says_what_to_install(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "mlflow")
    with pytest.raises(MissingExtra, match=r"MLflow tracking needs mlflow: pip install '.\[mlflow\]'"):
        _log(evaluated.base)


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))


def test_a_comparison_of_a_run_that_was_not_logged_says_so(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"was not logged to MLflow: it has no mlflow\.json"):
        _log_comparison(evaluated.comparison, tmp_path, evaluated.fine_tuned)
    with pytest.raises(RunError, match="an evaluation of two policies writes it"):
        _log_comparison(tmp_path / "comparison.json", evaluated.base, evaluated.fine_tuned)


@pytest.mark.parametrize(
    ("uri", "link", "command"),
    [
        ("http://user:pw@host:5000/", "http://host:5000/#/experiments/3/runs/abc", None),
        (
            "sqlite:////my runs/mlflow.db",
            "http://127.0.0.1:5000/#/experiments/3/runs/abc",
            "mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db'",
        ),
        ("databricks", None, None),
    ],
)
def test_the_link_to_a_run_fits_its_store(uri: str, link: str | None, command: str | None) -> None:
    assert run_link(uri, "3", "abc") == link
    assert ui_command(uri) == command


def test_importing_the_tracking_room_does_not_import_mlflow() -> None:
    code = "import sys, heldout.tracking.run_logging; print('mlflow' in sys.modules, 'boto3' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"
