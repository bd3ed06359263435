"""The frames between an evaluation and its engine."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import CoroutineType
from typing import Any

from heldout.backends.local.backend import LocalBackend
from heldout.pipeline.definition import EvaluationJobs
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending
from tests.support.evaluations import new_evaluation
from tests.support.jobs import PLAYERS, document

DEADLINE_SECONDS = 60.0


def frames(coroutine: object) -> Iterator[str]:
    """The names of the coroutines that wait for each other, from the outermost on."""
    while isinstance(coroutine, CoroutineType):
        yield coroutine.cr_code.co_name
        coroutine = coroutine.cr_await


async def test_four_frames_lie_between_the_command_and_the_engine(tmp_path: Path) -> None:
    async with ScriptedServer() as server, asyncio.timeout(DEADLINE_SECONDS):
        job = document(tmp_path, server.url, ["300"], agent=f"{PLAYERS}:slow")
        evaluation = new_evaluation(tmp_path, EvaluationJobs(base=job, fine_tuned=None))
        context = PlayContext()
        playing: asyncio.Task[Any] = asyncio.create_task(LocalBackend().play(evaluation, context))
        while server.num_calls == 0 and not playing.done():
            await asyncio.sleep(0.01)
        found = list(frames(playing.get_coro()))
        context.switch.stop()
        context.switch.stop()
        assert await playing is Ending.STOPPED
    assert found[:5] == ["play_evaluation", "run_pipeline", "play_job", "play_rollouts", "play"]
