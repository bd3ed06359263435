"""The engine with agents that are unreachable, fail, never end, or report while the disk is slow."""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import orjson
import pytest

from heldout.agents.base import Invocation, InvocationResult, Outcome
from heldout.background import backoff_seconds
from heldout.errors import JobFailed
from heldout.job.records import Attempt, Boundary, Failure, Prompt
from heldout.metrics.settings import MetricSettings
from heldout.rollouts.attempt import AttemptPlayer, PlayRules
from heldout.rollouts.engine import Ending, Engine, StopSwitch
from heldout.runs.journal import Journal, encode, read
from heldout.runs.journal_index import JournalIndex
from heldout.runs.progress import Progress
from tests.support.runtime_support import JOB_ARN, REGION, running_bench

RULES = PlayRules(JOB_ARN, REGION, temperature=1.0, top_p=1.0, max_tokens=10, timeout_seconds=30.0, seed=0)


class Agent:
    """An agent whose `invoke` is the test's function."""

    def __init__(self, play: Callable[[Invocation], Awaitable[InvocationResult]]) -> None:
        self._play = play

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def is_busy(self) -> bool:
        return False

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        return await self._play(invocation)


async def played(
    folder: Path,
    agent: Agent,
    *,
    num_prompts: int = 1,
    max_retries: int = 1,
    rules: PlayRules = RULES,
    delay: float = 0.5,
    switch: StopSwitch | None = None,
) -> list[Attempt]:
    """Plays one rollout of each prompt, one at a time, and returns all attempts. delay: before the first repeated attempt."""
    index = JournalIndex.of(folder, group_size=1)
    journal = Journal(folder)
    journal.open()
    async with running_bench() as bench, asyncio.timeout(60):
        engine = Engine(
            prompts=[Prompt(number, "p") for number in range(num_prompts)],
            group_size=1,
            concurrency=1,
            max_retries=max_retries,
            isolate_attempts=False,
            index=index,
            player=AttemptPlayer(rules=rules, runtime=bench.runtime, agent=agent, journal=journal),
            progress=Progress.of(
                num_prompts, 1, MetricSettings(pass_k_values=(1,), success_threshold=1.0), range(num_prompts)
            ),
            switch=switch or StopSwitch(),
            first_delay_seconds=delay,
            longest_delay_seconds=3 * delay,
        )
        assert await engine.play(3600) is (Ending.FINISHED if switch is None else Ending.STOPPED)
    await journal.close()
    return [line.attempt for line in read(folder) if not line.is_amendment]


async def test_attempts_at_an_unreachable_agent_are_repeated_with_growing_delays(tmp_path: Path) -> None:
    async def refuse(invocation: Invocation) -> InvocationResult:
        return InvocationResult(Outcome.UNREACHABLE, message="refused")

    attempts = await played(tmp_path, Agent(refuse), max_retries=3, delay=0.02)
    starts = [one.started_at for one in attempts]
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert len(pauses) == 3
    assert all(pause >= least for pause, least in zip(pauses, (0.018, 0.036, 0.054), strict=True))


async def test_a_stop_during_the_wait_before_another_attempt_starts_none(tmp_path: Path) -> None:
    switch = StopSwitch()

    async def refuse(invocation: Invocation) -> InvocationResult:
        asyncio.get_running_loop().call_later(0.1, switch.stop)
        return InvocationResult(Outcome.UNREACHABLE, message="refused")

    attempts = await played(tmp_path, Agent(refuse), max_retries=9, delay=3600.0, switch=switch)
    assert len(attempts) == 1


