"""The base classes of references: a kind of model or agent is one frozen dataclass in one module.

A kind states how a person writes it (`forms`, `parse`, `text`), how the job document stores it (`section`, `stored`,
`to_section`, `from_section`), what to call it (`label`, `description`), how its relative paths become absolute
(`located`), and which function builds the policy or agent (`maker`). Functions that do I/O are named as
`package.module:function` and imported when they are first called, so that a reference stays plain data.

A third-party package adds a kind with an entry point in the group `heldout.policies` or `heldout.agents`:

    [project.entry-points."heldout.policies"]
    echo = "heldout_echo:EchoModel"
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_pascal

from heldout.errors import ReferenceProblem, shown


class Section(BaseModel):
    """A section of the job document: PascalCase names on the wire, no unknown fields, immutable."""

    model_config = ConfigDict(
        alias_generator=to_pascal,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )


class Form(NamedTuple):
    """One way to write a reference."""

    text: str
    """The form itself, such as `http://host:port/v1#served-name`."""
    meaning: str
    """One line that says what it names."""


class Reference(ABC):
    """The interface of every kind of model and agent. Subclasses are frozen dataclasses: they hash, compare and pickle."""

    __slots__ = ()

    forms: ClassVar[tuple[Form, ...]]
    """The ways to write it, as listed by error messages, help and reference pages."""
    section: ClassVar[str]
    """Name of the member of `EvaluationConfig` (a model) or `AgentConfig` (an agent) that stores it."""
    stored: ClassVar[Any]
    """Type of that member: a subclass of `Section`, or `str`."""
    maker: ClassVar[str | None] = None
    """`package.module:function` that builds the policy or agent; None for a model that only AWS can serve."""
    sources: ClassVar[str | None] = None
    """`package.module:function` that takes the reference and yields its local files as `SourceFile`s, which lineage hashes.
    None: no local files."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Read a reference from what a person wrote; None for text of another kind.

        Looks at the text alone, never at files or the network. Raises ReferenceProblem for text that is clearly of this
        kind but not valid.
        """

    @classmethod
    def hint(cls, text: str) -> str:  # noqa: ARG003
        """Returns the end of the error message for text of no kind, such as ` Did you mean 'x'?`; empty when nothing is near."""
        return ""

    @classmethod
    def names(cls) -> Mapping[str, str]:
        """Fixed names of this kind that can be written as they are, each with a description. Empty for most kinds."""
        return {}

    @classmethod
    @abstractmethod
    def from_section(cls, section: Any) -> Self:
        """Read a reference from its section, already validated as `stored`."""

    @abstractmethod
    def to_section(self) -> Any:
        """The section, a value of type `stored`."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The reference in one string that `parse` takes."""

    @property
    def label(self) -> str:
        """A short name for tables and generated names."""
        return self.text

    @property
    def description(self) -> str:
        """A longer name for reports, with the place."""
        return self.text

    @property
    def aws_name(self) -> str | None:
        """The name or ARN by which a registry maps it to a local thing; None if it needs no mapping."""
        return None

    def located(self, folder: PurePath) -> Self:  # noqa: ARG002
        """Returns the reference with relative paths made absolute below `folder`. Reads no files."""
        return self


class SourceFile(NamedTuple):
    """One file that a reference names, as lineage records it."""

    name: str
    """Name of the lineage artifact."""
    uri: str
    """Where it came from, as lineage shows it."""
    path: str
    """The local file whose content is hashed, if there is such a file."""


class ModelReference(Reference):
    """A kind of model. `maker` takes the reference and a `heldout.policies.base.PolicySettings` and returns a `Policy`.

    Heldout's own kinds parse first, and a hub model takes any name of letters, digits, `.` and `-`. The form of another kind
    needs a further character: `echo:hello`.
    """

    __slots__ = ()

    needs_base: ClassVar[bool] = False
    """Whether the document stores it at its top, with its base model in `EvaluationConfig`, as CreateJob does for packages."""

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the reference alone shows that the model was tuned from another."""
        return self.tuned_from is not None

    @property
    def tuned_from(self) -> "ModelReference | None":
        """The model it was tuned from, where the reference names it."""
        return None


class RuntimeReach(enum.Enum):
    """How an agent reaches the Job Runtime, which decides the address the runtime listens on."""

    LOOPBACK = "loopback"
    """Always over the loopback interface: its processes are started by Heldout on this machine."""
    URL_OR_LOOPBACK = "url or loopback"
    """At the job's runtime URL where one is given, else over the loopback interface."""
    URL = "url"
    """Only at the job's runtime URL: it runs in AWS."""


class AgentReference(Reference):
    """A kind of agent. `maker` takes the reference and a `heldout.agents.base.AgentSettings` and returns an `Agent`.

    Heldout's own kinds parse first, and an entry point takes any `name:name`. The form of another kind needs a further
    character: `docker://image`.
    """

    __slots__ = ()

    reach: ClassVar[RuntimeReach] = RuntimeReach.URL_OR_LOOPBACK
    """How it reaches the Job Runtime."""
    checker: ClassVar[str | None] = None
    """`package.module:function` that takes the reference and the folder of relative paths, and raises ReferenceProblem when
    the agent cannot be there. Starts nothing. None: nothing can be checked before the start."""

    def qualified(self, qualifier: str | None) -> Self:  # noqa: ARG002
        """The reference with an AgentCore qualifier; kinds without qualifiers ignore it."""
        return self


def checked_url(url: str, what: str) -> str:
    """Returns `url` unchanged.

    what: the reference in error messages. Raises ReferenceProblem unless `url` is an `http(s)://host:port` address without a user
    or password; the error does not repeat a password.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # brackets without an IPv6 address, or an invalid port
        raise ReferenceProblem(f"{what}: {shown(url)} is not an http(s)://host:port address") from error
    if not is_address:
        raise ReferenceProblem(f"{what}: {shown(url)} is not an http(s)://host:port address")
    if parts.username or parts.password:
        safe = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        raise ReferenceProblem(
            f"{what.replace(url, safe)}: a URL must not hold a user or password; name an environment variable with "
            "?key-variable=NAME"
        )
    return url
