"""Workers are forks of one process that imported what the agent imports first, wherever nobody can tell the difference."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from heldout.agents import entry_point
from heldout.agents.base import Outcome
from heldout.agents.entry_point import EntryPointAgent
from heldout.agents.prestart import open_ahead
from heldout.errors import ReferenceProblem
from tests.support.agents_support import attempt, hosted, is_alive, until

AGENT = """
import os, random, time
import heavy

def play(payload):
    time.sleep(0.2)
    return {"reward": 1, "pid": os.getpid(), "parent": os.getppid(), "value": VALUE}
"""


class World:
    """A folder with an agent, and an installed module `heavy` that notes which processes import it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installed = folder / "lib" / "site-packages"
        self.installed.mkdir(parents=True)
        self._imports = folder / "imports"
        self.environment = {"PYTHONPATH": str(self.installed), "IMPORTS": str(self._imports)}

    def write(self, agent: str, *, heavy: str = "", value: str = "random.random()") -> None:
        """The agent's file, whose attempts tell VALUE, and what `heavy` does beside noting."""
        self.write_module("agent.py", agent.replace("VALUE", value))
        noting = "import os\nwith open(os.environ['IMPORTS'], 'a') as noted:\n    print(os.getpid(), file=noted)\n"
        (self.installed / "heavy.py").write_text(noting + textwrap.dedent(heavy))

    def write_module(self, name: str, source: str) -> None:
        """A module of the agent's own."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))

    @property
    def imports(self) -> list[int]:
        """The processes that imported `heavy`."""
        return [int(line) for line in self._imports.read_text().split()] if self._imports.exists() else []

    async def played(self, entry_point: str = "agent.py:play", *, is_isolated: bool = False) -> list[dict[str, object]]:
        """What eight attempts at once on two workers came to."""
        async with hosted(entry_point, workers=2, environment=self.environment, folder=self.folder) as agent:
            return await answers(agent, is_isolated=is_isolated)


async def answers(agent: EntryPointAgent, *, is_isolated: bool = False) -> list[dict[str, object]]:
    """What eight attempts at once came to."""
    results = await asyncio.gather(*(agent.invoke(attempt("hello", is_isolated=is_isolated)) for _ in range(8)))
    found = [result.body for result in results]
    assert all(isinstance(body, dict) for body in found), results
    return found  # type: ignore[return-value]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of its own."""
    return World(tmp_path)


@pytest.mark.parametrize("is_isolated", [False, True])
async def test_what_an_agent_imports_first_is_imported_once_for_all_its_workers(
    world: World, is_isolated: bool
) -> None:
    world.write(AGENT)
    played = await world.played(is_isolated=is_isolated)
    assert len({one["pid"] for one in played}) == (8 if is_isolated else 2)
    assert [*{one["parent"] for one in played}] == world.imports
    assert len({one["value"] for one in played}) == 8  # of `random.random()`, which forks would share


