"""A fine-tuned model in SageMaker's model registry, by the ARN of its model package."""

import re
from dataclasses import dataclass
from typing import Self

from heldout.job.kinds.base import Form, ModelReference, Section

_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]+:[0-9]{12}:model-package/.+")


class ModelPackageConfig(Section):
    """How the job document stores a model package: at its top, with the base model in `EvaluationConfig`."""

    input_model_package_arn: str


@dataclass(frozen=True, slots=True)
class ModelPackage(ModelReference):
    """A model package. It runs in AWS, unless a registry maps it to a model on this machine."""

    arn: str

    forms = (
        Form(
            "arn:aws:sagemaker:<region>:<account>:model-package/<name>/<version>",
            "a fine-tuned model in SageMaker; here only where a registry maps it",
        ),
    )
    section = "ModelPackageConfig"
    stored = ModelPackageConfig
    needs_base = True

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a model package's ARN; None for text of another kind."""
        return cls(text) if _ARN.fullmatch(text) else None

    @classmethod
    def from_section(cls, section: ModelPackageConfig) -> Self:
        return cls(section.input_model_package_arn)

    def to_section(self) -> ModelPackageConfig:
        """The section at the top of the document. The document needs a base model in `EvaluationConfig` too."""
        return ModelPackageConfig(input_model_package_arn=self.arn)

    @property
    def text(self) -> str:
        return self.arn

    @property
    def aws_name(self) -> str:
        return self.arn

    @property
    def is_fine_tuned(self) -> bool:
        """Always true: training jobs make model packages."""
        return True
