"""A job in a detached process: its state while it runs, stops and is resumed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from heldout.backends.local.detached import is_concluded, signal_stop, start_detached_run
from heldout.backends.local.evaluation_index import find_evaluation, remember
from heldout.errors import RunError
from heldout.pipeline.definition import EvaluationJobs
from heldout.policies.scripted import ScriptedServer
from heldout.runs.run import JobStatus, Run
from tests.support.evaluations import new_evaluation
from tests.support.jobs import PLAYERS, document, new_run

DEADLINE_SECONDS = 60.0


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.02)


async def test_a_job_that_was_interrupted_is_not_concluded_again_before_its_report_is_written(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["1"] * 40, agent=f"{PLAYERS}:slow", rollout_max_concurrency=1)
        for _ in range(2):
            start_detached_run(run, {})
            done = Run(run.folder, run.state.model_copy(update={"status": JobStatus.COMPLETED}))
            assert not is_concluded(done)  # its rollouts may be, and what is made of them is still to come
            before = server.num_calls
            await until(lambda before=before: server.num_calls > before)  # type: ignore[misc]
            assert signal_stop(run.folder)
            await until(lambda: not run.is_running())
            assert is_concluded(done)
    assert Run.open(run.folder).state.is_interrupted


def test_an_evaluation_whose_folder_was_moved_is_found_where_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    job = document(tmp_path, "http://127.0.0.1:9/v1", ["1"])
    evaluation = new_evaluation(tmp_path, EvaluationJobs(base=job, fine_tuned=None))
    remember(evaluation)
    moved = evaluation.folder.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"is no longer in .*evaluation; give the folder that it was moved to"):
        find_evaluation(evaluation.state.arn)
    assert find_evaluation(moved).location == str(moved)
