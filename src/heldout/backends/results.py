"""Results of played runs: metrics, reports, the comparison and MLflow runs.

Statistics, reports and MLflow are imported where they are used, and the engine's process leaves them to the results process
(`heldout.backends.results_process`): loading them would delay the first model call of a job by a second.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from rich.console import Console, Group, RenderableType

from heldout.backends.results_process import in_results_process
from heldout.errors import HeldoutError, MetricError
from heldout.job.document import JobConfigDocument, MlflowDetails, ServiceOutput
from heldout.job.records import Boundary, Failure
from heldout.pipeline.evaluation import STATE_FILE, Evaluation
from heldout.report.console import plain_console
from heldout.runs.run import JobStatus, Run

COMPARISON_FILE = "comparison.json"
REPORT_FILE = "report.html"

Note = Callable[[str], None]
"""Receives a warning: one line that the user has to see, although nothing failed."""


def load(*, has_tracking: bool) -> None:
    """Loads the modules that `finish_run` needs, so that the results process has them when the last rollout ends."""
    from heldout.datasets.arrow import leave_pandas_out
    from heldout.report.page import page_template

    page_template()
    leave_pandas_out()
    # Libraries import the last two during their first call.
    for module in ("heldout.report.run_analysis", "heldout.report.terminal", "pyarrow.dataset", "scipy.special"):
        import_module(module)
    if has_tracking:
        import_module("heldout.tracking.run_logging")


class Numbers(NamedTuple):
    """What `write_numbers` found, as far as it decides how a job ends."""

    scored: int
    """Rollouts with a reward."""
    failed: int
    is_incomplete: bool
    retryable: int
    """Failed rollouts that `heldout resume --retry-failed` plays again."""
    failures: str
    """The most common reasons of failures, on one line; empty without any."""


def write_numbers(folder: Path, *, is_partial: bool) -> Numbers:
    """Writes the tables and `metrics.json` of the run in `folder` from its journal."""
    from heldout.runs.results import write_results
    from heldout.runs.tables import read_failures

    summary = write_results(Run.open(folder), is_partial=is_partial)
    reasons = read_failures(folder)
    retryable = sum(
        reason.count for reason in reasons if Failure(Boundary(reason.boundary), reason.kind, "").is_infrastructure
    )
    return Numbers(summary.scored, summary.failed, summary.is_incomplete, retryable, "; ".join(map(str, reasons)))


async def finish_run(run: Run, tags: Mapping[str, str], note: Note, say: Callable[[str], None]) -> None:
    """Writes the report of a complete run, and logs the run to MLflow with these tags if its job names a destination."""
    await in_results_process(_write_report, run.folder)
    if run.document.output_data_config.mlflow_config is None:
        return
    say(f"logging {run.state.run_name} to MLflow")
    try:
        details = await in_results_process(_log, run.folder, tags)
    except HeldoutError as error:
        # The results are complete; only a copy of them is missing.
        note(f"not logged to MLflow: {error}")
        return
    output = run.document.service_output or ServiceOutput()
    _replace_document(
        run, run.document.model_copy(update={"service_output": output.model_copy(update={"mlflow_details": details})})
    )


def has_verdict(evaluation: Evaluation) -> bool:
    """Whether the evaluation's runs could be compared, or there was nothing to compare."""
    path = evaluation.folder / COMPARISON_FILE
    return not path.exists() or bool(orjson.loads(path.read_bytes()).get("comparable", True))


async def compare_evaluation(evaluation: Evaluation, note: Note) -> None:
    """Writes the comparison and the report of an evaluation with two runs. If they cannot be compared, `note` gets the reason."""
    if evaluation.pair() is not None:
        for warning in await in_results_process(_compare, evaluation.folder):
            note(warning)


async def rendered_results(place: Evaluation | Run, console: Console) -> str:
    """Renders the results of an evaluation or a run as text for `console`, in the results process."""
    return await in_results_process(
        _rendered, place.folder, console.width, console.color_system if console.is_terminal else None
    )


async def results_document(place: Evaluation | Run) -> dict[str, Any]:
    """Collects the results of an evaluation or a run as a JSON object, in the results process."""
    return await in_results_process(_document, place.folder)


def evaluation_results(evaluation: Evaluation) -> RenderableType:
    """Renders each run's numbers, the comparison if there are two, and notes, for a terminal or a notebook."""
    from heldout.report import comparison_tables
    from heldout.runs.comparison import compare_runs, prompt_texts

    runs = {name: run for name, run in evaluation.runs().items() if run.has_rollouts}
    parts: list[RenderableType] = []
    for run in runs.values():
        parts += [run_results(run), ""]
    if (evaluation.folder / COMPARISON_FILE).exists() and (pair := evaluation.pair()) is not None:
        comparison = compare_runs(*pair)
        parts += [comparison_tables.comparison(comparison, prompt_texts(comparison, pair[0])), ""]
    parts += [f"! {note}" for note in evaluation.state.notes]
    if evaluation.state.failure_reason:
        parts.append(f"! {evaluation.status}: {evaluation.state.failure_reason}")
    return Group(*parts, f"evaluation {evaluation.location}")


