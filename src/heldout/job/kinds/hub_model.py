"""A model of the SageMaker hub, by its name or its hub-content ARN."""

import re
from dataclasses import dataclass
from typing import Self

from heldout.job.kinds.base import Form, ModelReference

_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]+:(?:[0-9]{12}|aws):hub-content/.+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*")
_NAME_IN_ARN = re.compile(r"arn:[^:]+:sagemaker:[^:]*:[^:]*:hub-content/[^/]+/Model/(?P<name>[^/]+)(?:/.*)?")


@dataclass(frozen=True, slots=True)
class HubModel(ModelReference):
    """A hub model. It runs in AWS, unless a registry maps it to a model on this machine."""

    name: str
    """Its name or its hub-content ARN."""

    forms = (
        Form("hub-model-name", "a model of the SageMaker hub, by name; here only where a registry maps it"),
        Form(
            "arn:aws:sagemaker:<region>:<account>:hub-content/<hub>/Model/<name>/<version>",
            "a model of a SageMaker hub, by ARN; here only where a registry maps it",
        ),
    )
    section = "BaseModelArn"
    stored = str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a hub-content ARN or a plain name; None for text of another kind."""
        return cls(text) if _ARN.fullmatch(text) or _NAME.fullmatch(text) else None

    @classmethod
    def from_section(cls, section: str) -> Self:
        return cls(section)

    def to_section(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        """The model's name in its hub."""
        return hub_content_name(self.name)

    @property
    def aws_name(self) -> str:
        return self.name


def hub_content_name(name: str) -> str:
    """The model's name in a hub-content ARN; a plain name unchanged."""
    found = _NAME_IN_ARN.fullmatch(name)
    return found["name"] if found else name
