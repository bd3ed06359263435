"""Jobs of SageMaker: created, described, listed, stopped and deleted."""

from heldout.pipeline.definition import JOB_CATEGORY, JOB_SCHEMA_VERSION
from heldout.service.context import Context
from heldout.service.faults import not_found
from heldout.service.operations import Params, Reply, Room
from heldout.service.paging import paged

ROOM = Room("sagemaker")


@ROOM.operation("ListJobSchemaVersions")
def list_job_schema_versions(context: Context, params: Params) -> Reply:
    """The versions of the document that jobs of a category take."""
    _check_category(params["JobCategory"])
    versions = [{"JobConfigSchemaVersion": JOB_SCHEMA_VERSION}]
    return paged("JobConfigSchemas", versions, params, {"Version": "JobConfigSchemaVersion"})


def _check_category(category: str) -> None:
    if category != JOB_CATEGORY:
        raise not_found(f"jobs of category {category!r} are not served here; {JOB_CATEGORY!r} are")
