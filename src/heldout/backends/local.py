"""The local backend: one job, on this machine, in this process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heldout.backends.apart import apart, prepare
from heldout.backends.results import load, numbers_of, write_numbers
from heldout.backends.services import region_of, services_of
from heldout.errors import HeldoutError
from heldout.rollouts.attempt import AttemptPlayer, PlayRules
from heldout.rollouts.engine import Ending, Engine, StopSwitch
from heldout.rollouts.journal import Journal
from heldout.rollouts.mirror import Mirror
from heldout.rollouts.progress import Progress
from heldout.rollouts.prompts import PromptReader, PromptSource, copy_prompts
from heldout.rollouts.run import JobStatus, Run, SecondaryStatus
from heldout.rollouts.tables import JournalIndex
from heldout.storage import is_remote
from heldout.storage.lock import FolderLock

if TYPE_CHECKING:
    from heldout.metrics.summary import Summary

_WRITE_EVERY_SECONDS = 5.0
"""How often the time spent so far goes into job.json."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one start of a job came to."""

    ending: Ending
    summary: "Summary"
    differences: Mapping[str, int]
    """Model calls whose sampling parameters were not the job's, by parameter."""


async def run_job(
    run: Run,
    switch: StopSwitch,
    on_start: Callable[[Progress], None] = lambda _: None,
    *,
    lock: FolderLock | None = None,
) -> Played:
    """Plays `run` from where it stands until it is done or stopped, and writes its results; one that is done stays as it is.

    on_start: called once, when the first rollout is about to begin, with counts that go on changing. lock: the run's, if it is
    held already; it is released.
    Raises InputError when model, agent or dataset cannot be had (nothing has been played then), JobFailed when nothing but
    failures comes back. Either way job.json says so and what was finished is kept.
    """
    with run.locked(lock):
        if run.state.status is JobStatus.COMPLETED:  # its journal is gone: played on, it would begin from nothing
            return Played(Ending.FINISHED, await apart(numbers_of, run.folder), {})
        run.update(
            status=JobStatus.IN_PROGRESS,
            secondary_status=SecondaryStatus.DOWNLOADING,
            failure_reason=None,
            ended_at=None,
            started_at=run.state.started_at or time.time(),
        )
        location = run.location
        mirror = Mirror(run, location, kms_key=run.kms_key) if is_remote(location) else None
        try:
            return await _run_locked(run, switch, on_start, mirror)
        except (HeldoutError, OSError) as error:
            _fail(run, str(error))
            raise
        except asyncio.CancelledError:
            run.update(status=JobStatus.STOPPED, secondary_status=SecondaryStatus.INTERRUPTED, ended_at=time.time())
            raise


async def _run_locked(
    run: Run, switch: StopSwitch, on_start: Callable[[Progress], None], mirror: Mirror | None
) -> Played:
    parameters = run.document.hyperparameters
    await _fetch_prompts(run)
    if mirror is not None:
        await mirror.begin()
    progress = Progress.of(run.state.num_prompts or 0, parameters.eval_group_size, run.metric_settings)
    index = JournalIndex.of(run.journal_folder, parameters.eval_group_size, progress.count_before)
    if progress.finished == progress.planned:
        return await _write_up(run, Ending.FINISHED, {})
    journal = Journal(run.journal_folder)
    try:
        async with services_of(run) as services:
            journal.open()  # not before: a run that could not start leaves nothing behind
            run.update(secondary_status=SecondaryStatus.EVALUATING)
            progress.started = time.monotonic()
            on_start(progress)
            player = AttemptPlayer(
                rules=_play_rules(run), runtime=services.runtime, agent=services.agent, journal=journal
            )
            engine = Engine(
                prompts=PromptReader(run.prompts_path),
                group_size=parameters.eval_group_size,
                concurrency=parameters.rollout_max_concurrency,
                max_retries=parameters.rollout_max_retries,
                isolate_attempts=parameters.isolate_attempts,
                index=index,
                player=player,
                progress=progress,
                switch=switch,
                on_all_begun=lambda: prepare(load, has_tracking=_is_tracked(run)),
            )
            async with _timed(run), _mirrored(mirror, journal):
                ending = await engine.play(run.document.stopping_condition.max_runtime_in_seconds)
            differences = dict(services.runtime.differences)
    finally:
        await journal.close()
    return await _write_up(run, ending, differences)


def _is_tracked(run: Run) -> bool:
    return run.document.output_data_config.mlflow_config is not None


async def _fetch_prompts(run: Run) -> None:
    if run.state.num_prompts is not None and run.prompts_path.exists():
        return
    channel = run.document.prompts
    source = PromptSource(channel.data_source.dataset, channel.limit, channel.shuffle_seed)
    count = await asyncio.to_thread(copy_prompts, source, run.prompts_path)
    run.update(num_prompts=count.number, dataset_hash=count.content_hash)


def _play_rules(run: Run) -> PlayRules:
    parameters = run.document.hyperparameters
    return PlayRules(
        job_arn=run.state.arn,
        region=region_of(run),
        temperature=parameters.sampling_temperature,
        top_p=parameters.top_p,
        max_tokens=parameters.max_tokens,
        timeout_seconds=parameters.rollout_timeout,
        seed=parameters.seed,
    )


@contextlib.asynccontextmanager
async def _timed(run: Run) -> AsyncIterator[None]:
    """Adds the time spent inside to the run's, now and then, so that a crash loses little of it."""
    before, started = run.state.evaluation_seconds, time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - started

    async def keep_writing() -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_SECONDS)
            run.update(evaluation_seconds=spent())

    writing = asyncio.create_task(keep_writing())
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        run.update(evaluation_seconds=spent())


@contextlib.asynccontextmanager
async def _mirrored(mirror: Mirror | None, journal: Journal) -> AsyncIterator[None]:
    if mirror is None:
        yield
        return
    copying = asyncio.create_task(mirror.keep_up(journal))
    try:
        yield
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)


async def _write_up(run: Run, ending: Ending, differences: Mapping[str, int]) -> Played:
    run.update(secondary_status=SecondaryStatus.UPLOADING)
    is_partial = ending is not Ending.FINISHED
    summary = await apart(write_numbers, run.folder, is_partial=is_partial)
    if is_partial:
        out_of_time = ending is Ending.OUT_OF_TIME
        run.update(
            status=JobStatus.STOPPED,
            secondary_status=SecondaryStatus.MAX_RUNTIME_EXCEEDED if out_of_time else SecondaryStatus.INTERRUPTED,
            ended_at=time.time(),
        )
    else:
        run.complete()
    return Played(ending, summary, differences)


def _fail(run: Run, reason: str) -> None:
    run.update(
        status=JobStatus.FAILED,
        secondary_status=SecondaryStatus.FAILED,
        failure_reason=reason,
        ended_at=time.time(),
    )
