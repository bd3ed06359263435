"""Opens the process that an agent's workers are made from; for a command that names the agent, before Heldout itself is imported.

Both take a while, and neither needs the other. Nothing heavy is imported here.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Opened(NamedTuple):
    """A process of `heldout.agents.worker`, and our end of the socket on which it is asked for workers."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    environment: Mapping[str, str]
    """All of what it was started with."""


_ahead: dict[tuple[str, Path], Opened] = {}
"""By entry point and working directory."""


def open_process(entry_point: str, environment: Mapping[str, str], working_directory: Path) -> Opened:
    """Starts such a process. Raises OSError if that is not possible."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "heldout.agents.worker"]
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, entry_point, str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=working_directory,
                env=dict(environment),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C at the terminal is the engine's to handle, and its children end with it
                bufsize=0,
            )
        except OSError:
            ours.close()
            raise
    return Opened(process, ours, environment)


def open_ahead(arguments: Sequence[str]) -> None:
    """Starts the process for the agent of `heldout evaluate`, if that is what the arguments say. It ends with this one."""
    entry_point = _entry_point(arguments)
    if entry_point is None:
        return
    folder = Path.cwd()
    with contextlib.suppress(OSError):  # whoever needs it will open it, and say what is wrong
        _ahead[entry_point, folder] = open_process(entry_point, dict(os.environ), folder)


def close_ahead() -> None:
    """Ends what was opened ahead and not taken: the command had no use for it."""
    while _ahead:
        _, opened = _ahead.popitem()
        opened.process.kill()
        opened.process.wait()
        assert opened.process.stdout is not None
        opened.process.stdout.close()
        opened.channel.close()


def taken(entry_point: str, working_directory: Path) -> Opened | None:
    """The process that was opened ahead for this agent, once."""
    return _ahead.pop((entry_point, working_directory), None)


def _entry_point(arguments: Sequence[str]) -> str | None:
    if list(arguments[:1]) != ["evaluate"] or {"--dry-run", "--help"} & set(arguments):
        return None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name == "--agent":
            agent = os.path.expanduser(value or following)  # noqa: PTH111  # the text is the key, as it is given
            is_elsewhere = agent.startswith(("http://", "https://", "arn:"))
            return agent if ":" in agent and not is_elsewhere else None
    return None
