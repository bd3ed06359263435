"""An agent in Amazon Bedrock AgentCore, by the ARN of its runtime."""

import re
from dataclasses import dataclass
from typing import Self

from heldout.job.kinds.base import AgentReference, Form, RuntimeReach, Section

AGENTCORE_ARN = re.compile(r"arn:aws[a-z\-]*:bedrock-agentcore:[a-z0-9\-]+:[0-9]{12}:(?:agent-runtime|runtime)/.+")
"""ARNs of AgentCore runtimes."""


class BedrockAgentCoreConfig(Section):
    """How the job document stores an AgentCore runtime."""

    agent_runtime_arn: str
    qualifier: str | None = None


@dataclass(frozen=True, slots=True)
class AgentCoreRuntime(AgentReference):
    """An AgentCore runtime, invoked in AWS unless a registry maps it to an agent on this machine."""

    arn: str
    qualifier: str | None = None
    """The runtime's endpoint; None means `DEFAULT`."""

    forms = (Form("arn:aws:bedrock-agentcore:<region>:<account>:runtime/<id>", "an agent in Amazon Bedrock AgentCore"),)
    section = "BedrockAgentCoreConfig"
    stored = BedrockAgentCoreConfig
    maker = "heldout.agents.agentcore:make"
    reach = RuntimeReach.URL

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read an AgentCore runtime's ARN; None for text of another kind."""
        return cls(text) if AGENTCORE_ARN.fullmatch(text) else None

    @classmethod
    def from_section(cls, section: BedrockAgentCoreConfig) -> Self:
        return cls(section.agent_runtime_arn, section.qualifier)

    def to_section(self) -> BedrockAgentCoreConfig:
        return BedrockAgentCoreConfig(agent_runtime_arn=self.arn, qualifier=self.qualifier)

    @property
    def text(self) -> str:
        """The ARN, without the qualifier."""
        return self.arn

    @property
    def aws_name(self) -> str:
        return self.arn

    def qualified(self, qualifier: str | None) -> Self:
        """Returns the runtime with another qualifier."""
        return type(self)(self.arn, qualifier)
