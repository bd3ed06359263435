"""Entry points in supervised worker processes: real processes, real crashes."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import aiohttp
import pytest

from heldout.agents.base import InvocationResult, Outcome
from heldout.agents.entry_point import EntryPointAgent
from heldout.agents.entry_point_lookup import parse_entry_point
from heldout.agents.worker.functions import FunctionHost
from heldout.agents.worker.loading import load
from heldout.agents.worker.service import Service
from heldout.errors import ReferenceProblem
from heldout.http.server import Server
from tests.support.agents_support import AGENTS, attempt, hosted, is_alive, until


def body(result: InvocationResult) -> dict[str, object]:
    """The JSON object that an attempt returned."""
    assert result.outcome is Outcome.RETURNED, result
    assert isinstance(result.body, dict)
    return result.body


@pytest.mark.parametrize("name", ["play", "play_sync", "stream", "stream_async", "player", "partial"])
async def test_any_kind_of_function_plays(name: str) -> None:
    async with hosted(f"troublesome.py:{name}") as agent:
        assert body(await agent.invoke(attempt("hello")))["reward"] == 1.0


async def test_a_module_plays_like_a_file() -> None:
    async with hosted("agents.troublesome:play", folder=AGENTS.parent) as agent:
        assert body(await agent.invoke(attempt("hello")))["reward"] == 1.0


async def test_an_agent_that_takes_a_context_learns_its_session() -> None:
    async with hosted("troublesome.py:with_context") as agent:
        invocation = attempt("hello")
        answer = body(await agent.invoke(invocation))
        assert answer == {"prompt": "hello", "session": invocation.trajectory_id, "headers": None}


@pytest.mark.parametrize("name", ["play", "play_sync"])
async def test_an_exception_of_an_agent_has_its_line_and_traceback(name: str) -> None:
    async with hosted(f"troublesome.py:{name}") as agent:
        result = await agent.invoke(attempt("raise out of\ncheese"))
        line = (AGENTS / "troublesome.py").read_text().splitlines().index("            raise ValueError(rest)") + 1
        assert result.outcome is Outcome.RAISED
        assert result.message == f"ValueError: out of cheese (troublesome.py:{line})"
        assert result.output.startswith("playing raise\nTraceback (most recent call last):\n")
        assert "heldout" not in result.output
        exited = await agent.invoke(attempt("sys-exit"))
        assert (exited.outcome, exited.message.partition(" (")[0]) == (Outcome.RAISED, "SystemExit: enough")


@pytest.mark.parametrize(("ending", "status"), [("sys.exit(3)", 3), ("raise ValueError", 1), ("return {}", 0)])
async def test_a_process_that_an_agent_forks_ends_where_it_leaves_the_agent(
    tmp_path: Path, ending: str, status: int
) -> None:
    body_of_play = f"""
import os, sys
def play(payload):
    child = os.fork()
    if child == 0:
        {ending}
    return {{"reward": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}}
