"""Model packages and their groups: the registry's packages, described as fine-tuned models, and groups that clients create."""

import re
import time
from datetime import UTC, datetime
from typing import NamedTuple

from heldout.errors import did_you_mean
from heldout.job.kinds.hub_model import hub_content_name
from heldout.service.context import REGISTRY_CREATED_AT, Context
from heldout.service.sagemaker.hub import VERSION, model_names
from heldout.service.store import Record
from heldout.service.tags import forget_tags, set_tags
from heldout.service.wire.faults import ServiceError, invalid
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import between, paged

OPERATIONS = OperationTable[Context]("sagemaker")

_PACKAGE_KEYS = {"CreationTime": "CreationTime", "Name": "ModelPackageName", "": "ModelPackageArn"}
_GROUP_KEYS = {"CreationTime": "CreationTime", "Name": "ModelPackageGroupName"}
_ARN = re.compile(r"arn:[^:]+:sagemaker:[^:]*:\d{12}:model-package/(?P<name>[^/]+)(?:/(?P<version>\d{1,9}))?")


class _Package(NamedTuple):
    arn: str
    group: str | None
    """None for an unversioned package."""
    version: int | None
    name: str


class _Group(Record):
    name: str
    description: str | None
    created_at: float

    @property
    def key(self) -> str:
        return self.name