def run_results(run: Run, *, training: str | None = None) -> RenderableType:
    """Renders one run's numbers and notes. training: a dataset to look for held-out prompts in."""
    from heldout.report.run_analysis import analyze
    from heldout.report.terminal import results

    title = f"{run.state.name}/{run.state.run_name}"
    return results(*analyze(run, training=training), title=title, where=run.location, is_partial=_is_partial(run))


def run_document(run: Run, *, training: str | None = None) -> dict[str, object]:
    """Returns one run's numbers and findings as JSON. training: a dataset to look for held-out prompts in."""
    from heldout.report.run_analysis import analyze
    from heldout.runs.results import metrics_document

    summary, findings = analyze(run, training=training)
    numbers = metrics_document(summary, is_partial=_is_partial(run))
    found = [asdict(finding) for finding in findings]
    return {"run": run.location, "status": run.state.status, **numbers, "findings": found}


def metrics_so_far(run: Run) -> dict[str, Any]:
    """Computes the content of `metrics.json`, also while the run is playing."""
    from heldout.runs.results import metrics_document, summarize_run

    return metrics_document(summarize_run(run), is_partial=_is_partial(run))


def evaluation_document(evaluation: Evaluation) -> dict[str, object]:
    """Returns an evaluation's numbers as JSON: its runs by name, and `comparison.json`."""
    path = evaluation.folder / COMPARISON_FILE
    runs = {name: run_document(run) for name, run in evaluation.runs().items() if run.has_rollouts}
    return {
        "evaluation": evaluation.location,
        "arn": evaluation.state.arn,
        "status": evaluation.status,
        "failure_reason": evaluation.state.failure_reason,
        "runs": runs,
        "comparison": orjson.loads(path.read_bytes()) if path.exists() else None,
        "notes": list(evaluation.state.notes),
    }


def _is_partial(run: Run) -> bool:
    return run.state.status is not JobStatus.COMPLETED


def _write_report(folder: Path) -> None:
    from heldout.report.page import write_report

    write_report(Run.open(folder))


def _log(folder: Path, tags: Mapping[str, str]) -> MlflowDetails:
    from heldout.tracking.run_logging import log_run

    run = Run.open(folder)
    config = run.document.output_data_config.mlflow_config
    assert config is not None  # the caller has checked it
    logged = log_run(
        folder,
        tracking_uri=config.mlflow_resource_arn,
        experiment_name=config.mlflow_experiment_name or run.state.name,
        run_name=config.mlflow_run_name or run.state.run_name,
        tags=tags,
    )
    return MlflowDetails(
        experiment_name=logged.experiment_name,
        experiment_id=logged.experiment_id,
        run_name=logged.run_name,
        run_id=logged.run_id,
    )


def _compare(folder: Path) -> list[str]:
    """Writes the comparison and the report. Returns warnings."""
    from heldout.report.page import write_evaluation_report
    from heldout.runs.comparison import compare_runs, comparison_document, prompt_texts

    evaluation = Evaluation.open_folder(folder)
    pair = evaluation.pair()
    assert pair is not None  # the caller has checked it
    base, fine_tuned = pair
    try:
        comparison = compare_runs(base, fine_tuned)
    except MetricError as error:
        return [f"no comparison: {error}"]
    document = comparison_document(comparison, prompt_texts(comparison, base))
    evaluation.write(COMPARISON_FILE, orjson.dumps(document, option=orjson.OPT_INDENT_2))
    report = write_evaluation_report(base, fine_tuned, comparison, folder / REPORT_FILE)
    evaluation.write(REPORT_FILE, report.read_bytes())
    return _log_comparison(evaluation, base, fine_tuned)


def _log_comparison(evaluation: Evaluation, base: Run, fine_tuned: Run) -> list[str]:
    config = fine_tuned.document.output_data_config.mlflow_config
    is_logged = all(run.document.service_output is not None for run in (base, fine_tuned))
    if config is None or not is_logged:
        return []
    from heldout.tracking.run_logging import log_comparison

    try:
        log_comparison(
            evaluation.folder / COMPARISON_FILE,
            base=base.folder,
            fine_tuned=fine_tuned.folder,
            tracking_uri=config.mlflow_resource_arn,
        )
    except HeldoutError as error:
        return [f"comparison not logged to MLflow: {error}"]
    return []


def _rendered(folder: Path, width: int, color_system: Any) -> str:
    place = _place(folder)
    shown = evaluation_results(place) if isinstance(place, Evaluation) else run_results(place)
    console = plain_console(width=width, color_system=color_system, force_terminal=color_system is not None)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def _document(folder: Path) -> dict[str, Any]:
    place = _place(folder)
    return evaluation_document(place) if isinstance(place, Evaluation) else run_document(place)


def _place(folder: Path) -> Evaluation | Run:
    return Evaluation.open_folder(folder) if (folder / STATE_FILE).exists() else Run.open(folder)


def _replace_document(run: Run, document: JobConfigDocument) -> None:
    run.document = document
    run.update(document=orjson.loads(document.to_json()))
