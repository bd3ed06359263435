"""Lineage: the origin of each artifact, in `lineage.json`, as SageMaker's actions, contexts, artifacts and associations.

The entries of a definition's lineage steps are kept as they are. The engine adds each dataset, agent, model, job and report as
an artifact, with a content hash where it is a local file.
"""

import hashlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import orjson

from heldout.job.document import JobConfigDocument
from heldout.job.kinds.base import Reference, SourceFile
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.steps import LINEAGE_NAMES
from heldout.runs.run import Run

_LINEAGE_FILE = "lineage.json"
_BLOCK_BYTES = 1024 * 1024


class Artifact(NamedTuple):
    """A dataset, agent, model, job or report."""

    name: str
    kind: str
    """`DataSet`, `Agent`, `Model`, `Job` or `Report`."""
    uri: str
    sha256: str | None = None
    """SHA-256 of the content; None where it is not on this machine."""

    def entry(self) -> dict[str, Any]:
        """Render the entry of `lineage.json`."""
        properties = {} if self.sha256 is None else {"Sha256": self.sha256}
        return {
            "ArtifactName": self.name,
            "ArtifactType": self.kind,
            "Source": {"SourceUri": self.uri},
            "Properties": properties,
        }


def record(evaluation: Evaluation, arguments: Mapping[str, Any]) -> None:
    """Add the entries of a lineage step with its expressions resolved. Existing entries are kept once."""
    lineage = read(evaluation.folder)
    for section, entries in arguments.items():
        known = lineage.setdefault(section, [])
        key = LINEAGE_NAMES.get(section)
        for entry in entries:
            same = [other for other in known if (other[key] == entry[key] if key else other == entry)]
            if same:
                known[known.index(same[0])] = entry
            else:
                known.append(entry)
    evaluation.write(_LINEAGE_FILE, orjson.dumps(lineage, option=orjson.OPT_INDENT_2))


def record_flow(evaluation: Evaluation, inputs: list[Artifact], outputs: list[Artifact]) -> None:
    """Add artifacts, and an association from each input to each output."""
    associations = [
        {
            "Source": {"Name": one.name, "Type": "Artifact"},
            "Destination": {"Name": other.name, "Type": "Artifact"},
            "AssociationType": "ContributedTo",
        }
        for one in inputs
        for other in outputs
    ]
    record(
        evaluation,
        {"Artifacts": [artifact.entry() for artifact in (*inputs, *outputs)], "Associations": associations},
    )


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the lineage of the evaluation in `folder`; empty when there is none yet."""
    path = folder / _LINEAGE_FILE
    return dict(orjson.loads(path.read_bytes())) if path.exists() else {}


def agents_of(document: JobConfigDocument) -> list[Artifact]:
    """Describe the agent of a job with the current hash of its local files."""
    return _artifacts(document.agent_config.agent, "Agent")


def dataset_of(run: Run) -> Artifact:
    """Describe the prompts of a job as they were read: the dataset itself may be remote, or change."""
    dataset = run.document.prompts.data_source.dataset
    return Artifact(dataset, "DataSet", dataset, run.state.dataset_hash)


def models_of(document: JobConfigDocument) -> list[Artifact]:
    """Describe the model of a job and its adapter with their current hashes. Hashing takes about a second per gigabyte."""
    return _artifacts(document.model, "Model")


def _artifacts(reference: Reference, kind: str) -> list[Artifact]:
    if reference.sources is None:
        return [Artifact(reference.text, kind, reference.text)]
    found = cast("_Sources", pkgutil.resolve_name(reference.sources))(reference)
    return [
        Artifact(one.name, kind, one.uri, _hash(path) if (path := Path(one.path)).is_file() else None) for one in found
    ]


class _Sources(Protocol):
    def __call__(self, reference: Reference, /) -> Iterable[SourceFile]: ...


def job_of(run: Run) -> Artifact:
    """Describe the job, identified by the hash of its document."""
    digest = hashlib.sha256(orjson.dumps(run.state.document, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return Artifact(run.state.arn, "Job", run.location, digest)


def reports_of(folder: Path, location: str) -> list[Artifact]:
    """Describe the numbers and the report of a run or an evaluation, as far as they exist."""
    return [
        Artifact(f"{location}/{name}", "Report", f"{location}/{name}", _hash(path))
        for name in ("metrics.json", "comparison.json", "report.html")
        if (path := folder / name).exists()
    ]


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
