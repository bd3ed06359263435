"""An agent that is a Python function, hosted in worker processes on this machine."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Self

from heldout.job.kinds.base import AgentReference, Form, RuntimeReach, Section

_ENTRY_POINT = re.compile(r"(?P<where>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


class EntryPointConfig(Section):
    """How the job document stores an entry point (local only)."""

    entry_point: str
    """`file.py:function` or `package.module:function`; a file's path is absolute once a job is written down."""


@dataclass(frozen=True, slots=True)
class EntryPoint(AgentReference):
    """A function in a file or an installed module."""

    entry_point: str
    """`file.py:function` or `package.module:function`."""

    forms = (
        Form("file.py:function", "a function in a Python file, hosted in worker processes on this machine"),
        Form("package.module:function", "a function in an installed module, hosted the same way"),
    )
    section = "EntryPointConfig"
    stored = EntryPointConfig
    maker = "heldout.agents.entry_point:make"
    checker = "heldout.agents.entry_point:check"
    sources = "heldout.agents.entry_point:sources"
    reach = RuntimeReach.LOOPBACK

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `file.py:function` or `package.module:function`; None for text of another kind."""
        return cls(text) if _ENTRY_POINT.fullmatch(text) else None

    @classmethod
    def hint(cls, text: str) -> str:
        """Returns how to name a function of the file, for a path without one."""
        return f" Write {text}:function." if text.endswith(".py") else ""

    @classmethod
    def from_section(cls, section: EntryPointConfig) -> Self:
        return cls(section.entry_point)

    def to_section(self) -> EntryPointConfig:
        return EntryPointConfig(entry_point=self.entry_point)

    @property
    def text(self) -> str:
        return self.entry_point

    def located(self, folder: PurePath) -> Self:
        """Returns the entry point with its file's path absolute."""
        source, _, function = self.entry_point.rpartition(":")
        return type(self)(f"{folder / source}:{function}") if source.endswith(".py") else self
