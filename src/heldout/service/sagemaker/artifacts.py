"""Lineage artifacts that clients create, such as one for the model they evaluate. Run folders hold the lineage itself."""

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

from heldout.service.context import Context
from heldout.service.store import Record
from heldout.service.wire.faults import not_found
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import between, paged

OPERATIONS = OperationTable[Context]("sagemaker")


class _Artifact(Record):
    arn: str
    name: str | None
    kind: str
    source: dict[str, Any]
    properties: dict[str, str]
    created_at: float

    @property
    def key(self) -> str:
        return self.arn


@OPERATIONS.operation("CreateArtifact")
def create_artifact(context: Context, params: Params) -> Reply:
    """Creates an artifact. The same source, type and name give the same artifact."""
    source, kind, name = params["Source"], params["ArtifactType"], params.get("ArtifactName")
    digest = hashlib.sha256("\0".join((source["SourceUri"], kind, name or "")).encode()).hexdigest()[:32]
    arn = context.arn(f"artifact/{digest}")
    if context.store.find(_Artifact, arn) is None:
        properties = dict(params.get("Properties", {}))
        context.store.put(
            _Artifact(arn=arn, name=name, kind=kind, source=source, properties=properties, created_at=time.time())
        )
    return {"ArtifactArn": arn}


@OPERATIONS.operation("DescribeArtifact")
def describe_artifact(context: Context, params: Params) -> Reply:
    """Describes an artifact by its ARN."""
    artifact = context.store.find(_Artifact, params["ArtifactArn"])
    if artifact is None:
        raise not_found(f"artifact {params['ArtifactArn']!r} does not exist")
    return _summary(artifact) | {"Properties": artifact.properties}


@OPERATIONS.operation("ListArtifacts")
def list_artifacts(context: Context, params: Params) -> Reply:
    """Lists artifacts, optionally of one source URI and one type."""
    uri, kind = params.get("SourceUri"), params.get("ArtifactType")
    found = [
        _summary(artifact)
        for artifact in context.store.all(_Artifact)
        if uri in (None, artifact.source["SourceUri"]) and kind in (None, artifact.kind)
    ]
    found = between(found, params, "CreationTime", "CreatedAfter", "CreatedBefore")
    return paged("ArtifactSummaries", found, params, {"CreationTime": "CreationTime", "": "ArtifactArn"}, size=10)


def _summary(artifact: _Artifact) -> Reply:
    created = datetime.fromtimestamp(artifact.created_at, UTC)
    return {
        "ArtifactArn": artifact.arn,
        "ArtifactName": artifact.name,
        "ArtifactType": artifact.kind,
        "Source": artifact.source,
        "CreationTime": created,
        "LastModifiedTime": created,
    }
