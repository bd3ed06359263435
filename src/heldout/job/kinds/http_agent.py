"""An agent behind the AgentCore HTTP contract at an address: a container, or any other server that speaks it."""

from dataclasses import dataclass
from typing import Self

from heldout.job.kinds.base import AgentReference, Form, RuntimeReach, Section, checked_url


class HttpAgentConfig(Section):
    """How the job document stores such an agent (local only)."""

    url: str


@dataclass(frozen=True, slots=True)
class AgentContainer(AgentReference):
    """An HTTP server that answers POST /invocations and GET /ping below its URL."""

    url: str

    forms = (Form("http://host:port", "an agent that serves the AgentCore HTTP contract, such as a container"),)
    section = "HttpAgentConfig"
    stored = HttpAgentConfig
    maker = "heldout.agents.http:make"
    reach = RuntimeReach.URL_OR_LOOPBACK

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `http(s)://host:port[/path]`; None for text of another kind. Raises ReferenceProblem."""
        if not text.startswith(("http://", "https://")):
            return None
        return cls(checked_url(text, "agent").rstrip("/"))

    @classmethod
    def from_section(cls, section: HttpAgentConfig) -> Self:
        return cls(section.url)

    def to_section(self) -> HttpAgentConfig:
        return HttpAgentConfig(url=self.url)

    @property
    def text(self) -> str:
        return self.url