@OPERATIONS.operation("DescribeModelPackage")
async def describe_model_package(context: Context, params: Params) -> Reply:
    """Describes a package of the registry by its ARN or by its name and version. Includes its base model as fine-tuning does."""
    package = _find(context, params["ModelPackageName"])
    entry = context.registry.model_packages[package.arn]
    base = hub_content_name(entry.base_model or "")
    reply = _package_summary(package) | {
        "ModelPackageStatusDetails": {"ValidationStatuses": []},
        "LastModifiedTime": REGISTRY_CREATED_AT,
    }
    if base in model_names(context):
        model = {"HubContentName": base, "HubContentVersion": VERSION}
        reply["InferenceSpecification"] = {
            "Containers": [{"BaseModel": model}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        }
    return reply


@OPERATIONS.operation("ListModelPackages")
async def list_model_packages(context: Context, params: Params) -> Reply:
    """Lists the registry's packages: those of a group, or those of the requested `ModelPackageType` (default: unversioned)."""
    group = _name_of(params["ModelPackageGroupName"]) if "ModelPackageGroupName" in params else None
    kind = params.get("ModelPackageType", "Versioned" if group else "Unversioned")
    found = [
        package
        for package in _packages(context)
        if kind in ("Both", "Unversioned" if package.group is None else "Versioned") and group in (None, package.group)
    ]
    if params.get("ModelApprovalStatus", "Approved") != "Approved":
        found = []
    summaries = _matching([_package_summary(package) for package in found], "ModelPackageName", params)
    return paged("ModelPackageSummaryList", summaries, params, _PACKAGE_KEYS)


@OPERATIONS.operation("CreateModelPackageGroup")
def create_model_package_group(context: Context, params: Params) -> Reply:
    """Creates an empty group. Packages come from the registry only."""
    name = params["ModelPackageGroupName"]
    with context.store.transaction():
        if name in _groups(context):
            raise invalid(f"model package group {name!r} already exists")
        description = params.get("ModelPackageGroupDescription")
        context.store.put(_Group(name=name, description=description, created_at=time.time()))
        arn = context.arn(f"model-package-group/{name}")
        set_tags(context.store, arn, params.get("Tags"))
    return {"ModelPackageGroupArn": arn}


@OPERATIONS.operation("DescribeModelPackageGroup")
def describe_model_package_group(context: Context, params: Params) -> Reply:
    """Describes a group by its name or ARN."""
    name = _name_of(params["ModelPackageGroupName"])
    groups = _groups(context)
    if name not in groups:
        raise _no_group(name, groups)
    return _group_summary(context, groups[name]) | {"CreatedBy": {}}


@OPERATIONS.operation("ListModelPackageGroups")
def list_model_package_groups(context: Context, params: Params) -> Reply:
    """Lists the groups of the registry's packages and those that clients created."""
    groups = [_group_summary(context, group) for group in _groups(context).values()]
    groups = _matching(groups, "ModelPackageGroupName", params)
    return paged("ModelPackageGroupSummaryList", groups, params, _GROUP_KEYS)


@OPERATIONS.operation("DeleteModelPackageGroup")
def delete_model_package_group(context: Context, params: Params) -> Reply:
    """Deletes a group that a client created. A group with packages cannot be deleted."""
    name = _name_of(params["ModelPackageGroupName"])
    if name not in (groups := _groups(context)):
        raise _no_group(name, groups)
    if any(package.group == name for package in _packages(context)):
        raise ServiceError(
            "ConflictException", f"model package group {name!r} has packages; remove them from the registry"
        )
    with context.store.transaction():
        context.store.remove(_Group, name)
        forget_tags(context.store, context.arn(f"model-package-group/{name}"))
    return {}


def package_arns(context: Context) -> set[str]:
    """ARNs of the registry's packages and of all groups."""
    return {package.arn for package in _packages(context)} | {_group_arn(context, name) for name in _groups(context)}


def _matching(items: list[Reply], name: str, params: Params) -> list[Reply]:
    """Applies the filters that both list operations share."""
    named = [item for item in items if params.get("NameContains", "") in item[name]]
    return between(named, params, "CreationTime", "CreationTimeAfter", "CreationTimeBefore")


def _packages(context: Context) -> list[_Package]:
    parsed = (_parsed(arn) for arn in context.registry.model_packages)
    return [package for package in parsed if package is not None]


def _parsed(arn: str) -> _Package | None:
    if (found := _ARN.fullmatch(arn)) is None:
        return None
    name, version = found["name"], found["version"]
    return _Package(arn, name if version else None, int(version) if version else None, name)


def _find(context: Context, given: str) -> _Package:
    packages = _packages(context)
    for package in packages:
        named = package.name if package.version is None else f"{package.name}/{package.version}"
        if given in (package.arn, named):
            return package
    arns = [package.arn for package in packages]
    raise invalid(
        f"ModelPackage {given} does not exist; the registry maps {', '.join(arns) or 'none'}.{did_you_mean(given, arns)}"
    )


def _package_summary(package: _Package) -> Reply:
    return {
        "ModelPackageName": package.name,
        "ModelPackageGroupName": package.group,
        "ModelPackageVersion": package.version,
        "ModelPackageArn": package.arn,
        "CreationTime": REGISTRY_CREATED_AT,
        "ModelPackageStatus": "Completed",
        "ModelApprovalStatus": "Approved",
    }


def _groups(context: Context) -> dict[str, _Group]:
    mapped = {
        package.group: _Group(name=package.group, description=None, created_at=REGISTRY_CREATED_AT.timestamp())
        for package in _packages(context)
        if package.group is not None
    }
    return mapped | {group.name: group for group in context.store.all(_Group)}


def _group_summary(context: Context, group: _Group) -> Reply:
    return {
        "ModelPackageGroupName": group.name,
        "ModelPackageGroupArn": _group_arn(context, group.name),
        "ModelPackageGroupDescription": group.description,
        "CreationTime": datetime.fromtimestamp(group.created_at, UTC),
        "ModelPackageGroupStatus": "Completed",
    }


def _group_arn(context: Context, name: str) -> str:
    """The ARN of a group, in the account of the registry's packages of this group if there are any."""
    for package in _packages(context):
        if package.group == name:
            return package.arn.rpartition("/")[0].replace(":model-package/", ":model-package-group/")
    return context.arn(f"model-package-group/{name}")


def _name_of(name_or_arn: str) -> str:
    return name_or_arn.rpartition("/")[2]


def _no_group(name: str, groups: dict[str, _Group]) -> ServiceError:
    return invalid(f"ModelPackageGroup {name} does not exist.{did_you_mean(name, groups)}")
