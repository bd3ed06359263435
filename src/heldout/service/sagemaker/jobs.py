"""Job operations: create, describe, list, stop and delete. Jobs of pipelines are included."""

import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from heldout.backends.local.detached import is_concluded
from heldout.errors import HeldoutError, RunError
from heldout.job.schema import document_schema
from heldout.pipeline.definition import JOB_CATEGORY, JOB_SCHEMA_VERSION
from heldout.runs.remote_mirror import folder_for, has_run, new_folder
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN, Run
from heldout.service.context import Context
from heldout.service.sagemaker import executions
from heldout.service.sagemaker.documents import check_category, parse_document, playable
from heldout.service.sagemaker.execution_views import find_step_job, step_jobs
from heldout.service.sagemaker.job_views import Job, JobArguments, JobState
from heldout.service.store import Record
from heldout.service.supervisor import JobWork, SupervisedJob
from heldout.service.tags import forget_tags, set_tags, tags_of
from heldout.service.wire.faults import ServiceError, invalid, not_found
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import between, paged

OPERATIONS = OperationTable[Context]("sagemaker")
_SORT_KEYS = {"CreationTime": "CreationTime", "Name": "JobName", "Status": "JobStatus", "": "JobArn"}
_RUN_FILTERS = frozenset({"StatusEquals", "LastModifiedTimeAfter", "LastModifiedTimeBefore"})
"""Filters of ListJobs that need each job's run, not only its record."""
_MAX_NAME_CHARACTERS = 63
_log = logging.getLogger(__name__)


