"""Places that a user names: where prompts come from and where an evaluation goes, parsed into frozen records.

Parsing looks at the text alone. A record keeps the text as it was given, which messages repeat.
"""

from dataclasses import dataclass
from pathlib import PurePath

from heldout.errors import ReferenceProblem


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A file or a folder of this machine."""

    path: str

    def __str__(self) -> str:
        return self.path

    def below(self, folder: PurePath) -> str:
        """The path, made absolute with `folder` if it is relative."""
        return located(self.path, folder)


@dataclass(frozen=True, slots=True)
class S3Place:
    """An object or a prefix in S3."""

    uri: str

    def __str__(self) -> str:
        return self.uri

    def below(self, folder: PurePath) -> str:  # noqa: ARG002
        """The URI, which is absolute."""
        return self.uri


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A DataSet in a SageMaker hub."""

    arn: str

    def __str__(self) -> str:
        return self.arn

    def below(self, folder: PurePath) -> str:  # noqa: ARG002
        """The ARN."""
        return self.arn


Output = LocalPlace | S3Place
Dataset = LocalPlace | S3Place | HubDataset


def located(location: str, folder: PurePath) -> str:
    """Returns a relative path below `folder`; a URI or an ARN unchanged."""
    if "://" in location or location.startswith("arn:"):
        return location
    return str(folder / location)


def parse_dataset(text: str) -> Dataset:
    """The dataset that `text` names: a local path, an `s3://` URI or a DataSet ARN. Raises ReferenceProblem for an empty one."""
    return HubDataset(text) if text.startswith("arn:") else _place("dataset", text)


def parse_output(text: str) -> Output:
    """The output that `text` names: a local folder or an `s3://` URI. Raises ReferenceProblem for an empty one."""
    return _place("output", text)


def _place(name: str, text: str) -> LocalPlace | S3Place:
    # As a path, an empty text would be the working directory, and "s3:" without a bucket a folder of that name.
    if not text.strip() or text.rstrip("/") in ("s3:", "file:"):
        raise ReferenceProblem(
            f"{name} {text!r} names no place; expected a local path or s3://bucket/prefix (is a variable of the shell not set?)"
        )
    return S3Place(text) if text.startswith("s3://") else LocalPlace(text)
