"""Work in the background: its failure is reported when it happens."""

import asyncio

import pytest

from heldout.background import start_task, start_thread


async def _fail() -> None:
    raise ValueError("no more room")


async def test_a_task_that_fails_is_reported_before_anyone_awaits_it(caplog: pytest.LogCaptureFixture) -> None:
    task = start_task(_fail(), "the copying of files")
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert "the copying of files ended: ValueError('no more room')" in caplog.text


async def test_a_task_that_fails_tells_the_one_who_started_it() -> None:
    told: list[BaseException] = []
    task = start_task(_fail(), "the copying of files", told.append)
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert [str(error) for error in told] == ["no more room"]


async def test_a_task_that_is_cancelled_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    task = start_task(asyncio.sleep(3600), "a wait")
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert caplog.text == ""


def test_a_thread_that_fails_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("no more room")

    start_thread(fail, "the renewal of a claim").join()
    assert "the renewal of a claim ended: ValueError('no more room')" in caplog.text
