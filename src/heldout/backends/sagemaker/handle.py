"""The handle on an evaluation that runs as a pipeline of managed jobs: read from the service, the output and MLflow.

Without tables of rollouts in the output there are no intervals, no comparison and no trajectories, and the metrics
are those that the jobs logged to MLflow.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from heldout.backends.base import JobProgress, LogLine, PipelineExecutionStatus, StartedEvaluation, StepDetail
from heldout.backends.results import metrics_so_far, run_results
from heldout.backends.sagemaker.account import Account, pages, translated_errors
from heldout.backends.sagemaker.job_logs import JobLogs, JobToLookAt
from heldout.backends.sagemaker.job_steps import JobStep, job_steps, service_output
from heldout.backends.sagemaker.mlflow_apps import run_link
from heldout.backends.sagemaker.outputs import run_of
from heldout.errors import CloudError, HeldoutError, MetricError, RunError
from heldout.job.registry import Registry
from heldout.metrics.comparison import Comparison
from heldout.pipeline.definition import JOB_CATEGORY
from heldout.report import comparison_tables
from heldout.runs.comparison import compare_runs, comparison_document, prompt_texts
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN, Run
from heldout.tracking.connection import logged_metrics


class CloudEvaluation(StartedEvaluation):
    """A handle on one pipeline execution."""

    def __init__(self, account: Account, arn: str, registry: Registry | None = None) -> None:
        """Reads its status. Raises ReferenceProblem when it does not exist, CloudError when AWS refuses an answer."""
        self._account = account
        self._arn = arn
        self._registry = registry or Registry()
        self._definition: Mapping[str, Any] | None = None
        self._logs = JobLogs(account)
        self.refresh()

    @property
    def name(self) -> str:
        return str(self._described.get("PipelineExecutionDisplayName") or self._arn.rpartition("/")[2])

    @property
    def arn(self) -> str:
        return self._arn

    @property
    def path(self) -> str:
        """The output: the service chooses the place within it."""
        return self.output

    @property
    def output(self) -> str:
        steps = self._job_steps()
        return steps[-1].output if steps else ""

    @property
    def status(self) -> PipelineExecutionStatus:
        return self._status

    @property
    def poll_seconds(self) -> float:
        return 5.0

    @property
    def changed_at(self) -> datetime:
        return _aware(self._described["LastModifiedTime"])

    @property
    def definition(self) -> Mapping[str, Any]:
        if self._definition is None:
            with translated_errors(f"the definition of {self._arn}"):
                described = self._account.sagemaker.describe_pipeline_definition_for_execution(
                    PipelineExecutionArn=self._arn
                )
            self._definition = dict(json.loads(described["PipelineDefinition"]))
        return self._definition

    @property
    def planned_steps(self) -> Sequence[str]:
        return [step["Name"] for step in self.definition["Steps"]]

    def refresh(self) -> None:
        client = self._account.sagemaker
        absent = (
            f"evaluation {self._arn!r} does not exist in {self._account.region}, nor was it started on this machine"
        )
        with translated_errors(f"evaluation {self._arn}", absent=absent):
            self._described: Mapping[str, Any] = client.describe_pipeline_execution(PipelineExecutionArn=self._arn)
            listed = pages(client.list_pipeline_execution_steps, PipelineExecutionArn=self._arn, SortOrder="Ascending")
            steps = tuple(_detail(step) for page in listed for step in page["PipelineExecutionSteps"])
        status = self._described["PipelineExecutionStatus"]
        reason = self._described.get("FailureReason") or next(
            (s.failure_reason for s in steps if s.failure_reason), None
        )
        # A newer status of the service, for an execution with failed branches; ours have one branch.
        self._status = PipelineExecutionStatus("Failed" if status == "CompletedWithFailures" else status, steps, reason)

    def stop(self) -> None:
        """Asks a running execution to stop. Has no effect on one that is not running."""
        self.refresh()
        if self.status.overall_status == "Executing":
            with translated_errors(f"evaluation {self._arn}"):
                self._account.sagemaker.stop_pipeline_execution(PipelineExecutionArn=self._arn)
            self.refresh()

    def resume(self, *, allow_changes: bool = False) -> None:  # noqa: ARG002
        """Raises RunError: the service cannot resume jobs, only start new ones."""
        raise RunError(
            f"evaluation {self.name} runs as managed jobs, which cannot be resumed; start another with evaluate()"
        )

    def progress(self) -> JobProgress | None:
        playing = next((step for step in self.status.step_details if step.job_arn and step.end_time is None), None)
        if playing is None:
            return None
        try:
            job = self._job(playing.job_arn or "")
        except CloudError as error:
            return JobProgress(0, 0, str(error))  # shown instead of the progress; the wait continues
        steps = service_output(job).get("ProgressInfo") or {}
        planned, finished = int(steps.get("MaxSteps") or 0), int(steps.get("CurrentStep") or 0)
        parts = [str(job.get("SecondaryStatus") or job.get("JobStatus"))]
        if planned:
            parts.append(f"{finished} of {planned} rollouts")
        if message := next((t["StatusMessage"] for t in _latest_first(job) if t.get("StatusMessage")), None):
            parts.append(" ".join(message.split()))
        return JobProgress(planned, finished, ", ".join(parts))

    def new_log_lines(self) -> Sequence[LogLine]:
        """New lines of every job that has begun, from CloudWatch Logs."""
        ended_at = {step.name: step.end_time for step in self.status.step_details}
        return self._logs.new_lines(
            [JobToLookAt(step.run_name, arn, ended_at[step.name]) for step, arn in self._begun_jobs()]
        )

    def where_to_look(self) -> str:
        return f"the failed job in the SageMaker console: {self._arn}"

    def runs(self) -> Mapping[str, Run]:
        found = {
            step.run_name: run_of(
                self._account, job_arn=arn, output=step.output, likely=self.name, registry=self._registry
            )
            for step, arn in self._begun_jobs()
        }
        return {name: run for name, run in found.items() if run is not None}

    def pair(self) -> tuple[Run, Run] | None:
        runs = self.runs()
        return (runs[BASE_RUN], runs[FINE_TUNED_RUN]) if {BASE_RUN, FINE_TUNED_RUN} <= runs.keys() else None

    def metrics(self) -> Mapping[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        runs = self._played()
        for step, arn in self._begun_jobs():
            if (run := runs.get(step.run_name)) is not None:
                found[step.run_name] = metrics_so_far(run)
            elif logged := self._logged(step, arn):
                found[step.run_name] = logged
        return found

    def comparison(self) -> dict[str, Any] | None:
        runs = self._played()
        compared = self._compared(runs)
        return None if compared is None else comparison_document(compared, prompt_texts(compared, runs[BASE_RUN]))

    def mlflow_url(self) -> str | None:
        for step, arn in reversed(self._begun_jobs()):
            if step.mlflow_arn is not None:
                details = service_output(self._job(arn)).get("MlflowDetails") or {}
                return run_link(self._account, step.mlflow_arn, details)
        return None

    def results(self) -> RenderableType:
        runs, parts, unread = dict[str, Run](), list[RenderableType](), None
        try:
            runs.update(self._played())
        except CloudError as error:  # without permission to read the output, the metrics come from MLflow
            unread = str(error)
        for step, arn in self._begun_jobs():
            run = runs.get(step.run_name)
            parts += [self._logged_results(step, arn, unread) if run is None else run_results(run), ""]
        if (compared := self._compared(runs)) is not None:
            parts += [comparison_tables.comparison(compared, prompt_texts(compared, runs[BASE_RUN])), ""]
        if self.status.failure_reason:
            parts.append(f"! {self.status.overall_status}: {self.status.failure_reason}")
        return Group(*(parts or [f"{self.name}: {self.status.overall_status}; no job has begun"]))

    def document(self) -> dict[str, object]:
        return {
            "evaluation": self.path,
            "arn": self.arn,
            "status": self.status.overall_status,
            "failure_reason": self.status.failure_reason,
            "runs": dict(self.metrics()),
            "comparison": self.comparison(),
            "notes": [],
        }

    def _played(self) -> Mapping[str, Run]:
        """The runs with rollouts. A job that failed at its start may have left an empty folder."""
        return {name: run for name, run in self.runs().items() if run.has_rollouts}

    def _compared(self, runs: Mapping[str, Run]) -> Comparison | None:
        """The comparison. None for an evaluation of one model, an unfinished one, or one whose runs share no prompt."""
        if self.status.overall_status != "Succeeded" or not {BASE_RUN, FINE_TUNED_RUN} <= runs.keys():
            return None
        try:
            return compare_runs(runs[BASE_RUN], runs[FINE_TUNED_RUN])
        except MetricError:
            return None

    def _logged_results(self, step: JobStep, arn: str, unread: str | None) -> RenderableType:
        try:
            logged = self._logged(step, arn)
        except HeldoutError as error:
            return _nothing_to_show(step, unread, str(error))
        return _nothing_to_show(step, unread, None) if logged is None else _logged_table(step, unread, logged)

    def _logged(self, step: JobStep, arn: str) -> dict[str, Any] | None:
        """The metrics that a job logged to MLflow, in the form of `metrics.json`; None if it logged none.

        Raises MissingExtra without the plugin for SageMaker ARNs, StorageError when MLflow refuses an answer.
        """
        run_id = (service_output(self._job(arn)).get("MlflowDetails") or {}).get("RunId")
        if step.mlflow_arn is None or not run_id:
            return None
        metrics = logged_metrics(step.mlflow_arn, run_id)
        return {"metrics": metrics, "intervals": {}, "partial": self.status.overall_status != "Succeeded"}

    def _job_steps(self) -> list[JobStep]:
        return job_steps(self.definition)

    def _begun_jobs(self) -> list[tuple[JobStep, str]]:
        """The job steps that have begun, each with the ARN of its job."""
        arns = {step.name: step.job_arn for step in self.status.step_details}
        return [(step, arn) for step in self._job_steps() if (arn := arns.get(step.name))]

    def _job(self, arn: str) -> Mapping[str, Any]:
        with translated_errors(f"job {arn}"):
            described: Mapping[str, Any] = self._account.sagemaker.describe_job(
                JobName=arn.rpartition("/")[2], JobCategory=JOB_CATEGORY
            )
        return described


def _detail(step: Mapping[str, Any]) -> StepDetail:
    return StepDetail(
        name=step["StepName"],
        status=step["StepStatus"],
        start_time=_aware(step["StartTime"]) if "StartTime" in step else None,
        end_time=_aware(step["EndTime"]) if "EndTime" in step else None,
        job_arn=step.get("Metadata", {}).get("Job", {}).get("Arn"),
        failure_reason=step.get("FailureReason"),
    )


def _nothing_to_show(step: JobStep, unread: str | None, problem: str | None) -> RenderableType:
    """A line that there are no metrics, with the problems of reading the output and MLflow, if there were any."""
    why = "and it logged nothing to MLflow" if problem is None else f"and MLflow could not be read: {problem}"
    return f"{step.run_name}: {f'no rollouts in {step.output}' if unread is None else unread}, {why}"


def _logged_table(step: JobStep, unread: str | None, logged: Mapping[str, Any]) -> RenderableType:
    """The metrics that a job logged to MLflow. unread: the problem of reading its output, if there was one."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", header_style="dim")
    table.add_column("value", header_style="dim", justify="right")
    for name, value in sorted(logged["metrics"].items()):
        table.add_row(name, f"{value:.4g}")
    note = "! logged by the service; without a table of rollouts there are no intervals"
    return Group(f"{step.run_name} (MLflow)", table, note if unread is None else f"{note}: {unread}")


def _latest_first(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(reversed(job.get("SecondaryStatusTransitions", ())))


def _aware(time: datetime) -> datetime:
    return time.astimezone(UTC)
