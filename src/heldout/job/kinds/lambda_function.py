"""An agent behind an AWS Lambda function that forwards prompts to it."""

import re
from dataclasses import dataclass
from typing import Self

from heldout.job.kinds.base import AgentReference, Form, RuntimeReach, Section

LAMBDA_ARN = re.compile(r"arn:aws[a-z\-]*:lambda:[a-z0-9\-]+:[0-9]{12}:function:.+")
"""ARNs of Lambda functions."""


class CustomAgentLambdaConfig(Section):
    """How the job document stores a Lambda function."""

    lambda_arn: str


@dataclass(frozen=True, slots=True)
class LambdaAgent(AgentReference):
    """A Lambda function, invoked in AWS unless a registry maps it to an agent on this machine."""

    arn: str

    forms = (Form("arn:aws:lambda:<region>:<account>:function:<name>", "a Lambda function that forwards to an agent"),)
    section = "CustomAgentLambdaConfig"
    stored = CustomAgentLambdaConfig
    maker = "heldout.agents.aws_lambda:make"
    reach = RuntimeReach.URL

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a Lambda function's ARN; None for text of another kind."""
        return cls(text) if LAMBDA_ARN.fullmatch(text) else None

    @classmethod
    def from_section(cls, section: CustomAgentLambdaConfig) -> Self:
        return cls(section.lambda_arn)

    def to_section(self) -> CustomAgentLambdaConfig:
        return CustomAgentLambdaConfig(lambda_arn=self.arn)

    @property
    def text(self) -> str:
        return self.arn

    @property
    def aws_name(self) -> str:
        return self.arn
