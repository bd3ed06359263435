"""A whole job: stopped, out of time, killed and resumed, with its final numbers."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from math import comb
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from heldout.backends.local.job import play_rollouts
from heldout.backends.results import run_results
from heldout.datasets.prompts import PromptReader
from heldout.errors import JobFailed, ReferenceProblem, RunError
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.runs.progress import Progress
from heldout.runs.results import metrics_document, read_run_tables, summarize_run
from heldout.runs.run import STATE_KEY, JobStatus, Run, SecondaryStatus
from tests.support.jobs import PLAYERS, new_run, played, played_with, rows
from tests.support.model_servers import hanging_server
from tests.support.report_runs import Play, written_run

DEADLINE_SECONDS = 60.0


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def _metrics(run: Run) -> dict[str, Any]:
    return dict(orjson.loads(run.metrics_path.read_bytes()))


async def test_known_rewards_come_out_as_the_published_estimates(tmp_path: Path) -> None:
    # Three prompts x 4 rollouts with 0, 1 and 4 successes, told apart by the rollout's number in its id.
    agent = tmp_path / "known.py"
    agent.write_text(
        "def play(payload):\n"
        "    rollout = int(payload['metadata']['rolloutId'].split('-')[1])\n"
        "    return {'reward': 1.0 if rollout < int(payload['prompt']) else 0.0}\n"
    )
    successes = [0, 1, 4]
    run = await played(
        tmp_path / "job",
        [str(c) for c in successes],
        agent=f"{agent}:play",
        eval_group_size=4,
        pass_k_values=[1, 2, 4, 8],
    )
    metrics = _metrics(run)["metrics"]
    for k in (1, 2, 4):
        at_k = sum(1 - comb(4 - c, k) / comb(4, k) for c in successes) / 3
        power_k = sum(comb(c, k) / comb(4, k) for c in successes) / 3
        assert metrics[f"eval/reward/pass_at_{k}"] == pytest.approx(at_k, abs=1e-12)
        assert metrics[f"eval/reward/pass_power_{k}"] == pytest.approx(power_k, abs=1e-12)
    assert "eval/reward/pass_at_8" not in metrics
    assert metrics["eval/reward/rollouts_per_prompt"] == 4


def test_log_probabilities_are_described_token_by_token_as_they_were_recorded(tmp_path: Path) -> None:
    unknown = float("nan")
    plays = [[Play(logprobs=(-0.5, 0.0, -2.0)), Play()], [Play(logprobs=(0.0, unknown)), Play(logprobs=(-1.0,))]]
    found = _metrics(written_run(tmp_path / "run", plays))["metrics"]
    # Known tokens: -0.5, 0, -2, 0, -1.
    expected = {
        "zero_count": 2,
        "zero_per_group": 2 / 2,
        "zero_frac": 2 / 5,
        "nz_mean": -3.5 / 3,
        "nz_min": -2,
        "nz_max": -0.5,
        "nz_std": (5.25 / 3 - (3.5 / 3) ** 2) ** 0.5,
    }
    assert {name: found[f"eval/logprob/{name}"] for name in expected} == pytest.approx(expected)


def test_the_evaluation_time_is_a_metric(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[Play()]])
    assert _metrics(run)["metrics"]["timing_s/eval"] == run.state.evaluation_seconds == 12.0


async def test_a_run_shows_the_same_numbers_from_its_parquet_files_alone(tmp_path: Path) -> None:
    run = await played(tmp_path, ["0.25", "1", "turns 3", "raise x"], eval_group_size=2, rollout_max_retries=0)
    written = _metrics(run)
    for path in run.folder.iterdir():
        if path.suffix != ".parquet":
            path.unlink()
    alone = Run.open(run.folder)
    assert metrics_document(summarize_run(alone), is_partial=False) == written
    assert alone.state.status is JobStatus.COMPLETED
    assert (alone.state.name, alone.location) == ("test", str(run.folder))
    shown = Console(width=110)
    with shown.capture() as captured:
        shown.print(run_results(alone))
    assert "test/base-model-eval(incomplete)\n" in captured.get().replace(" ", "")
    assert written["rollouts"] == {"prompts": 4, "scored": 6, "failed": 2, "missing": 0}
    assert written["metrics"]["agent/turns_played"] == 3.0
    assert not run.has_journal
    assert not written["partial"]


async def test_a_stopped_run_of_which_only_the_tables_are_left_is_shown_and_not_played_over(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        # The second row plays first.
        run = new_run(tmp_path, server.url, ["300", "0"], agent=f"{PLAYERS}:slow", rollout_max_concurrency=1)
        switch = StopSwitch()
        playing = asyncio.create_task(played_with(run, switch))
        await _until(lambda: server.num_calls >= 2)
        switch.stop()
        switch.stop()
        await playing
    before = run.rollouts_path.read_bytes()
    shutil.rmtree(run.journal_folder)
    (run.folder / "job.json").unlink()
    alone = Run.open(run.folder)
    assert (alone.state.status, len(rows(alone))) == (JobStatus.STOPPED, 1)
    with pytest.raises(RunError, match="its journal is not there: it can be shown, not resumed"):
        await played_with(alone)
    assert run.rollouts_path.read_bytes() == before


async def test_tables_with_the_state_of_another_version_are_refused_in_one_line(tmp_path: Path) -> None:
    run = await played(tmp_path, ["1"])
    (run.folder / "job.json").unlink()
    table = pq.read_table(run.rollouts_path)
    pq.write_table(table.replace_schema_metadata({STATE_KEY: b'{"name": "x"}'}), run.rollouts_path)
    with pytest.raises(RunError, match="holds no job's state that can be read: Field required"):
        Run.open(run.folder)


def test_a_job_json_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"name": "x"}')
    with pytest.raises(RunError, match=r"job\.json is not a job's state: Field required"):
        Run.open(tmp_path)


async def test_a_job_says_completed_not_before_the_processes_of_its_agent_have_ended(tmp_path: Path) -> None:
    agent = tmp_path / "lingering.py"
    agent.write_text(
        "import atexit, os, time\n"
        "def play(payload):\n"
        "    atexit.register(time.sleep, 60)\n"
        "    return {'reward': 1.0, 'metrics': {'pid': os.getpid()}}\n"
    )
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["a"], agent=f"{agent}:play")
        playing = asyncio.create_task(played_with(run))
        await _until(lambda: Run.open(run.folder).state.status is JobStatus.COMPLETED)
        (row,) = rows(run)
        with pytest.raises(ProcessLookupError):
            os.kill(int(row["metrics"]["pid"]), 0)
        await playing


async def test_a_run_without_its_tables_or_with_half_of_one_says_so_in_one_line(tmp_path: Path) -> None:
    run = await played(tmp_path, ["1"])
    for name in ("trajectories.parquet", "rollouts.parquet"):
        whole = (run.folder / name).read_bytes()
        (run.folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            RunError, match=r"^the tables of the run in .* cannot be read \(.*\); copy the whole folder again$"
        ):
            summarize_run(Run.open(run.folder))
        (run.folder / name).unlink()
        with pytest.raises(RunError, match=name):
            summarize_run(Run.open(run.folder))


async def test_the_first_stop_finishes_what_is_in_flight_and_resume_completes_the_rest(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(
            tmp_path, server.url, ["0.5"] * 6, agent=f"{PLAYERS}:slow", rollout_max_concurrency=2, success_threshold=0.5
        )
        switch = StopSwitch()
        playing = asyncio.create_task(played_with(run, switch))
        await _until(lambda: server.num_calls >= 2)
        switch.stop()
        first = await playing
        assert first is Ending.STOPPED
        finished = {row["prompt_index"] for row in rows(run)}
        assert len(finished) == 2
        assert _metrics(run)["partial"] is True
        state = Run.open(run.folder).state
        assert (state.status, state.secondary_status) == (JobStatus.STOPPED, SecondaryStatus.INTERRUPTED)

        second = await played_with(run)
        assert second is Ending.FINISHED
        assert server.num_calls == 6
    assert sorted(row["prompt_index"] for row in rows(run)) == list(range(6))
    assert _metrics(run)["partial"] is False


async def test_a_run_that_goes_on_waits_for_its_model_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    switch = StopSwitch()
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1"] * 6, agent=f"{PLAYERS}:slow", rollout_max_concurrency=2)
        playing = asyncio.create_task(played_with(run, switch))
        await _until(lambda: server.num_calls >= 2)
        switch.stop()
        assert (await playing) is Ending.STOPPED
    going_on = asyncio.create_task(played_with(run))
    await _until(lambda: "waiting for it, since it answered before" in caplog.text or going_on.done())
    async with ScriptedServer(port=server.port) as back:
        assert await going_on is Ending.FINISHED
        assert back.num_calls == 4


async def test_a_stop_does_not_wait_for_a_model_that_never_gets_ready(tmp_path: Path) -> None:
    async with hanging_server() as (url, is_reached), asyncio.timeout(DEADLINE_SECONDS):
        run = new_run(tmp_path, url, ["1"] * 3)
        switch = StopSwitch()
        playing = asyncio.create_task(played_with(run, switch))
        await is_reached.wait()
        switch.stop()
        assert (await playing) is Ending.STOPPED
    assert rows(run) == []
    assert Run.open(run.folder).state.is_interrupted
    async with ScriptedServer(port=int(url.rpartition(":")[2].removesuffix("/v1"))):
        assert await played_with(run) is Ending.FINISHED
    assert _metrics(run)["rollouts"]["scored"] == 3


async def test_the_second_stop_gives_up_what_is_in_flight(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["300"] * 3, agent=f"{PLAYERS}:slow")
        switch = StopSwitch()
        playing = asyncio.create_task(played_with(run, switch))
        await _until(lambda: server.num_calls >= 3)
        switch.stop()
        switch.stop()
        result = await asyncio.wait_for(playing, DEADLINE_SECONDS)
    assert result is Ending.STOPPED
    assert _metrics(run)["rollouts"]["scored"] == 0
    assert rows(run) == []


async def test_the_maximum_runtime_stops_scheduling_and_writes_partial_results(tmp_path: Path) -> None:
    run = await played(tmp_path, ["1.5"] * 4, agent=f"{PLAYERS}:slow", rollout_max_concurrency=2, max_runtime=1)
    assert len(rows(run)) == 2
    assert _metrics(run)["partial"] is True
    assert _metrics(run)["rollouts"]["missing"] == 2
    assert Run.open(run.folder).state.secondary_status is SecondaryStatus.MAX_RUNTIME_EXCEEDED


async def test_the_rollouts_of_a_prompt_begin_together_in_the_order_of_play_after_a_resume_too(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(
            tmp_path, server.url, ["0.01"] * 8, agent=f"{PLAYERS}:slow", rollout_max_concurrency=1, eval_group_size=2
        )
        switch = StopSwitch()
        playing = asyncio.create_task(played_with(run, switch))
        await _until(lambda: server.num_calls >= 5)
        switch.stop()
        await playing
        order = PromptReader(run.prompts_path)
        await played_with(run)
    begun = sorted(rows(run), key=lambda row: row["started_at"])
    assert [(row["prompt_index"], row["rollout_index"]) for row in begun] == [
        (index, rollout) for index in order.indices() for rollout in range(2)
    ]
    assert list(order.indices()) != list(range(8))
    order.close()


async def test_never_more_rollouts_play_at_once_than_asked_for(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["0.05"] * 12, agent=f"{PLAYERS}:slow", rollout_max_concurrency=3)
        most = 0
        started: list[Progress] = []

        @contextlib.asynccontextmanager
        async def seen(_: Run, progress: Progress) -> AsyncIterator[None]:
            started.append(progress)
            yield

        playing = asyncio.create_task(play_rollouts(run, PlayContext(display=seen)))
        while not playing.done():
            most = max(most, started[0].in_flight if started else 0)
            await asyncio.sleep(0.002)
        await playing
    assert most == 3


async def test_an_unreachable_policy_fails_the_job_rather_than_scoring_zero(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["raise broken"] * 60, rollout_max_concurrency=8, rollout_max_retries=3)
        with pytest.raises(JobFailed, match=r"the last 50 attempts all failed.*broken"):
            await played_with(run)
    state = Run.open(run.folder).state
    assert state.status is JobStatus.FAILED
    assert "broken" in (state.failure_reason or "")


async def test_an_agent_of_this_machine_is_played_though_the_aws_configuration_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    run = await played(tmp_path, ["1"])
    assert [row["reward"] for row in rows(run)] == [1.0]


async def test_a_missing_agent_stops_the_job_before_any_rollout(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1"], agent=f"{tmp_path}/nowhere.py:play")
        with pytest.raises(ReferenceProblem, match=r"nowhere\.py"):
            await played_with(run)
        assert server.num_calls == 0


async def test_a_run_that_is_done_stays_as_it_is_when_started_again(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1", "0"])
        opened_before = Run.open(run.folder)
        await played_with(run)
        results, calls = rows(run), server.num_calls
        again = [await play_rollouts(opened_before, PlayContext()), await played_with(run)]
        assert server.num_calls == calls
    assert again == [Ending.FINISHED, Ending.FINISHED]
    assert rows(run) == results


async def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1"])
        with run.locked(), pytest.raises(RunError, match="being worked on by process"):
            await played_with(run)


def test_a_new_run_never_overwrites_an_existing_one(tmp_path: Path) -> None:
    new_run(tmp_path, "http://127.0.0.1:1/v1", ["1"])
    with pytest.raises(RunError, match=r"resume it .*or choose another --name"):
        new_run(tmp_path, "http://127.0.0.1:1/v1", ["1"])


def _heldout(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from heldout.cli.main import main; main()", *arguments]


async def test_a_run_whose_engine_is_killed_loses_and_repeats_nothing(tmp_path: Path) -> None:
    prompts = ["turns 3"] * 40
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, prompts, rollout_max_concurrency=4, eval_group_size=2)
        finished: Counter[tuple[int, int]] = Counter()
        for kill_after in (10, 30, 30, None):
            process = await asyncio.create_subprocess_exec(
                *_heldout("resume", str(run.folder), "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if kill_after is not None:
                before = server.num_calls
                await _until(lambda: server.num_calls - before >= kill_after)  # noqa: B023
                process.send_signal(signal.SIGKILL)
                await process.wait()
                done = _finished(run)
                assert finished.keys() <= done.keys()
                finished = done
            else:
                out, _ = await process.communicate()
                assert process.returncode == 0
                assert json.loads(out)["rollouts"]["scored"] == 80
    ended = Counter((row["prompt_index"], row["rollout_index"]) for row in rows(run))
    assert ended == Counter((p, r) for p in range(40) for r in range(2))
    assert set(finished.values()) <= {1}


def _finished(run: Run) -> Counter[tuple[int, int]]:
    tables = read_run_tables(Run.open(run.folder)).rollouts
    return Counter(zip(tables.prompt_index.tolist(), tables.rollout_index.tolist(), strict=True))


async def test_partial_files_of_a_killed_writer_are_removed_at_the_next_start(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1"])
        leftover = run.folder / ".rollouts.parquet.ab12cd34.heldout-partial"
        leftover.write_bytes(b"PAR1")
        await played_with(run)
    assert not leftover.exists()
    assert len(rows(run)) == 1


async def test_isolated_attempts_share_no_state_of_the_agents_module(tmp_path: Path) -> None:
    agent = tmp_path / "counting.py"
    agent.write_text("played = []\ndef play(payload):\n    played.append(1)\n    return {'reward': len(played)}\n")
    shared = await played(tmp_path / "shared", ["a"] * 4, agent=f"{agent}:play", rollout_max_concurrency=1)
    alone = await played(tmp_path / "alone", ["a"] * 4, agent=f"{agent}:play", isolate_attempts=True)
    assert max(row["reward"] for row in rows(shared)) > 1
    assert [row["reward"] for row in rows(alone)] == [1.0] * 4