async def test_waits_between_attempts_stay_finite_after_thousands_of_failures() -> None:
    assert [backoff_seconds(0.5, n, 10.0) for n in (0, 1, 2, 5, 2000)] == [0.5, 1.0, 2.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("failing", "scored", "is_failed"),
    [
        (Outcome.UNREACHABLE, range(0, 120, 2), False),  # unreachable from time to time
        (Outcome.UNREACHABLE, range(1), True),  # unreachable from then on
        (Outcome.RAISED, range(1), False),  # an agent that fails most prompts
        (Outcome.RAISED, range(0), True),
    ],
)
async def test_a_job_fails_when_many_attempts_in_a_row_fail_or_reach_no_agent(
    tmp_path: Path, failing: Outcome, scored: range, is_failed: bool
) -> None:
    async def play(invocation: Invocation) -> InvocationResult:
        if int(invocation.trajectory_id.split("-")[0]) in scored:
            return InvocationResult(Outcome.RETURNED, body={"reward": 1.0})
        return InvocationResult(failing, message="no")

    playing = played(tmp_path, Agent(play), num_prompts=120, max_retries=0)
    if is_failed:
        with pytest.raises(JobFailed, match="the last 50 attempts all failed; the latest: agent: no"):
            await playing
    else:
        assert sum(one.rewards is not None for one in await playing) == len(scored)


async def test_a_resumed_job_does_not_repeat_earlier_attempts(tmp_path: Path) -> None:
    failure = Failure(Boundary.AGENT, "raised", "no such move")
    before = Attempt(0, 0, 2, "t", False, failure, None, (), (), (), "", 0.0, 0.0)
    (tmp_path / "000001.jsonl").write_bytes(encode(before))

    async def fail(invocation: Invocation) -> InvocationResult:
        return InvocationResult(Outcome.RAISED, message="no such move")

    attempts = await played(tmp_path, Agent(fail), max_retries=2)
    assert [(one.number, one.is_final) for one in attempts] == [(2, False), (3, True)]


async def test_a_reward_is_on_disk_before_its_report_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, is_durable, statuses = asyncio.Event(), threading.Event(), list[int]()
    loop = asyncio.get_running_loop()

    def sync(file: int) -> None:
        loop.call_soon_threadsafe(syncing.set)
        is_durable.wait(10)

    async def report(invocation: Invocation) -> InvocationResult:
        metadata = orjson.loads(invocation.payload)["metadata"]
        body = {"TrajectoryId": metadata["rolloutId"], "Rewards": [0.5], "Metrics": {"moves": 3}}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{metadata['baseUrl']}/update-reward", json=body) as answer,
        ):
            statuses.append(answer.status)
        return InvocationResult(Outcome.RETURNED, body={})

    monkeypatch.setattr("os.fdatasync", sync)
    playing = asyncio.create_task(played(tmp_path, Agent(report)))
    await asyncio.wait_for(syncing.wait(), 30)
    await asyncio.wait([playing], timeout=0.05)
    assert statuses == []
    is_durable.set()
    (attempt,) = await playing
    assert (statuses, attempt.rewards, attempt.metrics) == ([200], (0.5,), (("moves", 3.0),))


async def test_an_agent_that_runs_forever_after_its_reward_is_abandoned_and_flagged(tmp_path: Path) -> None:
    async def report_and_hang(invocation: Invocation) -> InvocationResult:
        await invocation.until_over(InvocationResult(Outcome.RETURNED, body={"reward": 1.0}))
        await asyncio.Event().wait()
        raise AssertionError

    await played(tmp_path, Agent(report_and_hang), rules=replace(RULES, grace_seconds=0.01))
    *_, last = read(tmp_path)
    assert (last.attempt.rewards, last.attempt.flags) == ((1.0,), ("no_model_call", "ran_on_after_end"))


async def test_metrics_that_are_not_named_numbers_are_dropped_and_flagged(tmp_path: Path) -> None:
    async def answer(invocation: Invocation) -> InvocationResult:
        return InvocationResult(Outcome.RETURNED, body={"reward": 1.0, "metrics": [1, 2]})

    (attempt,) = await played(tmp_path, Agent(answer))
    assert (attempt.rewards, attempt.metrics) == ((1.0,), ())
    assert attempt.flags == ("metric_dropped", "no_model_call")
