"""The policy `echo:PREFIX`: answers each model call with PREFIX and the last message. No model is needed."""

import json
from dataclasses import dataclass
from typing import Self

from heldout.job.kinds.base import Form, ModelReference, Section
from heldout.policies.base import ModelCall, ModelReply, PolicySettings

_SCHEME = "echo:"


class EchoModelConfig(Section):
    """How the job document stores the policy."""

    prefix: str = ""


@dataclass(frozen=True, slots=True)
class EchoModel(ModelReference):
    """A policy that repeats the last message behind a prefix."""

    prefix: str

    forms = (Form("echo:PREFIX", "answers with PREFIX and the last message"),)
    section = "EchoModelConfig"
    stored = EchoModelConfig
    maker = "heldout_echo:make"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `echo:PREFIX`; None for text of another kind."""
        return cls(text.removeprefix(_SCHEME)) if text.startswith(_SCHEME) else None

    @classmethod
    def from_section(cls, section: EchoModelConfig) -> Self:
        """Read the policy from its section."""
        return cls(section.prefix)

    def to_section(self) -> EchoModelConfig:
        """The section that stores the policy."""
        return EchoModelConfig(prefix=self.prefix)

    @property
    def text(self) -> str:
        """The policy in one string, as `parse` takes it."""
        return f"{_SCHEME}{self.prefix}"


def make(model: EchoModel, _settings: PolicySettings) -> "EchoPolicy":
    """Build the policy."""
    return EchoPolicy(model.prefix)


class EchoPolicy:
    """Answers chat completions; streamed ones in a single chunk. See `heldout.policies.base.Policy`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    @property
    def model_name(self) -> str:
        """The name written into each request."""
        return "echo"

    async def start(self) -> None:
        """Do nothing: there is no server to wait for."""

    async def stop(self) -> None:
        """Do nothing: nothing was started."""

    async def call(self, call: ModelCall) -> ModelReply:
        """Answer one chat completion."""
        content = self._prefix + str(json.loads(call.body)["messages"][-1]["content"])
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": len(content), "completion_tokens": len(content), "total_tokens": 2 * len(content)}
        part = "delta" if call.is_streamed else "message"
        reply = {
            "id": "echo",
            "object": "chat.completion.chunk" if call.is_streamed else "chat.completion",
            "created": 0,
            "model": self.model_name,
            "choices": [{"index": 0, part: message, "finish_reason": "stop"}],
            "usage": usage,
        }
        body = json.dumps(reply).encode()
        if call.is_streamed:
            return ModelReply(200, "text/event-stream", b"data: " + body + b"\n\ndata: [DONE]\n\n")
        return ModelReply(200, "application/json", body)
