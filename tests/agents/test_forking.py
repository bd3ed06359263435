"""Workers share the import of known packages; otherwise each is a process of its own."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from heldout.agents.base import Outcome
from heldout.agents.entry_point import EntryPointAgent
from heldout.agents.prestart import start_early
from heldout.agents.worker.known_packages import KNOWN_PACKAGES
from heldout.errors import ReferenceProblem
from tests.support.agents_support import attempt, hosted, is_alive, until

AGENT = """
import os, random, time
import requests

def play(payload):
    time.sleep(0.2)
    return {"reward": 1, "pid": os.getpid(), "parent": os.getppid(), "value": VALUE}
"""


class World:
    """A folder with an agent, and an installed package that notes which processes import it, under the name of a known one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installed = folder / "lib" / "site-packages"
        self.installed.mkdir(parents=True)
        self._imports = folder / "imports"
        self.environment = {"PYTHONPATH": str(self.installed), "IMPORTS": str(self._imports)}

    def write(self, agent: str, *, package: str = "", value: str = "random.random()", name: str = "requests") -> None:
        """Writes the agent's file, whose attempts answer VALUE, and the package `name`, which runs `package` when imported."""
        self.write_module("agent.py", agent.replace("VALUE", value))
        (self.installed / f"{name}.py").write_text(_NOTING + textwrap.dedent(package))

    def write_module(self, name: str, source: str) -> None:
        """Writes a module of the agent's own."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))

    @property
    def imports(self) -> list[int]:
        """The processes that imported the package."""
        return [int(line) for line in self._imports.read_text().split()] if self._imports.exists() else []

    async def played(
        self, entry_point: str = "agent.py:play", *, is_isolated: bool = False, forks: bool = True
    ) -> list[dict[str, object]]:
        """The answers of eight attempts at once on two workers."""
        async with hosted(
            entry_point, workers=2, environment=self.environment, folder=self.folder, forks=forks
        ) as agent:
            return await answers(agent, is_isolated=is_isolated)


_NOTING = "import os\nwith open(os.environ['IMPORTS'], 'a') as noted:\n    print(os.getpid(), file=noted)\n"


async def answers(agent: EntryPointAgent, *, is_isolated: bool = False) -> list[dict[str, object]]:
    """The answers of eight attempts at once."""
    results = await asyncio.gather(*(agent.invoke(attempt("hello", is_isolated=is_isolated)) for _ in range(8)))
    found = [result.body for result in results]
    assert all(isinstance(body, dict) for body in found), results
    return found  # type: ignore[return-value]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of its own."""
    return World(tmp_path)


@pytest.mark.parametrize("is_isolated", [False, True])
async def test_a_known_package_is_imported_once_for_all_workers(world: World, is_isolated: bool) -> None:
    world.write(AGENT)
    played = await world.played(is_isolated=is_isolated)
    assert len({one["pid"] for one in played}) == (8 if is_isolated else 2)
    assert [*{one["parent"] for one in played}] == world.imports
    assert len({one["value"] for one in played}) == 8  # numbers of `random.random()`


async def test_any_other_package_is_imported_by_each_worker(world: World) -> None:
    world.write(AGENT.replace("requests", "heavy"), name="heavy")
    played = await world.played()
    assert set(world.imports) == {one["pid"] for one in played}
    assert len(world.imports) == 2


