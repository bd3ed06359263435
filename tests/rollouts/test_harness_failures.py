"""Rollouts for which the machine lacks something, or whose model is gone: never scored, played again, in the end a stop."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import orjson
import pytest

from heldout.agents.base import Invocation, InvocationResult, Outcome
from heldout.backends.local.capacity import capacity
from heldout.errors import JobFailed
from heldout.job.records import Attempt, Prompt
from heldout.metrics.settings import MetricSettings
from heldout.policies.base import ModelCall, ModelReply, PolicyGivenUp
from heldout.rollouts.attempt import AttemptPlayer, PlayRules
from heldout.rollouts.engine import Ending, Engine, StopSwitch
from heldout.runs.journal import Journal, read
from heldout.runs.journal_index import JournalIndex
from heldout.runs.progress import Progress
from heldout.runtime import JobRuntime
from tests.support.agents_support import AGENTS
from tests.support.jobs import write_prompts
from tests.support.model_servers import model_server
from tests.support.runtime_support import JOB_ARN, NO_RULES, REGION
from tests.support.scripted_agents import __file__ as agents_file

RULES = PlayRules(JOB_ARN, REGION, temperature=1.0, top_p=1.0, max_tokens=10, timeout_seconds=30.0, seed=0)
COMMAND = "import sys; from heldout.cli.main import main; sys.argv = ['heldout', *sys.argv[1:]]; main()"


class LostModel:
    """A policy that is given up."""

    model_name = "lost"

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def call(self, call: ModelCall) -> ModelReply:
        raise PolicyGivenUp("its server was killed for the 6th time")


class Agent:
    """Ends attempts in turn as told, then with a reward."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.started_at: list[float] = []

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def is_busy(self) -> bool:
        return False

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        self.started_at.append(time.monotonic())
        if self.outcomes:
            return InvocationResult(self.outcomes.pop(0), message="[Errno 24] Too many open files")
        return InvocationResult(Outcome.RETURNED, body={"reward": 1.0})


class Swallowing(Agent):
    """Takes the model's error for a wrong answer."""

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        url = orjson.loads(invocation.payload)["metadata"]["baseUrl"]
        async with aiohttp.ClientSession() as session, session.post(f"{url}/chat/completions", json={"messages": []}):
            return InvocationResult(Outcome.RETURNED, body={"reward": 0.0})


class Endless(Agent):
    """Never ends an attempt."""

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        await super().invoke(invocation)
        await asyncio.Event().wait()
        raise AssertionError


async def play(
    folder: Path, agent: Agent, *, num_prompts: int = 1, wave_seconds: float = 0.1
) -> tuple[Ending | str, list[Attempt]]:
    """How playing ends, and the attempts in the journal."""
    journal = Journal(folder)
    journal.open()
    runtime = JobRuntime(job_arn=JOB_ARN, region=REGION, policy=LostModel(), rules=NO_RULES, credentials=[])
    await runtime.start()
    engine = Engine(
        prompts=[Prompt(number, "p") for number in range(num_prompts)],
        group_size=1,
        concurrency=num_prompts,
        wave_seconds=wave_seconds,
        max_retries=0,
        isolate_attempts=False,
        index=JournalIndex.of(folder, group_size=1),
        player=AttemptPlayer(rules=RULES, runtime=runtime, agent=agent, journal=journal),
        progress=Progress.of(
            num_prompts, 1, MetricSettings(pass_k_values=(1,), success_threshold=1.0), range(num_prompts)
        ),
        switch=StopSwitch(),
        first_delay_seconds=0.001,
        longest_delay_seconds=0.001,
    )
    try:
        ending: Ending | str = await engine.play(60)
    except JobFailed as error:
        ending = str(error)
    finally:
        await runtime.stop()
        await journal.close()
    return ending, [line.attempt for line in read(folder) if not line.is_amendment]


@pytest.mark.parametrize("outcome", [Outcome.EXHAUSTED, Outcome.DISCONNECTED])
async def test_an_attempt_that_the_machine_failed_is_played_again_whatever_the_retries(
    tmp_path: Path, outcome: Outcome
) -> None:
    ending, attempts = await play(tmp_path, Agent(outcome, outcome, outcome))
    assert ending is Ending.FINISHED
    assert [attempt.is_final for attempt in attempts] == [False, False, False, True]
    assert [attempt.number for attempt in attempts] == [1, 1, 1, 1]
    assert {str(attempt.failure.boundary) for attempt in attempts if attempt.failure} == {"harness"}


async def test_a_machine_that_stays_exhausted_stops_the_job_without_scoring(tmp_path: Path) -> None:
    ending, attempts = await play(tmp_path, Agent(*[Outcome.EXHAUSTED] * 50))
    assert "Too many open files" in str(ending)
    assert "lower rollout_max_concurrency" in str(ending)
    assert not any(attempt.is_final for attempt in attempts)
    ending, attempts = await play(tmp_path, Agent())  # resumed when the machine has room again
    assert ending is Ending.FINISHED
    assert [attempt.reward for attempt in attempts if attempt.is_final] == [1.0]


async def test_a_model_that_is_given_up_stops_the_job_and_spends_no_rollout(tmp_path: Path) -> None:
    ending, attempts = await play(tmp_path, Swallowing(), num_prompts=20)
    assert "the model is gone: " in str(ending)
    assert attempts
    assert not any(attempt.is_final or attempt.rewards for attempt in attempts)


async def test_thousands_of_rollouts_do_not_start_all_at_once(tmp_path: Path) -> None:
    agent, one_wave = Endless(), 256
    playing = asyncio.create_task(play(tmp_path, agent, num_prompts=700, wave_seconds=3600.0))
    async with asyncio.timeout(60):
        while len(agent.started_at) < one_wave:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert len(agent.started_at) == one_wave
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)


@pytest.mark.parametrize(("soft", "hard", "is_lowered"), [(256, 256, True), (64, 4096, False)])
def test_a_low_limit_on_open_files_costs_time_and_no_rollout(
    tmp_path: Path, soft: int, hard: int, is_lowered: bool
) -> None:
    dataset = write_prompts(tmp_path, ["turns 2"] * 220)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with model_server(tmp_path) as model:
        arguments = ["--model", model, "--agent", f"{agents_file}:play", "--dataset", str(dataset), "--mlflow", "off"]
        arguments += ["--output", str(tmp_path / "runs"), "--name", "t", "-H", "rollout_max_concurrency=200"]
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "evaluate", *arguments],
            preexec_fn=limit,  # no threads here
            env={**os.environ, "PYTHONPATH": str(AGENTS.parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "runs/t").glob("*/metrics.json")
    metrics = json.loads(file.read_bytes())
    assert metrics["rollouts"] == {"prompts": 220, "scored": 220, "failed": 0, "missing": 0}
    assert metrics["metrics"]["eval/reward/mean"] == 1.0
    assert done.stderr.count("play at once instead of 200") == (1 if is_lowered else 0)


@pytest.mark.parametrize(("limit", "fits"), [(1024, 200), (65_536, 10_000), (1 << 20, 24_000)])
def test_a_usual_limit_on_open_files_has_room_for_as_many_rollouts(limit: int, fits: int) -> None:
    assert capacity(limit).rollouts >= fits


@pytest.mark.parametrize("limit", [8, 64, 256])
def test_a_low_limit_on_open_files_leaves_room_for_a_rollout_and_for_all_its_descriptors(limit: int) -> None:
    assert 1 <= capacity(limit).rollouts <= max(1, limit // 3)
