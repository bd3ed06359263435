"""An evaluation on this machine, played in this process.

The frames from the command to the engine, each of which decides one thing:

    cli.evaluate.evaluate          which evaluation: the request, its backend, and how progress is shown
    evaluation.play_evaluation     which process works on it: the folder's lock, the remote claim, the stop signals
    pipeline.runner.run_pipeline   which step is next
    job.play_job                   whether a run has to be played, and where its results go
    job.play_rollouts              what a job needs: its plan, services and engine; then `Engine.play` plays the rollouts

They hand down one record, `heldout.rollouts.context.PlayContext`. A detached process begins at `heldout.backends.local.runner`
instead of the command. A backend that plays jobs elsewhere replaces `play_job`.
"""

import asyncio
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from heldout.backends.results import compare_evaluation
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.runner import PlayJob, run_pipeline
from heldout.pipeline.state import ExecutionStatus
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.runs.remote_mirror import patiently
from heldout.storage.claim import Claim
from heldout.storage.lock import FolderLock

_Result = TypeVar("_Result")


async def play_evaluation(evaluation: Evaluation, context: PlayContext, play_job: PlayJob) -> Ending:
    """Executes the remaining steps of an evaluation. `play_job` plays each job.

    The first SIGINT or SIGTERM lets rollouts in flight finish, the second stops them. A warning is also kept in the evaluation.
    Raises HeldoutError when a step fails, RunError when another process works on the evaluation.
    """
    lock = context.lock or FolderLock.take(evaluation.folder)
    try:
        with stopped_by_signals(context.switch, _marking_stopping(evaluation, context.on_stop)):
            lock.sign()
            claim = await asyncio.to_thread(evaluation.claim, context.say)
            try:
                return await run_pipeline(
                    evaluation, _for_jobs(evaluation, context), play_job=play_job, conclude=compare_evaluation
                )
            finally:
                if claim is not None:
                    await _publish_ending(evaluation, claim)
    finally:
        lock.release()


def run_to_end(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a coroutine as `asyncio.run` does, on uvloop where that is available."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


@contextlib.contextmanager
def stopped_by_signals(switch: StopSwitch, on_stop: Callable[[bool], None] | None) -> Iterator[None]:
    """Connects SIGINT and SIGTERM to `switch` while inside.

    on_stop: called at each signal with whether it is a repeated one. None: the handlers of the process stay.
    """
    if on_stop is None:
        yield
        return

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


def _marking_stopping(evaluation: Evaluation, on_stop: Callable[[bool], None] | None) -> Callable[[bool], None] | None:
    """Returns `on_stop`, which then also marks the evaluation as stopping."""
    if on_stop is None:
        return None

    def stopping(again: bool) -> None:
        evaluation.update_here(status=ExecutionStatus.STOPPING)  # no network while rollouts are timed
        on_stop(again)

    return stopping


def _for_jobs(evaluation: Evaluation, context: PlayContext) -> PlayContext:
    """Returns the context of the evaluation's jobs: its tags, its own list of warnings, and no lock, which is the
    evaluation's."""

    def note(text: str) -> None:
        evaluation.note(text)
        context.note(text)

    return dataclasses.replace(context, tags=evaluation.state.tags, note=note, lock=None)


async def _publish_ending(evaluation: Evaluation, claim: Claim) -> None:
    """Copies the ending of the evaluation to its remote place, then lets other machines resume it."""

    def publish() -> None:
        claim.check()
        evaluation.publish()

    try:
        await patiently(publish, "how the evaluation ended", evaluation.times)
    finally:
        await asyncio.to_thread(claim.release)