@pytest.mark.parametrize("package", [name for name in KNOWN_PACKAGES if importlib.util.find_spec(name) is not None])
def test_importing_a_known_package_leaves_no_unshareable_state(package: str) -> None:
    code = f"""
import importlib, os, sys

def open_and_running():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

before = open_and_running()
for name in {KNOWN_PACKAGES[package]}:
    importlib.import_module(name)
assert open_and_running() == before, open_and_running()
assert "numpy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("is_isolated", [False, True])
async def test_where_forks_are_unsafe_each_worker_is_a_new_interpreter(world: World, is_isolated: bool) -> None:
    world.write(AGENT.replace("    time", "    print(payload['prompt'])\n    time"), value="os.environ['JOB']")
    world.environment["JOB"] = "held-out"
    played = await world.played(is_isolated=is_isolated, forks=False)
    assert {one["pid"] for one in played} <= set(world.imports)
    assert len({one["pid"] for one in played}) == (8 if is_isolated else 2)
    assert {one["value"] for one in played} == {"held-out"}


async def test_a_new_interpreter_keeps_the_output_and_the_exit_of_an_attempt(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("import os\ndef play(payload):\n    print('about to go')\n    os._exit(3)\n")
    async with hosted("agent.py:play", folder=tmp_path, forks=False) as agent:
        result = await agent.invoke(attempt("hello"))
    assert (result.outcome, result.message) == (Outcome.CRASHED, "the agent's process ended with exit status 3")
    assert result.output == "about to go\n"


@pytest.mark.parametrize(
    ("package", "forks", "workers"),
    [("httpx", True, 4), ("aiohttp", True, 1), ("httpx", False, 1)],
    ids=["httpx", "aiohttp", "new-interpreters"],
)
async def test_many_attempts_get_more_workers_than_cores_where_these_share_the_import_of_httpx(
    world: World, package: str, forks: bool, workers: int
) -> None:
    world.write(f"import {package}\n{AGENT}")
    async with hosted(
        "agent.py:play",
        workers=None,
        concurrency=50,
        environment=world.environment,
        folder=world.folder,
        forks=forks,
        cores=1,
        further_after_seconds=0,
    ) as agent:
        played = await asyncio.gather(*(agent.invoke(attempt("hello")) for _ in range(50)))
    spread = Counter(result.body["pid"] for result in played if isinstance(result.body, dict))
    assert len(spread) == workers
    assert max(spread.values()) <= 50 / workers + 1  # all at once: none had more than its share


async def test_a_worker_holds_on_to_no_pipe_of_the_others(world: World) -> None:
    world.write(AGENT, value="[os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')[:-1]]")
    held = [one["value"] for one in await world.played(is_isolated=True)]
    pipes = [{place for place in places if place.startswith("pipe:")} for places in held]  # type: ignore[attr-defined]
    assert all(pipes)
    assert max(Counter(pipe for of_one in pipes for pipe in of_one).values()) == 1


@pytest.mark.parametrize(
    ("package", "value"),
    [
        ("import random\nGENERATOR = random.Random()", "requests.GENERATOR.random()"),
        ("import random\nGENERATOR = random.Random()\nGENERATOR.random()", "requests.GENERATOR.random()"),
        (
            "import random\nclass Generator(random.Random): pass\nGENERATOR = Generator()",
            "requests.GENERATOR.random()",
        ),
        ("import numpy.random", "float(requests.numpy.random.random())"),
    ],
    ids=["new", "used", "narrower", "numpy"],
)
async def test_generators_of_a_shared_package_draw_other_numbers_in_each_worker(
    world: World, package: str, value: str
) -> None:
    world.write(AGENT, package=package, value=value)
    played = await world.played(is_isolated=True)
    assert [*{one["parent"] for one in played}] == world.imports
    assert len({one["value"] for one in played}) == 8


async def test_a_file_of_the_agent_named_like_a_known_package_is_the_agents(world: World) -> None:
    world.write(AGENT, value="requests.MINE")
    world.write_module("requests.py", _NOTING + "MINE = True\n")
    played = await world.played()
    assert all(one["value"] is True for one in played)
    assert set(world.imports) == {one["pid"] for one in played}


@pytest.mark.parametrize(
    ("agent", "modules"),
    [
        ("import own.board\n", {"own/board.py": "import requests\n"}),
        ("from own import board\n", {"own/__init__.py": "", "own/board.py": "from requests import os\n"}),
        (
            "from own.board import SIZE\n",
            {"own/board.py": "from . import rules\nSIZE = 3\n", "own/rules.py": "import requests\n"},
        ),
        ("import first\n", {"first.py": "import second\n", "second.py": "import first\nimport requests\n"}),
    ],
    ids=["module", "package", "relative", "circle"],
)
async def test_a_known_package_that_only_the_agents_own_modules_import_is_shared_too(
    world: World, agent: str, modules: dict[str, str]
) -> None:
    world.write(agent + AGENT.replace("import requests\n", ""))
    for name, source in modules.items():
        world.write_module(name, source)
    played = await world.played()
    assert [*{one["parent"] for one in played}] == world.imports


async def test_an_agent_in_a_module_of_a_package_shares_imports_like_a_file(world: World) -> None:
    world.write("")
    world.write_module("own/__init__.py", "")
    world.write_module("own/agent.py", AGENT.replace("VALUE", "0"))
    played = await world.played("own.agent:play")
    assert [*{one["parent"] for one in played}] == world.imports


@pytest.mark.parametrize(
    ("agent", "modules"),
    [
        ("import os\nos.environ['OPENAI_LOG'] = 'debug'\n", {}),
        ("import settings\n", {"settings.py": "import os\nos.environ.update(OPENAI_LOG='debug')\n"}),
    ],
    ids=["own-file", "own-module"],
)
async def test_a_variable_that_an_agent_sets_before_an_import_is_read_by_the_import(
    world: World, agent: str, modules: dict[str, str]
) -> None:
    world.write(agent + AGENT, package="LEVEL = os.environ.get('OPENAI_LOG')", value="requests.LEVEL")
    for name, source in modules.items():
        world.write_module(name, source)
    played = await world.played()
    assert {one["value"] for one in played} == {"debug"}


async def test_an_import_that_fails_fails_where_the_agent_makes_it(world: World) -> None:
    guarded = "try:\n    import requests\nexcept ValueError:\n    import random\n"
    world.write(guarded + AGENT.replace("import requests\n", ""), package="raise ValueError('no licence')")
    assert len(await world.played()) == 8
    world.write(AGENT, package="raise ValueError('no licence')")
    with pytest.raises(ReferenceProblem, match=r"cannot be imported: ValueError: no licence \(agent.py:3\)$"):
        await world.played()


@pytest.mark.parametrize("name", ["requests", "heavy"])
async def test_an_import_that_ends_its_process_is_reported(world: World, name: str) -> None:
    world.write(AGENT.replace("requests", name), package="print('no licence', flush=True)\nos._exit(7)", name=name)
    with pytest.raises(
        ReferenceProblem, match=r"cannot be imported: its process ended with exit status 7 while starting: no licence$"
    ):
        await world.played()


async def test_output_of_an_import_belongs_to_no_attempt_and_its_handlers_write_to_the_attempt_that_logs(
    world: World,
) -> None:
    agent = AGENT.replace("    time.sleep(0.2)\n", "    requests.log.warning(payload['prompt'])\n    time.sleep(0.2)\n")
    package = "import logging\nprint('hello')\nlog = logging.Logger('mine')\nlog.addHandler(logging.StreamHandler())"
    world.write(agent, package=package)
    async with hosted("agent.py:play", environment=world.environment, folder=world.folder) as agent_played:
        results = await asyncio.gather(*(agent_played.invoke(attempt(str(number))) for number in range(4)))
    assert [result.output for result in results] == ["0\n", "1\n", "2\n", "3\n"]


async def test_workers_end_with_the_process_they_are_forks_of_and_others_take_their_place(world: World) -> None:
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
def current(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world that is this process's environment and working directory."""
    monkeypatch.chdir(world.folder)
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OUTSIDE", "before")
    return world


@pytest.mark.parametrize("arguments", [["--agent", "agent.py:play"], ["--limit", "3", "--agent=agent.py:play"]])
async def test_imports_begin_early_for_a_command_with_a_local_agent_and_workers_have_the_environment_of_the_job(
    current: World, arguments: list[str]
) -> None:
    current.write(AGENT, value="[os.environ['JOB'], os.environ.get('OUTSIDE')]")
    start_early(["evaluate", *arguments])
    await until(lambda: len(current.imports) == 1)  # before any agent is started
    os.environ.pop("OUTSIDE")
    agent = EntryPointAgent("agent.py:play", environment={"JOB": "held-out"}, workers=2)
    await agent.start()
    try:
        played = await answers(agent)
    finally:
        await agent.stop()
    assert [*{one["parent"] for one in played}] == current.imports
    assert [one["value"] for one in played] == [["held-out", None]] * 8


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
def test_nothing_begins_early_for_a_command_without_a_local_agent(
    current: World, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    current.write(AGENT)
    monkeypatch.setattr(subprocess, "Popen", None)
    start_early(arguments)


def test_a_command_that_refuses_its_input_leaves_no_process(world: World) -> None:
    world.write(AGENT, package="import time\ntime.sleep(60)")
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