"""
    (tmp_path / "forking.py").write_text(body_of_play)
    async with hosted("forking.py:play", folder=tmp_path) as agent:
        result = await agent.invoke(attempt("hello", timeout_seconds=60))
    assert body(result)["reward"] == status


async def test_an_exception_group_is_described_by_its_first_exception(tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text(
        "def play(payload):\n    raise ExceptionGroup('two tools', [ValueError('no\\nboard'), KeyError('dice')])\n"
    )
    async with hosted("many.py:play", folder=tmp_path) as agent:
        message = (await agent.invoke(attempt("hello"))).message
    assert message == "ExceptionGroup: two tools (2 sub-exceptions), the first ValueError: no board (many.py:2)"


async def test_a_file_with_relative_imports_gets_the_hint_to_use_a_module(tmp_path: Path) -> None:
    (tmp_path / "game").mkdir()
    (tmp_path / "game" / "__init__.py").touch()
    (tmp_path / "game" / "board.py").write_text("SIZE = 3\n")
    (tmp_path / "game" / "agent.py").write_text(
        "from .board import SIZE\ndef play(payload):\n    return {'reward': SIZE}\n"
    )
    with pytest.raises(ReferenceProblem, match=r"\(agent\.py:1\); give it as a module: game\.agent:play$"):
        async with hosted("game/agent.py:play", folder=tmp_path):
            pass
    async with hosted("game.agent:play", folder=tmp_path) as agent:
        assert body(await agent.invoke(attempt("hello")))["reward"] == 3


async def test_a_stream_that_breaks_off_is_an_error_and_not_its_last_value() -> None:
    async with hosted("troublesome.py:stream") as agent:
        result = await agent.invoke(attempt("raise"))
        assert result.outcome is Outcome.RAISED
        assert result.message.startswith("ValueError: half way (troublesome.py:")
        assert result.output.startswith("streaming\n")


async def test_values_that_are_not_json_are_refused_by_type_and_numbers_of_any_kind_pass() -> None:
    async with hosted("troublesome.py:play") as agent:
        refused = await agent.invoke(attempt("object"))
        assert refused.outcome is Outcome.RAISED
        assert refused.message == "TypeError: the agent returned a value of type Event, which is not JSON"
        assert body(await agent.invoke(attempt("decimal")))["reward"] == 0.5
        answer = body(await agent.invoke(attempt("nan")))
        assert math.isnan(float(str(answer["reward"])))
        assert answer["metrics"] == {"high": math.inf}


async def test_each_attempt_keeps_its_own_output(capfd: pytest.CaptureFixture[str]) -> None:
    async with hosted("troublesome.py:play") as agent:
        results = await asyncio.gather(*(agent.invoke(attempt(f"chat number-{n}")) for n in range(40)))
    for n, result in enumerate(results):
        said = [f"number-{n} {rest}" for rest in ("0", "1", "2", "on stderr", "logged", "in a thread", "in bytes")]
        assert result.output.splitlines() == ["playing chat", *said]
    assert capfd.readouterr() == ("", "")


async def test_only_the_last_64_kib_of_output_are_kept(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("def play(payload):\n    print('x' * 300_000 + 'end')\n")
    async with hosted("loud.py:play", folder=tmp_path) as agent:
        output = (await agent.invoke(attempt("hello"))).output
        assert len(output) == 64 * 1024
        assert output.endswith("xend\n")


@pytest.mark.parametrize(
    ("word", "reason"), [("exit", "ended with exit status 3"), ("segfault", "was killed by SIGSEGV")]
)
async def test_a_crash_costs_only_its_own_attempt_and_keeps_its_output(word: str, reason: str) -> None:
    async with hosted("troublesome.py:play_sync") as agent:
        crashed = await agent.invoke(attempt(word))
        assert (crashed.outcome, crashed.message) == (Outcome.CRASHED, f"the agent's process {reason}")
        assert crashed.output.startswith(f"playing {word}\n")
        assert ("Fatal Python error: Segmentation fault" in crashed.output) == (word == "segfault")
        assert body(await agent.invoke(attempt("hello")))["reward"] == 1.0


async def test_attempts_that_share_a_crash_are_lost_and_alone_the_guilty_one_is_found() -> None:
    async with hosted("troublesome.py:play") as agent:
        shared = await asyncio.gather(agent.invoke(attempt("meet-and-exit")), agent.invoke(attempt("meet 3600")))
        assert [result.outcome for result in shared] == [Outcome.LOST, Outcome.LOST]
        assert shared[1].message == "its process ended with exit status 5, with 2 attempts in it"
        alone = await asyncio.gather(
            agent.invoke(attempt("exit", is_isolated=True)), agent.invoke(attempt("hello", is_isolated=True))
        )
        assert [result.outcome for result in alone] == [Outcome.CRASHED, Outcome.RETURNED]
        pids = {str(body(await agent.invoke(attempt("hello", is_isolated=True)))["pid"]) for _ in range(2)}
        assert len(pids) == 2


async def test_an_async_attempt_that_runs_out_of_time_is_cancelled_and_its_worker_plays_on(tmp_path: Path) -> None:
    async with hosted("troublesome.py:play") as agent:
        before = body(await agent.invoke(attempt("hello")))["pid"]
        result = await agent.invoke(attempt(f"sleep {tmp_path / 'ended'}", timeout_seconds=0.2))
        assert (result.outcome, result.message) == (Outcome.TIMED_OUT, "no answer within 0.2 s")
        assert result.output == "playing sleep\n"
        assert (tmp_path / "ended").exists()
        assert body(await agent.invoke(attempt("hello")))["pid"] == before


async def test_giving_an_attempt_up_cancels_it_in_its_worker(tmp_path: Path) -> None:
    async with hosted("troublesome.py:play") as agent:
        playing = asyncio.create_task(agent.invoke(attempt(f"sleep {tmp_path / 'ended'}")))
        await until((tmp_path / "ended.begun").exists)
        playing.cancel()
        await until((tmp_path / "ended").exists)
        with pytest.raises(asyncio.CancelledError):
            await playing


@pytest.mark.parametrize(("name", "word"), [("play_sync", "hang"), ("play", "swallow")])
async def test_an_attempt_that_cannot_be_cancelled_ends_with_its_worker(name: str, word: str) -> None:
    async with hosted(f"troublesome.py:{name}") as agent:
        before = int(str(body(await agent.invoke(attempt("hello")))["pid"]))
        result = await agent.invoke(attempt(word, timeout_seconds=0.2))
        assert result.outcome is Outcome.TIMED_OUT
        assert result.output.startswith(f"playing {word}\n")
        assert body(await agent.invoke(attempt("hello")))["pid"] != before
        await until(lambda: not is_alive(before))


async def test_a_stuck_attempt_leaves_the_others_on_its_worker_time_to_finish() -> None:
    async with hosted("troublesome.py:play") as agent:
        other = asyncio.create_task(agent.invoke(attempt("meet 2.5")))
        assert (await agent.invoke(attempt("meet 0"))).outcome is Outcome.RETURNED
        assert (await agent.invoke(attempt("swallow", timeout_seconds=0.2))).outcome is Outcome.TIMED_OUT
        assert not other.done()
        assert (await other).outcome is Outcome.RETURNED


async def test_an_attempt_that_blocks_the_loop_alone_has_timed_out() -> None:
    async with hosted("troublesome.py:play", cancel_answer_seconds=0.3) as agent:
        result = await agent.invoke(attempt("block", timeout_seconds=0.2))
        assert (result.outcome, result.output) == (Outcome.TIMED_OUT, "playing block\n")
        assert body(await agent.invoke(attempt("hello")))["reward"] == 1.0


async def test_attempts_behind_a_blocked_loop_are_lost() -> None:
    async with hosted("troublesome.py:play", cancel_answer_seconds=0.3) as agent:
        results = await asyncio.gather(
            agent.invoke(attempt("meet-and-block", timeout_seconds=0.5)), agent.invoke(attempt("meet 3600"))
        )
        assert [result.outcome for result in results] == [Outcome.LOST, Outcome.LOST]
        assert "event loop was blocked" in results[1].message


async def test_two_hundred_sync_attempts_play_at_once() -> None:
    async with hosted("troublesome.py:play_sync") as agent:
        results = await asyncio.gather(*(agent.invoke(attempt("all-together")) for _ in range(200)))
        assert {result.outcome for result in results} == {Outcome.RETURNED}


async def test_attempts_are_spread_evenly_from_the_first_on(tmp_path: Path) -> None:
    async with hosted("troublesome.py:play", workers=2) as agent:
        playing = [asyncio.create_task(agent.invoke(attempt(f"hold {tmp_path}"))) for _ in range(20)]
        await until(lambda: len(list(tmp_path.glob("*.playing"))) == 20)
        (tmp_path / "go").touch()
        pids = [body(result)["pid"] for result in await asyncio.gather(*playing)]
        assert sorted(pids.count(pid) for pid in set(pids)) == [10, 10]


async def test_attempts_that_come_at_once_begin_one_after_the_other(tmp_path: Path) -> None:
    source = """
    import asyncio, time

    begun = 0

    async def play(payload):
        global begun
        begun += 1
        before = begun
        time.sleep(0.005)  # building a request, say
        for _ in range(3):
            await asyncio.sleep(0)
        return {"reward": 1, "meanwhile": begun - before}
    """
    (tmp_path / "agent.py").write_text(textwrap.dedent(source))
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        results = await asyncio.gather(*(agent.invoke(attempt("hello")) for _ in range(40)))
    begun_meanwhile = [body(result)["meanwhile"] for result in results]
    assert max(map(int, map(str, begun_meanwhile))) <= 3  # one a round of the loop


@pytest.mark.parametrize("is_applied_late", [False, True])
async def test_an_agent_may_run_a_loop_inside_the_running_one(tmp_path: Path, is_applied_late: bool) -> None:
    source = """
    import asyncio
    import nest_asyncio
    APPLIED_FIRST

    async def ask():
        await asyncio.sleep(0.01)
        return 0.5

    async def play(payload):
        nest_asyncio.apply()
        return {"reward": asyncio.run(ask())}
    """
    source = source.replace("APPLIED_FIRST", "" if is_applied_late else "nest_asyncio.apply()")
    (tmp_path / "agent.py").write_text(textwrap.dedent(source))
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        results = await asyncio.gather(*(agent.invoke(attempt("hello")) for _ in range(4)))
    assert [body(result)["reward"] for result in results] == [0.5] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such choice")
async def test_attempts_wait_for_a_processor_rather_than_interrupt_others(tmp_path: Path) -> None:
    source = """
    import os

    def play(payload):
        return {"reward": 1, "is_patient": os.sched_getscheduler(0) == os.SCHED_BATCH}
    """
    (tmp_path / "agent.py").write_text(textwrap.dedent(source))
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        result = await agent.invoke(attempt("hello"))
    assert body(result)["is_patient"] is True


async def test_an_asgi_application_is_served_as_the_app_it_is() -> None:
    async with hosted("asgi_app.py:app") as agent:
        invocation = attempt("hello")
        result = await agent.invoke(invocation)
        assert body(result) == {"reward": 1, "session": invocation.trajectory_id, "has_started": True, "private": []}
        assert result.output == "playing hello\n"
        raised = await agent.invoke(attempt("raise"))
        assert (raised.outcome, raised.message) == (Outcome.RAISED, "ValueError: not today")
        assert (await agent.invoke(attempt("silence"))).outcome is Outcome.RAISED
        assert await agent.is_busy()


async def test_an_asgi_application_that_cannot_start_gives_the_reason() -> None:
    with pytest.raises(ReferenceProblem, match="the application did not start: no database"):
        async with hosted("asgi_app.py:broken"):
            pass


async def test_an_agent_may_close_its_standard_output() -> None:
    async with hosted("troublesome.py:play") as agent:
        assert body(await agent.invoke(attempt("close-output")))["reward"] == 1.0
        assert (await agent.invoke(attempt("hello"))).output == "playing hello\n"


@pytest.mark.parametrize("way", ["close", "detach", "with", "buffer"])
async def test_an_attempt_that_closes_sys_stdout_breaks_no_later_one(tmp_path: Path, way: str) -> None:
    statement = {
        "close": "sys.stdout.close(); sys.stderr.close()",
        "detach": "sys.stdout.detach().close()",
        "with": "with sys.stdout: pass",
        "buffer": "sys.stdout.buffer.close()",
    }[way]
    (tmp_path / "agent.py").write_text(
        f"import sys\ndef play(payload):\n    print(payload['prompt'])\n    {statement}\n    return {{'reward': 1}}\n"
    )
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        for prompt in ("one", "two"):
            result = await agent.invoke(attempt(prompt))
            assert (result.outcome, result.output) == (Outcome.RETURNED, f"{prompt}\n")


async def test_two_hundred_async_attempts_may_wait_in_threads_of_their_own() -> None:
    async with hosted("troublesome.py:play") as agent:
        results = await asyncio.gather(*(agent.invoke(attempt("to-threads")) for _ in range(200)))
        assert {result.outcome for result in results} == {Outcome.RETURNED}


async def test_a_worker_gets_the_environment_and_the_users_folder() -> None:
    async with hosted("troublesome.py:play", environment={"RFT_RUNTIME_ENDPOINT": "http://here"}) as agent:
        answer = body(await agent.invoke(attempt("environment RFT_RUNTIME_ENDPOINT")))
        assert (answer["value"], answer["folder"]) == ("http://here", str(AGENTS))


async def test_an_agents_own_clean_up_is_done_when_its_worker_ends(tmp_path: Path) -> None:
    source = """
    import atexit, pathlib, threading, time

    atexit.register(pathlib.Path("cleaned-up").touch)

    def play(payload):
        threading.Thread(target=time.sleep, args=[60]).start()  # which is not waited for
        return {"reward": 1}
    """
    (tmp_path / "agent.py").write_text(textwrap.dedent(source))
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        await agent.invoke(attempt("hello"))
        assert not (tmp_path / "cleaned-up").exists()
    assert (tmp_path / "cleaned-up").exists()


async def test_stopping_ends_workers_and_what_agents_started() -> None:
    async with hosted("troublesome.py:play") as agent:
        answer = body(await agent.invoke(attempt("child")))
    assert not is_alive(int(str(answer["pid"])))
    await until(lambda: not is_alive(int(str(answer["child"]))))
    await agent.stop()


async def test_workers_and_isolated_ones_die_with_a_killed_engine_even_when_blocked(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from tests.support.agents_support import attempt, hosted

        async def main():
            async with hosted("pid.py:play", folder=Path(sys.argv[2])) as agent:
                await asyncio.gather(agent.invoke(attempt("1")), agent.invoke(attempt("2", is_isolated=True)))

        asyncio.run(main())
    """)
    (tmp_path / "pid.py").write_text(
        "import os, pathlib, re\n"
        "async def play(payload):\n"
        "    pathlib.Path(f'{os.getpid()}.pid').touch()\n"
        "    re.match('(a*)*b', 'a' * 60)  # holds the interpreter for ever: no thread of it runs any more\n"
    )
    engine = subprocess.Popen([sys.executable, "-c", script, str(AGENTS.parent), str(tmp_path)])
    try:
        await until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    finally:
        engine.send_signal(signal.SIGKILL)
        engine.wait()
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    await until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (agent.py:1)"),
        ("\nimport os\nprint('last words')\nos._exit(4)\n", "ended with exit status 4 while starting: last words"),
        ("exec('play = 3')\nfrom os.path import *\n", "is int, which cannot be called"),
        ("from os.path import *\ndef plya(): ...\n", "agent.py has no function 'play'. Did you mean 'plya'?"),
    ],
)
async def test_an_agent_that_cannot_be_imported_gives_the_reason(tmp_path: Path, source: str, problem: str) -> None:
    (tmp_path / "agent.py").write_text(source + "\nfrom os.path import *\n")
    agent = EntryPointAgent("agent.py:play", environment={}, workers=2, working_directory=tmp_path)
    with pytest.raises(ReferenceProblem) as raised:
        await agent.start()
    assert str(raised.value).startswith("agent 'agent.py:play'")
    assert str(raised.value).endswith(problem)
    await agent.stop()