@pytest.mark.parametrize(
    ("heavy", "workers"),
    [
        ("import httpx", 4),
        ("import aiohttp", 1),
        ("import httpx, threading\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()", 1),
    ],
    ids=["httpx", "aiohttp", "no-forks"],
)
async def test_many_attempts_get_more_workers_than_cores_where_these_are_forks_with_httpx(
    world: World, heavy: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(entry_point, "_FURTHER_AFTER_SECONDS", 0)
    world.write(AGENT, heavy=f"import time\n{heavy}")
    async with hosted(
        "agent.py:play", workers=None, concurrency=50, environment=world.environment, folder=world.folder
    ) as agent:
        played = await asyncio.gather(*(agent.invoke(attempt("hello")) for _ in range(50)))
    spread = Counter(result.body["pid"] for result in played if isinstance(result.body, dict))
    assert len(spread) == workers
    assert max(spread.values()) <= 50 / workers + 1  # all at once: none had more than its share


async def test_a_worker_holds_on_to_nothing_of_the_others(world: World) -> None:
    world.write(AGENT, value="[os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')[:-1]]")
    held = [one["value"] for one in await world.played(is_isolated=True)]
    assert not [place for places in held for place in places if "pidfd" in place]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "heavy",
    [
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
        "import socket\nCONNECTION = socket.socket()",
        "import random, time\nGENERATOR = random.Random(time.time())",
        "import random\nGENERATOR = random.Random()\nGENERATOR.seed(7)",
        "import copy, random\nGENERATOR = copy.copy(random.Random(7))",
        "import random\nclass Generator(random.Random):\n    def seed(self, *_): pass\nGENERATORS = {'mine': Generator()}",
        "import random\nclass Generator(random.Random):\n    __hash__ = None\nGENERATOR = Generator()",
    ],
    ids=["thread", "connection", "seeded", "seeded-later", "copied", "with-a-seed-of-its-own", "unhashable"],
)
async def test_what_processes_cannot_share_is_imported_in_each_worker(world: World, heavy: str) -> None:
    world.write(AGENT, heavy=heavy)
    played = await world.played()
    assert len(world.imports) == 2
    assert set(world.imports) == {one["pid"] for one in played}


@pytest.mark.parametrize(
    "heavy",
    [
        "import random\nGENERATOR = random.Random()",
        "import random\nGENERATOR = random.Random()\nGENERATOR.random()",
        "import random\nclass Generator(random.Random): pass\nGENERATOR = Generator()",
    ],
    ids=["new", "used", "narrower"],
)
async def test_generators_that_an_import_makes_draw_other_numbers_in_each_worker(world: World, heavy: str) -> None:
    world.write(AGENT, heavy=heavy, value="heavy.GENERATOR.random()")
    played = await world.played(is_isolated=True)
    assert [*{one["parent"] for one in played}] == world.imports
    assert len({one["value"] for one in played}) == 8


async def test_httpx_comes_without_its_own_command_which_can_still_be_imported(world: World) -> None:
    command = "__import__('importlib').import_module('httpx._main').main.name"
    world.write(AGENT, heavy="import httpx", value=f"['rich' in __import__('sys').modules, {command}]")
    (value,) = {str(one["value"]) for one in await world.played(is_isolated=True)}
    assert value == "[False, 'main']"


async def test_an_agent_written_with_aiohttp_is_imported_once_for_all_its_workers(world: World) -> None:
    world.write(AGENT, heavy="import aiohttp")
    played = await world.played()
    assert [*{one["parent"] for one in played}] == world.imports


@pytest.mark.parametrize(
    ("agent", "modules"),
    [
        ("import os\nos.environ['LEVEL'] = 'debug'\n", {}),
        ("import os\nif os.name == 'posix':\n    os.environ['LEVEL'] = 'debug'\n", {}),
        ("from settings import LEVEL\n", {"settings.py": "import os\nos.environ['LEVEL'] = LEVEL = 'debug'\n"}),
        ("import settings\n", {"settings.py": "import os\nos.environ.update(LEVEL='debug')\n"}),
        ("from own import settings\n", {"own/settings.py": "import os\nos.environ.setdefault('LEVEL', 'debug')\n"}),
        (
            "import own.settings\n",
            {"own/__init__.py": "import os\nos.putenv\nos.environ['LEVEL'] = 'debug'\n", "own/settings.py": ""},
        ),
        (
            "def setting():\n    import os\n    os.environ['LEVEL'] = 'debug'\nclass Setting:\n    done = setting()\n",
            {},
        ),
        ("def setting():\n    import os\n    os.environ['LEVEL'] = 'debug'\ndef later(done=setting()): ...\n", {}),
        ("def setting(function):\n    import os\n    os.environ['LEVEL'] = 'debug'\n@setting\ndef later(): ...\n", {}),
    ],
)
async def test_what_an_agent_does_before_an_import_comes_before_it(
    world: World, agent: str, modules: dict[str, str]
) -> None:
    world.write(agent + AGENT, heavy="LEVEL = os.environ.get('LEVEL')", value="heavy.LEVEL")
    for name, source in modules.items():
        world.write_module(name, source)
    played = await world.played()
    assert {one["value"] for one in played} == {"debug"}


