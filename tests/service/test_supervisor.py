"""The supervisor: a job is looked at until it has ended, whatever goes wrong with its files."""

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from heldout.errors import RunError
from heldout.service.store import Store
from heldout.service.supervisor import SupervisedJob, Supervisor
from heldout.storage.lock import FolderLock


class JobOfTest(SupervisedJob):
    @property
    def key(self) -> str:
        return self.arn


RECORD = JobOfTest(arn="arn:job")


class ScriptedWork:
    """Work whose process is a lock that the test takes and releases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = 0
        self.ended: list[str | None] = []
        self.problem: Exception | None = None
        self.on_start: Callable[[], None] = lambda: None
        self._lock: FolderLock | None = None

    def is_over(self, *, is_stopping: bool) -> bool:
        if self.problem is not None:
            raise self.problem
        return bool(self.ended)

    def start(self) -> None:
        if self.problem is not None:
            raise self.problem
        self.starts += 1
        self._lock = FolderLock.take(self.folder)
        self.on_start()

    def die(self) -> None:
        assert self._lock is not None
        self._lock.release()

    def end(self, failure: str | None) -> None:
        if self.problem is not None:
            raise self.problem
        self.ended.append(failure)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "service.db")
    store.put(RECORD)
    return store


@pytest.fixture
def work(tmp_path: Path) -> ScriptedWork:
    folder = tmp_path / "job"
    folder.mkdir()
    return ScriptedWork(folder)


@asynccontextmanager
async def watched(supervisor: Supervisor) -> AsyncIterator[None]:
    watching = asyncio.create_task(supervisor.watch())
    try:
        yield
    finally:
        assert not watching.done()
        watching.cancel()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


_PROBLEMS = [
    OSError(errno.ENOSPC, "No space left on device"),
    RunError("no evaluation in it"),
    ValueError("half a file"),
]


@pytest.mark.parametrize("problem", _PROBLEMS, ids=repr)
async def test_a_job_is_looked_at_again_after_an_error_that_passes(
    store: Store, work: ScriptedWork, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(store, look_every_seconds=0.005)
    work.problem = problem
    async with watched(supervisor):
        supervisor.supervise(RECORD, work)
        await asyncio.sleep(0.05)
        assert work.starts == 0
        work.problem = None
        await _until(lambda: work.starts == 1)
        assert caplog.text.count("is looked at again") == 1
        work.problem = problem
        work.die()
        await asyncio.sleep(0.05)
        work.problem = None
        await _until(lambda: work.starts == 2)


async def test_a_stop_during_an_error_that_passes_ends_the_job(store: Store, work: ScriptedWork) -> None:
    supervisor = Supervisor(store, look_every_seconds=0.005)
    work.problem = OSError(errno.ENOENT, "No such file or directory")
    async with watched(supervisor):
        supervisor.supervise(RECORD, work)
        supervisor.stop(RECORD.arn)
        work.problem = None
        await _until(lambda: work.ended == [None])
    assert work.starts == 0


async def test_a_stop_that_arrives_while_a_job_is_restarted_is_obeyed(store: Store, work: ScriptedWork) -> None:
    supervisor = Supervisor(store, look_every_seconds=0.005)
    stopping = threading.Thread(target=lambda: supervisor.stop(RECORD.arn))
    work.on_start = stopping.start  # its process is there, and `resume` has not returned
    await asyncio.to_thread(supervisor.resume, RECORD, work)
    stopping.join()
    work.die()
    async with watched(supervisor):
        await _until(lambda: work.ended == [None])
    assert work.starts == 1


def test_a_restart_that_fails_leaves_nothing_supervised(store: Store, work: ScriptedWork) -> None:
    supervisor = Supervisor(store)
    work.problem = RunError("a process works on it")
    with pytest.raises(RunError):
        supervisor.resume(RECORD, work)
    work.problem = None
    supervisor.stop(RECORD.arn)
    assert work.ended == []


async def test_a_process_that_dies_at_once_is_started_four_times(store: Store, work: ScriptedWork) -> None:
    supervisor = Supervisor(store, look_every_seconds=0.005)
    work.on_start = work.die
    async with watched(supervisor):
        supervisor.supervise(RECORD, work)
        await _until(lambda: bool(work.ended))
    assert work.starts == 4
    assert str(work.ended[0]).startswith("its process died 4 times")


async def test_a_process_that_lived_long_before_it_died_has_all_its_starts_again(
    store: Store, work: ScriptedWork
) -> None:
    seconds = 0.0
    supervisor = Supervisor(store, look_every_seconds=0.005, clock=lambda: seconds)
    async with watched(supervisor):
        supervisor.supervise(RECORD, work)
        for number in range(2, 10):
            seconds += 3600.0  # a machine that is restarted every hour
            work.die()
            await _until(lambda number=number: work.starts == number)  # type: ignore[misc]
    assert work.ended == []