@pytest.mark.parametrize("parameters", ["", "payload, model", "*, payload"])
async def test_an_agent_without_a_payload_parameter_is_refused_before_its_first_attempt(
    tmp_path: Path, parameters: str
) -> None:
    (tmp_path / "agent.py").write_text(f"def play({parameters}): ...\n")
    agent = EntryPointAgent("agent.py:play", environment={}, workers=1, working_directory=tmp_path)
    with pytest.raises(ReferenceProblem, match=r"'agent.py:play' cannot be called .* define it as play\(payload\)"):
        await agent.start()
    await agent.stop()


@pytest.mark.parametrize("parameters", ["payload", "payload, context", "payload, model=None", "*arguments"])
async def test_an_agent_with_a_payload_parameter_gets_it(tmp_path: Path, parameters: str) -> None:
    (tmp_path / "agent.py").write_text(f"def play({parameters}): return 1\n")
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        assert (await agent.invoke(attempt("hello"))).body == 1


async def test_an_agent_whose_workers_no_longer_start_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "agent.py"
    path.write_text("import os\ndef play(payload):\n    os._exit(1)\n")
    async with hosted("agent.py:play", folder=tmp_path) as agent:
        path.write_text("raise ValueError('gone bad')\n")
        assert (await agent.invoke(attempt("hello"))).outcome is Outcome.CRASHED
        result = await agent.invoke(attempt("hello"))
        assert result.outcome is Outcome.UNREACHABLE
        assert result.message == "agent 'agent.py:play' cannot be imported: ValueError: gone bad (agent.py:1)"


async def test_a_file_named_like_a_module_of_python_can_be_an_agent(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("import urllib.request\ndef play(payload):\n    return {'reward': 1}\n")
    async with hosted("json.py:play", folder=tmp_path) as agent:
        assert body(await agent.invoke(attempt("hello"))) == {"reward": 1}


async def test_only_the_engine_may_talk_to_a_worker() -> None:
    agent = load(parse_entry_point("troublesome.py:play_sync"), AGENTS)
    server = Server(Service(FunctionHost(agent), "the key").handle, idle_seconds=60)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/invocations", data=attempt("hello").payload) as response:
            assert response.status == 403
        async with session.get(f"{url}/ping", headers={"Heldout-Worker-Key": "the key"}) as response:
            assert (await response.json())["status"] == "Healthy"
    await server.stop(1.0)


def test_a_worker_imports_nothing_heavy() -> None:
    code = "import heldout.agents.worker.__main__, sys, json; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
    assert not modules & {
        "aiohttp",
        "numpy",
        "boto3",
        "pydantic",
        "pyarrow",
        "orjson",
        "scipy",
        "typer",
        "rich",
        "requests",
    }
