"""What the machine or the Job Runtime's connection does to an attempt is no failure of the agent."""

import errno
import socket
from pathlib import Path

import pytest

from heldout.agents.agentcore_contract import read_answer
from heldout.agents.base import Outcome
from heldout.errors import JobFailed, ReferenceProblem
from tests.support.agents_support import attempt, hosted

SOURCE = """
import errno, http.client, os, urllib.request

def play(payload):
    verb, _, argument = payload["prompt"].partition(" ")
    VERBS[verb](argument)

def too_many_files(argument):
    held = []
    while True:
        held.append(open(os.devnull))

def hidden(argument):
    try:
        raise OSError(int(argument), os.strerror(int(argument)))
    except OSError as error:
        raise ValueError("the client says nothing about it") from error

def no_memory(argument):
    bytearray(1 << 60)

def no_thread(argument):
    raise RuntimeError("can't start new thread")

def openai_client(url):
    from openai import OpenAI
    OpenAI(base_url=url, api_key="x", max_retries=0).models.list()

def urllib_client(url):
    urllib.request.urlopen(url)

VERBS = {f.__name__: f for f in (too_many_files, hidden, no_memory, no_thread, openai_client, urllib_client)}
"""


@pytest.fixture
def agent(tmp_path: Path) -> str:
    (tmp_path / "exhausted.py").write_text(SOURCE)
    return "exhausted.py:play"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    "prompt", ["too_many_files", f"hidden {errno.ENOSPC}", f"hidden {errno.EMFILE}", "no_memory", "no_thread"]
)
async def test_an_agent_that_meets_the_machines_limits_has_not_failed_itself(
    tmp_path: Path, agent: str, prompt: str
) -> None:
    async with hosted(agent, folder=tmp_path) as running:
        result = await running.invoke(attempt(prompt))
    assert result.outcome is Outcome.EXHAUSTED


@pytest.mark.parametrize("prompt", [f"hidden {errno.ENOENT}", f"hidden {errno.EADDRNOTAVAIL}"])
async def test_any_other_error_of_the_system_is_the_agents(tmp_path: Path, agent: str, prompt: str) -> None:
    async with hosted(agent, folder=tmp_path) as running:
        result = await running.invoke(attempt(prompt))
    assert result.outcome is Outcome.RAISED


@pytest.mark.parametrize("client", ["openai_client", "urllib_client"])
async def test_a_refused_connection_is_the_harnesss_only_at_the_job_runtimes_address(
    tmp_path: Path, agent: str, client: str
) -> None:
    runtime, elsewhere = (f"http://127.0.0.1:{closed_port()}" for _ in range(2))
    async with hosted(agent, folder=tmp_path, environment={"RFT_RUNTIME_ENDPOINT": runtime}) as running:
        of_runtime = await running.invoke(attempt(f"{client} {runtime}/v1"))
        of_another = await running.invoke(attempt(f"{client} {elsewhere}/v1"))
    assert (of_runtime.outcome, of_another.outcome) == (Outcome.DISCONNECTED, Outcome.RAISED)


async def test_an_application_that_names_the_machines_limit_has_not_failed_itself() -> None:
    body = b'{"error": "[Errno 24] Too many open files", "error_type": "OSError"}'
    assert read_answer(500, "application/json", body).outcome is Outcome.EXHAUSTED
    body = b'{"error": "[Errno 2] No such file", "error_type": "OSError"}'
    assert read_answer(500, "application/json", body).outcome is Outcome.RAISED


KILLED = """
import os, signal, pathlib
log = pathlib.Path(__file__).with_name("starts")
starts = len(log.read_text()) if log.exists() else 0
log.write_text("x" * (starts + 1))
if starts < {kills}:
    os.kill(os.getpid(), signal.SIGKILL)

def play(payload):
    return {{"reward": 1.0}}
"""


async def test_a_worker_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED.format(kills=2))
    async with hosted("killed.py:play", folder=tmp_path) as running:
        assert (await running.invoke(attempt("p"))).outcome is Outcome.RETURNED


async def test_workers_that_are_killed_each_time_stop_the_job_and_are_not_called_a_broken_import(
    tmp_path: Path,
) -> None:
    (tmp_path / "killed.py").write_text(KILLED.format(kills=99))
    with pytest.raises(JobFailed, match=r"was killed by SIGKILL while starting; 3 starts failed"):
        async with hosted("killed.py:play", folder=tmp_path):
            pass


async def test_an_agent_that_ends_its_process_while_it_is_imported_is_told_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\ndef play(payload): ...\n")
    with pytest.raises(ReferenceProblem, match="ended with exit status 3 while starting"):
        async with hosted("ends.py:play", folder=tmp_path):
            pass
