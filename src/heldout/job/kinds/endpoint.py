"""A model behind an OpenAI-compatible endpoint, one replica or several."""

import re
from dataclasses import dataclass
from typing import Annotated, Self
from urllib.parse import parse_qs

from pydantic import Field

from heldout.errors import ReferenceProblem, shown
from heldout.job.kinds.base import Form, ModelReference, Section, checked_url

_VARIABLE = re.compile(r"[A-Za-z_]\w*")


class ModelEndpointConfig(Section):
    """How the job document stores an endpoint (local only)."""

    urls: Annotated[tuple[str, ...], Field(min_length=1)]
    model_name: str = ""
    api_key_variable: str | None = None
    """The environment variable that holds the key; never the key."""


@dataclass(frozen=True, slots=True)
class EndpointModel(ModelReference):
    """A model served at one or several base URLs, each up to and including `/v1`."""

    urls: tuple[str, ...]
    """Base URLs of replicas that serve the same model."""
    name: str
    """The served name; empty means the only one that the server lists."""
    api_key_variable: str | None = None
    """Environment variable that holds the endpoint's key."""

    forms = (
        Form(
            "http://host:port/v1#served-name",
            "a model behind an OpenAI-compatible endpoint; replicas as http://a:1/v1,http://b:1/v1#served-name, "
            "a key as http://host:port/v1?key-variable=NAME#served-name",
        ),
    )
    section = "ModelEndpointConfig"
    stored = ModelEndpointConfig
    maker = "heldout.policies.endpoint:make"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `http(s)://host:port/v1[,more replicas][?key-variable=NAME][#served-name]`; None for text of another kind.

        Raises ReferenceProblem.
        """
        if not text.startswith(("http://", "https://")):
            return None
        address, _, name = text.partition("#")
        replicas = re.split(r",(?=https?://)", name)
        if len(replicas) > 1:
            raise ReferenceProblem(
                f"model {shown(text)}: the served name stands once, after the last replica: "
                f"{','.join([address, *replicas[1:]]).partition('#')[0]}#{replicas[0]}"
            )
        address, _, query = address.partition("?")
        what = f"model {shown(text)}"
        urls = tuple(checked_url(part, what).rstrip("/") for part in address.split(","))
        return cls(urls, name, _key_variable(query, what))

    @classmethod
    def from_section(cls, section: ModelEndpointConfig) -> Self:
        return cls(section.urls, section.model_name, section.api_key_variable)

    def to_section(self) -> ModelEndpointConfig:
        return ModelEndpointConfig(urls=self.urls, model_name=self.name, api_key_variable=self.api_key_variable)

    @property
    def text(self) -> str:
        option = "" if self.api_key_variable is None else f"?key-variable={self.api_key_variable}"
        return f"{','.join(self.urls)}{option}{self.name and '#'}{self.name}"

    @property
    def label(self) -> str:
        """The served name; the address where the server lists only one model."""
        return self.name or self.text

    @property
    def description(self) -> str:
        """The served name and its addresses."""
        return f"{self.name} at {', '.join(self.urls)}"


def _key_variable(query: str, what: str) -> str | None:
    options = parse_qs(query, keep_blank_values=True)
    variable = options.pop("key-variable", [None])[-1]
    if options:
        raise ReferenceProblem(
            f"{what}: unknown option {next(iter(options))!r}; the only option is ?key-variable=NAME, the environment "
            "variable that holds the endpoint's key"
        )
    if variable is not None and not _VARIABLE.fullmatch(variable):
        raise ReferenceProblem(
            f"{what}: key-variable must be the name of an environment variable, not {shown(variable)}"
        )
    return variable
