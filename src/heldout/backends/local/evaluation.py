"""An evaluation on this machine: its pipeline executed in this process, results written, shown and tracked."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from heldout.backends.local.job import run_job
from heldout.backends.results import Note, compare_evaluation, finish_run
from heldout.errors import HeldoutError
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.runner import Work, run_pipeline
from heldout.pipeline.state import ExecutionStatus
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.runs.progress import Progress
from heldout.runs.remote_mirror import Mirror, patiently
from heldout.runs.run import JobStatus, Run
from heldout.storage import is_remote
from heldout.storage.claim import Claim
from heldout.storage.lock import FolderLock

_Result = TypeVar("_Result")
Display = Callable[[Run, Progress], AbstractAsyncContextManager[None]]
"""Shows how a job goes, from its first rollout on, while inside."""


async def play_evaluation(
    evaluation: Evaluation,
    display: Display,
    *,
    lock: FolderLock | None = None,
    on_stop: Callable[[bool], None],
    note: Note = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    max_runtime_seconds: int | None = None,
) -> Ending:
    """Executes what is left of an evaluation. SIGINT or SIGTERM stop it: the first lets what is in flight finish.

    on_stop: called at each of these signals, with whether it is not the first. note: told what is noted in the evaluation too.
    say: told what takes a while beside the rollouts. lock: the folder's, if it is held already. max_runtime_seconds: each job
    begins nothing new after them; by default what it was given.
    Raises HeldoutError when a step fails, RunError when another process works on the evaluation.
    """
    lock = lock or FolderLock.take(evaluation.folder)
    try:
        switch = StopSwitch()

        def stopping(again: bool) -> None:
            evaluation.update_here(status=ExecutionStatus.STOPPING)  # no network while rollouts are timed
            on_stop(again)

        with stopped_by_signals(switch, stopping):
            lock.sign()
            claim = await asyncio.to_thread(evaluation.claim, say)
            try:
                work = _LocalWork(evaluation, display, note, say, max_runtime_seconds)
                return await run_pipeline(evaluation, work, switch)
            finally:
                if claim is not None:
                    await _concluded(evaluation, claim)
    finally:
        lock.release()


async def _concluded(evaluation: Evaluation, claim: Claim) -> None:
    """Has the remote place say how the evaluation ended, and lets other machines go on with it."""

    def publish() -> None:
        claim.check()
        evaluation.publish()

    try:
        await patiently(publish, "how the evaluation ended")
    finally:
        await asyncio.to_thread(claim.release)


async def play_run(
    run: Run,
    display: Display,
    switch: StopSwitch,
    *,
    tags: Mapping[str, str],
    note: Note,
    say: Callable[[str], None] = lambda _: None,
    lock: FolderLock | None = None,
    max_runtime_seconds: int | None = None,
) -> Ending:
    """Plays one job from where it stands, shown by `display` while its rollouts go; and publishes what came of it.

    tags: of its MLflow run. lock, max_runtime_seconds: as for `run_job`. Raises HeldoutError as that does; what a person must
    know beside that goes to `note`.
    """
    mirror = Mirror(run, note=say) if is_remote(run.location) else None
    try:
        try:
            ending = Ending.FINISHED
            if run.state.status is not JobStatus.COMPLETED:
                ending = await _play_shown(run, display, switch, lock, mirror, max_runtime_seconds)
            else:
                run.drop_journal()  # whoever marked it done may have been killed before it went
            if ending is Ending.FINISHED:
                await finish_run(run, tags, note, say)
        except HeldoutError:
            if mirror is not None and mirror.is_claimed and run.has_journal:
                with contextlib.suppress(HeldoutError):
                    await mirror.finish()
            raise
        if mirror is not None:
            await mirror.finish()
    finally:
        if mirror is not None:
            await asyncio.to_thread(mirror.release)
    return ending


async def _play_shown(
    run: Run,
    display: Display,
    switch: StopSwitch,
    lock: FolderLock | None,
    mirror: Mirror | None,
    max_runtime_seconds: int | None,
) -> Ending:
    progress: asyncio.Future[Progress] = asyncio.get_running_loop().create_future()

    async def show() -> None:
        async with display(run, await progress):
            await asyncio.Event().wait()  # until it is cancelled

    showing = asyncio.create_task(show())
    try:
        played = await run_job(
            run, switch, progress.set_result, lock=lock, mirror=mirror, max_runtime_seconds=max_runtime_seconds
        )
        return played.ending
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


def run_to_end(main: Coroutine[Any, Any, _Result]) -> _Result:
    """`asyncio.run`, on the faster loop where there is one."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


@contextlib.contextmanager
def stopped_by_signals(switch: StopSwitch, on_stop: Callable[[bool], None]) -> Iterator[None]:
    """SIGINT and SIGTERM stop the jobs of `switch` while inside, and `on_stop` hears whether it is not the first time."""

    def stop() -> None:
        again = switch.is_draining
        switch.stop()
        on_stop(again)

    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@dataclass(frozen=True, slots=True)
class _LocalWork(Work):
    """What the pipeline's runner has this machine do. The fields: see `play_evaluation`."""

    evaluation: Evaluation
    display: Display
    note: Note
    say: Callable[[str], None]
    max_runtime_seconds: int | None

    async def play(self, run: Run, switch: StopSwitch) -> Ending:
        """Plays the job, unless it is done, and publishes what came of it."""
        return await play_run(
            run,
            self.display,
            switch,
            tags=self.evaluation.state.tags,
            note=self._keep_note,
            say=self.say,
            max_runtime_seconds=self.max_runtime_seconds,
        )

    async def conclude(self, evaluation: Evaluation) -> None:
        """Compares the runs where there are two."""
        await compare_evaluation(evaluation, self._keep_note)

    def _keep_note(self, note: str) -> None:
        self.evaluation.note(note)
        self.note(note)
