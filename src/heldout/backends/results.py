"""What is made of runs once they are played: reports, the comparison, MLflow runs, and copies in a remote place.

Reports and MLflow are imported where they are used: loading them would hold up the first model call of a job by seconds.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict

import orjson
from rich.console import Group, RenderableType

from heldout.errors import HeldoutError, MetricError
from heldout.job.document import JobConfigDocument, MlflowDetails, ServiceOutput
from heldout.pipeline.evaluation import Evaluation
from heldout.report.finding import Finding
from heldout.rollouts.mirror import Mirror
from heldout.rollouts.results import metrics_document, summarize_run
from heldout.rollouts.run import BASE_RUN, FINE_TUNED_RUN, JobStatus, Run
from heldout.storage import is_remote

COMPARISON_FILE = "comparison.json"
REPORT_FILE = "report.html"

Note = Callable[[str], None]
"""Takes one line that a person must know and nothing fails for."""


async def finish_run(run: Run, tags: Mapping[str, str], note: Note, say: Callable[[str], None]) -> None:
    """Writes the report of a run that is done, and logs it to MLflow, with these tags, where its job says so."""
    await asyncio.to_thread(_finish, run, tags, note, say)


async def publish(run: Run) -> None:
    """Copies a run whose place is remote there: of one that is not done, also what it needs to be resumed elsewhere."""
    if is_remote(run.location):
        await Mirror(run, run.location, kms_key=run.kms_key).finish()


def compare_evaluation(evaluation: Evaluation, note: Note) -> None:
    """Writes comparison and report of an evaluation that has two runs; notes why not, where they cannot be compared."""
    from heldout.report.page import write_evaluation_report
    from heldout.rollouts.comparing import compare_runs, comparison_document, prompt_texts

    runs = evaluation.runs()
    if BASE_RUN not in runs or FINE_TUNED_RUN not in runs:
        return
    base, fine_tuned = runs[BASE_RUN], runs[FINE_TUNED_RUN]
    try:
        comparison = compare_runs(base, fine_tuned)
    except MetricError as error:
        note(f"no comparison: {error}")
        return
    document = comparison_document(comparison, prompt_texts(comparison, base))
    evaluation.write(COMPARISON_FILE, orjson.dumps(document, option=orjson.OPT_INDENT_2))
    report = write_evaluation_report(base, fine_tuned, comparison, evaluation.folder / REPORT_FILE)
    evaluation.write(REPORT_FILE, report.read_bytes())
    _log_comparison(evaluation, base, fine_tuned, note)


def evaluation_results(evaluation: Evaluation) -> RenderableType:
    """Each run's numbers, the comparison where there are two, and what to know, for a terminal or a notebook."""
    from heldout.report import judgements
    from heldout.rollouts.comparing import compare_runs, prompt_texts

    runs = {name: run for name, run in evaluation.runs().items() if _has_rollouts(run)}
    parts: list[RenderableType] = []
    for run in runs.values():
        parts += [run_results(run), ""]
    if (evaluation.folder / COMPARISON_FILE).exists() and len(runs) == 2:
        comparison = compare_runs(runs[BASE_RUN], runs[FINE_TUNED_RUN])
        parts += [judgements.comparison(comparison, prompt_texts(comparison, runs[BASE_RUN])), ""]
    parts += [f"! {note}" for note in evaluation.state.notes]
    if evaluation.state.failure_reason:
        parts.append(f"! {evaluation.status}: {evaluation.state.failure_reason}")
    return Group(*parts, f"evaluation {evaluation.location}")


def run_results(run: Run, *, training: str | None = None) -> RenderableType:
    """One run's numbers and what to know of them. training: a dataset to look for held-out prompts in."""
    from heldout.report.terminal import results

    title = f"{run.state.name}/{run.state.run_name}"
    found = _findings(run, training)
    return results(summarize_run(run), found, title=title, where=run.location, is_partial=_is_partial(run))


def run_document(run: Run, *, training: str | None = None) -> dict[str, object]:
    """One run's numbers and findings as JSON. training: a dataset to look for held-out prompts in."""
    numbers = metrics_document(summarize_run(run), is_partial=_is_partial(run))
    found = [asdict(finding) for finding in _findings(run, training)]
    return {"run": run.location, "status": run.state.status, **numbers, "findings": found}


def _findings(run: Run, training: str | None) -> list[Finding]:
    from heldout.report.findings import find
    from heldout.rollouts.recorded import open_tables

    if not _has_rollouts(run):
        return []
    with open_tables(run) as folder:
        return find(folder, run.document.hyperparameters, prompts=run.prompts_path, training=training)


def evaluation_document(evaluation: Evaluation) -> dict[str, object]:
    """An evaluation's numbers as JSON: its runs by name, and `comparison.json`."""
    path = evaluation.folder / COMPARISON_FILE
    runs = {name: run_document(run) for name, run in evaluation.runs().items() if _has_rollouts(run)}
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


def _has_rollouts(run: Run) -> bool:
    return run.has_journal or run.rollouts_path.exists()


def _finish(run: Run, tags: Mapping[str, str], note: Note, say: Callable[[str], None]) -> None:
    from heldout.report.page import write_report

    write_report(run)
    config = run.document.output_data_config.mlflow_config
    if config is None:
        return
    say(f"logging {run.state.run_name} to MLflow")
    from heldout.tracking.mlflow import log_run

    try:
        logged = log_run(
            run.folder,
            tracking_uri=config.mlflow_resource_arn,
            experiment_name=config.mlflow_experiment_name or run.state.name,
            run_name=config.mlflow_run_name or run.state.run_name,
            tags=tags,
        )
    except HeldoutError as error:
        # The results are there and whole; what is lost is a copy of them.
        note(f"not logged to MLflow: {error}")
        return
    details = MlflowDetails(
        experiment_name=logged.experiment_name,
        experiment_id=logged.experiment_id,
        run_name=logged.run_name,
        run_id=logged.run_id,
    )
    output = run.document.service_output or ServiceOutput()
    _replace_document(
        run, run.document.model_copy(update={"service_output": output.model_copy(update={"mlflow_details": details})})
    )


def _log_comparison(evaluation: Evaluation, base: Run, fine_tuned: Run, note: Note) -> None:
    config = fine_tuned.document.output_data_config.mlflow_config
    is_logged = all(run.document.service_output is not None for run in (base, fine_tuned))
    if config is None or not is_logged:
        return
    from heldout.tracking.mlflow import log_comparison

    try:
        log_comparison(
            evaluation.folder / COMPARISON_FILE,
            base=base.folder,
            fine_tuned=fine_tuned.folder,
            tracking_uri=config.mlflow_resource_arn,
        )
    except HeldoutError as error:
        note(f"comparison not logged to MLflow: {error}")


def _replace_document(run: Run, document: JobConfigDocument) -> None:
    run.document = document
    run.update(document=orjson.loads(document.to_json()))
