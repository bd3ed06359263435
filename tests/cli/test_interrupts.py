"""Ctrl-C while rollouts play, in a process of its own as at a terminal."""

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply
from tests.support.jobs import write_prompts
from tests.support.scripted_agents import __file__ as agents_file

COMMAND = "import sys; from heldout.cli.main import main; sys.argv = ['heldout', *sys.argv[1:]]; main()"


async def line_with(stream: asyncio.StreamReader, words: str) -> str:
    """The next line that contains `words`."""
    while line := (await stream.readline()).decode():
        if words in line:
            return line
    raise AssertionError(f"no line with {words!r}")


async def test_ctrl_c_says_what_is_waited_for_and_a_second_one_ends_it(tmp_path: Path) -> None:
    is_called = asyncio.Event()

    def never(_: object) -> Reply:
        is_called.set()
        return Reply(seconds=600)

    dataset = write_prompts(tmp_path, ["turns 1", "turns 1", "turns 1"])
    async with ScriptedServer(never) as server, asyncio.timeout(60):
        arguments = ["--model", f"{server.url}#scripted", "--agent", f"{agents_file}:play", "--dataset", str(dataset)]
        arguments += ["--output", str(tmp_path / "runs"), "--name", "t", "--mlflow", "off"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMAND, "evaluate", *arguments, stdout=PIPE, stderr=PIPE
        )
        assert process.stderr is not None
        await is_called.wait()
        while server.num_calls < 3:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = await line_with(process.stderr, "Ctrl-C again")
        assert re.match(
            r"waiting for 3 rollouts in flight; the model has not answered 3 calls, the oldest for \d+ s; ", said
        )
        process.send_signal(signal.SIGINT)
        assert "stopping at once" in await line_with(process.stderr, "stopping")
        assert "heldout resume" in await line_with(process.stderr, "heldout resume")
        assert await process.wait() == 130
