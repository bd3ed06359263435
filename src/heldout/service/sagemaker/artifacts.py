"""Lineage artifacts that clients make, such as one for the model they evaluate. What came of what is in the runs themselves."""

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

from heldout.service.context import Context
from heldout.service.operations import Params, Reply, Room
from heldout.service.paging import between, paged
from heldout.service.store import Record
from heldout.service.wire.faults import not_found

ROOM = Room("sagemaker")


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


@ROOM.operation("CreateArtifact")
def create_artifact(context: Context, params: Params) -> Reply:
    """Keeps an artifact; one of the same source, type and name is the one there is."""
    source, kind, name = params["Source"], params["ArtifactType"], params.get("ArtifactName")
    digest = hashlib.sha256("\0".join((source["SourceUri"], kind, name or "")).encode()).hexdigest()[:32]
    arn = context.arn(f"artifact/{digest}")
    if context.store.find(_Artifact, arn) is None:
        properties = dict(params.get("Properties", {}))
        context.store.put(
            _Artifact(arn=arn, name=name, kind=kind, source=source, properties=properties, created_at=time.time())
        )
    return {"ArtifactArn": arn}


@ROOM.operation("DescribeArtifact")
def describe_artifact(context: Context, params: Params) -> Reply:
    """An artifact by its ARN."""
    artifact = context.store.find(_Artifact, params["ArtifactArn"])
    if artifact is None:
        raise not_found(f"artifact {params['ArtifactArn']!r} does not exist")
    return _summary(artifact) | {"Properties": artifact.properties}


@ROOM.operation("ListArtifacts")
def list_artifacts(context: Context, params: Params) -> Reply:
    """Artifacts, of one source or one type where the request names it."""
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
