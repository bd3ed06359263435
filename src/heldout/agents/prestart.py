"""Starts the launcher of an agent's workers; for `heldout evaluate` before Heldout itself is imported.

The launcher then imports the agent's libraries while the command imports its own. Measured with the openai agent of
`benchmarks.overhead` (4 prompts x 4 rollouts, medians of three on two busy cores): first model call after 3.2 s, without the
early start 4.8 s. Importing this module is cheap.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FORKS = sys.platform == "linux"
"""Whether workers are forks. On macOS system libraries may break in a fork."""


class StartedLauncher(NamedTuple):
    """A running `heldout.agents.worker` process."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    """The engine's end of the socket that carries requests for workers."""
    environment: Mapping[str, str]
    """The whole environment that the process was started with."""


_started_early: dict[tuple[str, Path], StartedLauncher] = {}
"""By entry point and working directory."""


def start_launcher(
    entry_point: str, environment: Mapping[str, str], working_directory: Path, *, forks: bool = FORKS
) -> StartedLauncher:
    """Starts a launcher whose workers are forks, or else new interpreters. Raises OSError if the system refuses."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "heldout.agents.worker"]
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, entry_point, str(os.getpid()), str(theirs.fileno()), "fork" if forks else "exec"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=working_directory,
                env=dict(environment),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # the engine handles Ctrl-C; one signal ends the launcher with its children
                bufsize=0,
            )
        except OSError:
            ours.close()
            raise
    return StartedLauncher(process, ours, environment)


def start_early(arguments: Sequence[str]) -> None:
    """Starts the launcher of the local agent that the arguments of `heldout` name; does nothing for any other command."""
    entry_point = _local_agent(arguments)
    if entry_point is None:
        return
    folder = Path.cwd()
    with contextlib.suppress(OSError):  # the agent's own start meets the same error and reports it
        _started_early[entry_point, folder] = start_launcher(entry_point, dict(os.environ), folder)


def take_early(entry_point: str, working_directory: Path) -> StartedLauncher | None:
    """Hands over the launcher that was started early for this agent; None if there is none or it was taken."""
    return _started_early.pop((entry_point, working_directory), None)


def end_unused() -> None:
    """Ends the launchers that were started early and not taken."""
    while _started_early:
        _, started = _started_early.popitem()
        started.process.kill()
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()
        started.channel.close()


def _local_agent(arguments: Sequence[str]) -> str | None:
    """The entry point after `--agent` of `heldout evaluate`."""
    if list(arguments[:1]) != ["evaluate"] or {"--dry-run", "--help"} & set(arguments):
        return None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name == "--agent":
            agent = os.path.expanduser(value or following)  # noqa: PTH111  # the text itself is the key, unnormalized
            is_remote = agent.startswith(("http://", "https://", "arn:"))
            return agent if ":" in agent and not is_remote else None
    return None