class JobRecord(SupervisedJob):
    """A job outside pipelines: everything that its run's folder does not hold."""

    name: str
    role: str
    document: str
    """The JSON text of the request."""
    output: str
    """Output location. The run is at OUTPUT/GROUP/RUN_NAME."""
    group: str
    """The job's name, with a number appended if an earlier job of that name left its run there."""
    run_name: str
    created_at: float

    @property
    def key(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """The run's folder on this machine."""
        return folder_for(f"{self.output}/{self.group}/{self.run_name}")


class DeletedJob(Record):
    """A deleted job. The record makes a second deletion succeed, and hides a deleted job of a pipeline from lists."""

    name: str

    @property
    def key(self) -> str:
        return self.name


@OPERATIONS.operation("CreateJob")
def create_job(context: Context, params: Params) -> Reply:
    """Starts a job in a process of its own."""
    check_category(params["JobCategory"], is_new=True)
    _check_version(params["JobConfigSchemaVersion"], is_new=True)
    name = params["JobName"]
    document = parse_document(params["JobConfigDocument"])
    output = playable(context, document).output
    run_name = BASE_RUN if document.model_package_config is None else FINE_TUNED_RUN
    try:
        group = _free_group(output, name, run_name)
    except (HeldoutError, OSError) as error:
        raise invalid(f"JobConfigDocument: {error}") from error
    record = JobRecord(
        name=name,
        arn=context.arn(f"job/{JOB_CATEGORY}/{name}"),
        role=params["RoleArn"],
        document=params["JobConfigDocument"],
        output=output,
        group=group,
        run_name=run_name,
        created_at=time.time(),
    )
    with context.store.transaction():
        if find_job(context, name) is not None:
            raise ServiceError("ResourceInUse", f"a job {name!r} of category {JOB_CATEGORY} already exists")
        context.store.remove(DeletedJob, name)
        context.store.put(record)
        set_tags(context.store, record.arn, params.get("Tags"))
    try:
        _make(context, record)
    except (HeldoutError, OSError) as error:
        _forget(context, record)
        raise invalid(f"JobConfigDocument: {error}") from error
    context.supervisor.supervise(record, _work(context, record))
    return {"JobArn": record.arn}


@OPERATIONS.operation("DescribeJob")
def describe_job(context: Context, params: Params) -> Reply:
    """Describes a job and its progress."""
    return _requested(context, params).description()


@OPERATIONS.operation("ListJobs")
def list_jobs(context: Context, params: Params) -> Reply:
    """Lists the jobs that pass the request's filters, newest first. Other categories have no jobs."""
    jobs = jobs_named(context) if params["JobCategory"] == JOB_CATEGORY else []
    contained, status = params.get("NameContains", ""), params.get("StatusEquals")
    found = [job.entry() for job in jobs if contained in job.name]
    found = between(found, params, "CreationTime", "CreationTimeAfter", "CreationTimeBefore")
    if _RUN_FILTERS.isdisjoint(params) and params.get("SortBy") != "Status":
        # Only the runs of the jobs on the page are read.
        return paged("JobSummaries", found, params, _SORT_KEYS, is_descending=True, view=_summary)
    found = [_summary(entry) for entry in found]
    found = [job for job in found if status in (None, job["JobStatus"])]
    found = between(found, params, "LastModifiedTime", "LastModifiedTimeAfter", "LastModifiedTimeBefore")
    return paged("JobSummaries", found, params, _SORT_KEYS, is_descending=True)


@OPERATIONS.operation("StopJob")
def stop_job(context: Context, params: Params) -> Reply:
    """Stops a job. Rollouts in flight may finish for two minutes. Stopping a pipeline's job stops its execution."""
    job = _requested(context, params)
    if job.status.is_final:
        raise invalid(f"job {job.name!r} is {job.status.status}; only one that is InProgress can be stopped")
    if context.store.find(JobRecord, job.name) is None:
        executions.stop_execution_of(context, job.arn)
    else:
        context.store.change(JobRecord, job.name, is_stopping=True)
        context.supervisor.stop(job.arn)
    return {}


@OPERATIONS.operation("DeleteJob")
def delete_job(context: Context, params: Params) -> Reply:
    """Deletes a job. Its run stays at its output location."""
    check_category(params["JobCategory"])
    name = params["JobName"]
    with context.store.transaction():
        if context.store.find(DeletedJob, name) is not None:
            return {}
        job = _requested(context, params)
        if not job.status.is_final:
            raise ServiceError("ResourceInUse", f"job {name!r} is {job.status.status}; stop it first (StopJob)")
        context.store.remove(JobRecord, name)
        context.store.put(DeletedJob(name=name))
        forget_tags(context.store, job.arn)
    return {}


@OPERATIONS.operation("ListJobSchemaVersions")
def list_job_schema_versions(context: Context, params: Params) -> Reply:
    """Lists the document versions of a job category."""
    check_category(params["JobCategory"])
    versions = [{"JobConfigSchemaVersion": JOB_SCHEMA_VERSION}]
    return paged("JobConfigSchemas", versions, params, {"": "JobConfigSchemaVersion"})


@OPERATIONS.operation("DescribeJobSchemaVersion")
def describe_job_schema_version(context: Context, params: Params) -> Reply:
    """Returns the JSON Schema that CreateJob checks documents against."""
    check_category(params["JobCategory"])
    _check_version(params.get("JobConfigSchemaVersion", JOB_SCHEMA_VERSION))
    return {
        "JobCategory": JOB_CATEGORY,
        "JobConfigSchemaVersion": JOB_SCHEMA_VERSION,
        "JobConfigSchema": json.dumps(document_schema()),
    }


def find_job(context: Context, name: str) -> Job | None:
    """The job of this name; None if it does not exist or was deleted."""
    record = context.store.find(JobRecord, name)
    if record is not None:
        return _job(context, record)
    if context.store.find(DeletedJob, name) is not None:
        return None
    return find_step_job(context, name)


def jobs_named(context: Context, prefix: str = "") -> list[Job]:
    """Jobs whose names begin with `prefix`, including those of pipelines."""
    deleted = {job.name for job in context.store.all(DeletedJob)}
    own = [_job(context, record) for record in context.store.all(JobRecord, prefix)]
    return own + [job for job in step_jobs(context, prefix) if job.name not in deleted]


def run_of(context: Context, arn: str) -> Run | None:
    """The run of the job with this ARN; None if the job does not exist or its run is missing."""
    job = find_job(context, arn.rpartition("/")[2])
    return None if job is None or job.arn != arn else job.run


def unfinished(context: Context) -> list[Callable[[], None]]:
    """One function for each job, which resumes the job unless it has ended or a process works on it."""
    return [functools.partial(_resume, context, record.name) for record in context.store.all(JobRecord)]


def _resume(context: Context, name: str) -> None:
    record = context.store.find(JobRecord, name)
    if record is None:
        return  # deleted meanwhile
    try:
        if not record.is_made:
            _make(context, record)
    except (ServiceError, HeldoutError, OSError) as error:
        _log.warning("job %s was not resumed: %s", name, error)
        return
    # Also without its folder, which may be away for a moment.
    context.supervisor.supervise(record, _work(context, record))


def _summary(entry: Reply) -> Reply:
    job: Job = entry["Job"]
    return job.summary()


def _state(record: JobRecord) -> JobState:
    try:
        run = Run.open(record.folder)
    except RunError:
        return JobState(None, record.is_made)
    return JobState(run, is_concluded(run))


def _job(context: Context, record: JobRecord) -> Job:
    return Job(
        name=record.name,
        arn=record.arn,
        role=record.role,
        created_at=record.created_at,
        is_stopping=record.is_stopping,
        run_name=record.run_name,
        folder_of=lambda: record.folder,
        arguments_of=lambda: JobArguments(record.document, tags_of(context.store, record.arn)),
        state_of=lambda: _state(record),
    )


def _requested(context: Context, params: Params) -> Job:
    check_category(params["JobCategory"])
    job = find_job(context, params["JobName"])
    if job is None:
        raise not_found(f"job {params['JobName']!r} of category {JOB_CATEGORY} does not exist")
    return job


def _make(context: Context, record: JobRecord) -> None:
    if not (record.folder / "job.json").exists():
        Run.create(
            new_folder(f"{record.output}/{record.group}/{record.run_name}"),
            name=record.group,
            run_name=record.run_name,
            region=context.region,
            document=playable(context, parse_document(record.document)).document,
            job_name=record.name,
        )
    context.store.change(JobRecord, record.key, is_made=True)


def _forget(context: Context, record: JobRecord) -> None:
    with context.store.transaction():
        context.store.remove(JobRecord, record.name)
        forget_tags(context.store, record.arn)


def _work(context: Context, record: JobRecord) -> JobWork:
    return JobWork(record.folder, tags_of(context.store, record.arn))


def _free_group(output: str, name: str, run_name: str) -> str:
    group, number = name, 1
    while has_run(f"{output}/{group}/{run_name}"):
        number += 1
        group = f"{name[: _MAX_NAME_CHARACTERS - len(str(number)) - 1].rstrip('-')}-{number}"
    return group


def _check_version(version: str, *, is_new: bool = False) -> None:
    if version != JOB_SCHEMA_VERSION:
        message = f"JobConfigSchemaVersion {version!r} does not exist for {JOB_CATEGORY}; {JOB_SCHEMA_VERSION!r} does"
        raise invalid(message) if is_new else not_found(message)