@pytest.mark.parametrize(
    ("agent", "modules"),
    [
        ('"""An agent."""\nfrom __future__ import annotations\nSIZE: int = 3\nNAMES = ["a", SIZE + 1]\n', {}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nowhere import Board\n", {}),
        (
            "def board(size=3): return open('/')\nclass Board(dict):\n    '''A board.'''\n    SIZE = 3\n    def a(self): ...\n",
            {},
        ),
        (
            "from own.board import SIZE\n",
            {"own/board.py": "from . import rules\nfrom .rules import SIZE\n", "own/rules.py": "SIZE = 3\n"},
        ),
        ("import first\n", {"first.py": "import second\n", "second.py": "import first\n"}),
    ],
)
async def test_code_that_does_nothing_is_passed_and_own_modules_are_followed(
    world: World, agent: str, modules: dict[str, str]
) -> None:
    world.write(agent + AGENT)
    for name, source in modules.items():
        world.write_module(name, source)
    await world.played()
    assert len(world.imports) == 1


async def test_an_agent_in_a_module_of_a_package_is_followed_like_a_file(world: World) -> None:
    world.write("")
    world.write_module("own/__init__.py", "")
    world.write_module("own/agent.py", AGENT.replace("VALUE", "0"))
    played = await world.played("own.agent:play")
    assert [*{one["parent"] for one in played}] == world.imports


async def test_an_import_that_fails_fails_where_the_agent_makes_it(world: World) -> None:
    guarded = "try:\n    import heavy\nexcept ValueError:\n    import random\n"
    world.write(guarded + AGENT.replace("import heavy\n", ""), heavy="raise ValueError('no licence')")
    assert len(await world.played()) == 8
    world.write(AGENT, heavy="raise ValueError('no licence')")
    with pytest.raises(ReferenceProblem, match=r"cannot be imported: ValueError: no licence \(agent.py:3\)$"):
        await world.played()


async def test_an_import_that_ends_its_process_says_so(world: World) -> None:
    world.write(AGENT, heavy="print('no licence', flush=True)\nos._exit(7)")
    with pytest.raises(
        ReferenceProblem, match=r"cannot be imported: its process ended with exit status 7 while starting: no licence$"
    ):
        await world.played()


async def test_what_imports_print_is_no_attempts_output_and_what_they_hold_on_to_writes_to_the_attempt(
    world: World,
) -> None:
    agent = AGENT.replace("    time.sleep(0.2)\n", "    heavy.log.warning(payload['prompt'])\n    time.sleep(0.2)\n")
    heavy = "import logging\nprint('hello from heavy')\nlog = logging.Logger('heavy')\nlog.addHandler(logging.StreamHandler())"
    world.write(agent, heavy=heavy)
    async with hosted("agent.py:play", environment=world.environment, folder=world.folder) as agent_played:
        results = await asyncio.gather(*(agent_played.invoke(attempt(str(number))) for number in range(4)))
    assert [result.output for result in results] == ["0\n", "1\n", "2\n", "3\n"]


async def test_workers_end_with_the_process_they_are_forks_of_and_others_play_on(world: World) -> None:
    begun = world.folder / "60"
    world.write(
        AGENT.replace("time.sleep(0.2)", "open(payload['prompt'], 'w').close(); time.sleep(float(payload['prompt']))")
    )
    async with hosted("agent.py:play", workers=2, environment=world.environment, folder=world.folder) as agent:
        playing = asyncio.create_task(agent.invoke(attempt("60", timeout_seconds=90)))
        first = await agent.invoke(attempt("0"))
        assert isinstance(first.body, dict)
        await until(begun.exists)
        os.kill(world.imports[0], signal.SIGKILL)
        assert (await playing).outcome in (Outcome.CRASHED, Outcome.LOST)
        await until(lambda: not is_alive(first.body["pid"]))  # type: ignore[index]
        again = await agent.invoke(attempt("0"))
    assert isinstance(again.body, dict)
    assert again.body["parent"] == world.imports[1]
    assert not any(is_alive(pid) for pid in world.imports)


@pytest.fixture
def ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world that is this process's environment and working directory."""
    monkeypatch.chdir(world.folder)
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OUTSIDE", "before")
    return world


async def play_ahead(world: World, *arguments: str) -> list[dict[str, object]]:
    """Opens the process for a command ahead, and plays its agent with `JOB` in the environment and without `OUTSIDE`."""
    open_ahead(arguments)
    os.environ.pop("OUTSIDE")
    agent = EntryPointAgent("agent.py:play", environment={"JOB": "held-out"}, workers=2)
    await agent.start()
    try:
        return await answers(agent)
    finally:
        await agent.stop()


@pytest.mark.parametrize("arguments", [["--agent", "agent.py:play"], ["--limit", "3", "--agent=agent.py:play"]])
async def test_a_process_opened_ahead_makes_the_workers_and_they_have_the_environment_of_the_job(
    ahead: World, arguments: list[str]
) -> None:
    ahead.write(AGENT, value="[os.environ['JOB'], os.environ.get('OUTSIDE')]")
    open_ahead(["evaluate", *arguments])
    await until(lambda: len(ahead.imports) == 1)  # nobody has asked for it yet
    played = await play_ahead(ahead)
    assert [*{one["parent"] for one in played}] == ahead.imports
    assert [one["value"] for one in played] == [["held-out", None]] * 8


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("os.environ.get('JOB')", "held-out"),
        ("os.getenv('JOB')", "held-out"),
        ("'OUTSIDE' in os.environ", False),
        ("dict(os.environ).get('JOB')", "held-out"),
        ("'JOB' in [*os.environ]", True),
    ],
)
async def test_what_reads_a_variable_of_the_job_when_it_is_imported_reads_that_of_the_job(
    ahead: World, reading: str, value: object
) -> None:
    ahead.write(AGENT, heavy=f"READ = {reading}", value="heavy.READ")
    played = await play_ahead(ahead, "evaluate", "--agent", "agent.py:play")
    assert [one["value"] for one in played] == [value] * 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "--agent", "agent.py:play"],
        ["evaluate", "--agent", "agent.py:play", "--dry-run"],
        ["evaluate", "--agent", "http://127.0.0.1:1"],
        ["evaluate", "--agent", "arn:aws:lambda:us-west-2:123456789012:function:play"],
        ["evaluate", "--agent"],
        ["evaluate"],
        [],
    ],
)
def test_nothing_is_opened_ahead_for_commands_without_an_agent_of_this_machine(
    ahead: World, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead.write(AGENT)
    monkeypatch.setattr(subprocess, "Popen", None)
    open_ahead(arguments)


def test_a_command_that_refuses_its_input_leaves_no_process(world: World) -> None:
    world.write(AGENT, heavy="import time\ntime.sleep(60)")
    arguments = ["--model", "http://127.0.0.1:1/v1#m", "--agent", "agent.py:play", "--dataset", "nowhere.jsonl"]
    command = [str(Path(sys.executable).with_name("heldout")), "evaluate", *arguments]
    refused = subprocess.run(
        command, cwd=world.folder, env={**os.environ, **world.environment}, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2, refused.stderr
    assert "nowhere.jsonl" in refused.stderr
    asyncio.run(until(lambda: not list(processes_in(world.folder))))


def processes_in(folder: Path) -> Iterator[int]:
    """Processes whose working directory is `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder.resolve():
                yield int(process.name)
