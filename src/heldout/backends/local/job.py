"""The local backend: one job, on this machine, in this process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heldout.agents.processes import share_processors
from heldout.backends.local.services import Services, region_of, services_of
from heldout.backends.results import load, numbers_of, write_numbers
from heldout.backends.results_process import in_results_process, warm_up
from heldout.errors import HeldoutError, JobFailed, RunError
from heldout.rollouts.attempt import AttemptPlayer, PlayRules
from heldout.rollouts.engine import Ending, Engine, StopSwitch
from heldout.runs.journal import Journal
from heldout.runs.progress import Progress
from heldout.runs.remote_mirror import Mirror
from heldout.runs.run import JobStatus, Run, SecondaryStatus
from heldout.storage.lock import FolderLock

if TYPE_CHECKING:
    from heldout.metrics.summary import Summary
    from heldout.rollouts.plan import Plan

_WRITE_EVERY_SECONDS = 5.0
"""How often the time spent so far goes into job.json."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one start of a job came to."""

    ending: Ending
    summary: "Summary"


async def run_job(
    run: Run,
    switch: StopSwitch,
    on_start: Callable[[Progress], None] = lambda _: None,
    *,
    lock: FolderLock | None = None,
    mirror: Mirror | None = None,
    max_runtime_seconds: int | None = None,
) -> Played:
    """Plays `run` from where it stands until it is done or stopped, and writes its results; one that is done stays as it is.

    on_start: called once, when the first rollout is about to begin, with counts that go on changing. lock: the run's, if it is
    held already; it is released. mirror: of a run whose place is remote; it stays claimed. max_runtime_seconds: this start begins
    nothing new after them; by default the job's own.
    Raises InputError when model, agent or dataset cannot be had (nothing has been played then), JobFailed when nothing but
    failures comes back. Either way job.json says so and what was finished is kept. RunError, with nothing touched, when only
    the tables are left of a run that is not done.
    """
    share_processors()
    with run.locked(lock):
        if mirror is not None:
            await asyncio.to_thread(mirror.claim)
        if run.state.status is JobStatus.COMPLETED:  # its journal is gone: played on, it would begin from nothing
            return Played(Ending.FINISHED, await in_results_process(numbers_of, run.folder))
        if run.rollouts_path.exists() and not run.has_journal:  # so would this, over what was played
            raise RunError(
                f"the run in {run.folder} is not complete and its journal is not there: it can be shown, not gone on with; copy "
                "the whole folder again, journal/ too, or evaluate anew"
            )
        run.update(
            status=JobStatus.IN_PROGRESS,
            secondary_status=SecondaryStatus.DOWNLOADING,
            failure_reason=None,
            ended_at=None,
            started_at=run.state.started_at or time.time(),
        )
        try:
            return await _run_locked(run, switch, on_start, mirror, max_runtime_seconds)
        except (HeldoutError, OSError) as error:
            _fail(run, str(error))
            raise
        except asyncio.CancelledError:
            run.update(status=JobStatus.STOPPED, secondary_status=SecondaryStatus.INTERRUPTED, ended_at=time.time())
            raise


async def _run_locked(
    run: Run,
    switch: StopSwitch,
    on_start: Callable[[Progress], None],
    mirror: Mirror | None,
    max_runtime_seconds: int | None,
) -> Played:
    plan = await _planned(run) if run.has_journal else None
    if plan is not None and plan.is_done:  # stopped before its results were written
        summary = await _write_up(run, Ending.FINISHED)
        _conclude(run, Ending.FINISHED)
        return Played(Ending.FINISHED, summary)
    async with contextlib.AsyncExitStack() as started:
        # The prompts are read while the agent's processes and the model's start.
        services = await started.enter_async_context(services_of(run))
        plan = plan or await _planned(run)
        if mirror is not None:
            await mirror.begin()
        await _ready_or_stopped(services, switch)
        ending = await _play(run, plan, services, switch, on_start, mirror, max_runtime_seconds)
        # Results are written while those processes end.
        ended = asyncio.create_task(started.pop_all().aclose())
    try:
        summary = await _write_up(run, ending)
    finally:
        await ended
    _conclude(run, ending)  # not before: who is interrupted in between still has the journal
    return Played(ending, summary)


async def _ready_or_stopped(services: Services, switch: StopSwitch) -> None:
    """Returns when the policy and the agent are there, or when the job is to stop, which needs neither.

    Raises what kept the first of them from it.
    """
    ready, stopped = asyncio.create_task(services.ready()), asyncio.create_task(switch.draining())
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            await ready
    finally:
        for task in (ready, stopped):
            task.cancel()
        await asyncio.gather(ready, stopped, return_exceptions=True)


async def _planned(run: Run) -> "Plan":
    def make() -> "Plan":
        # Loads numpy and pyarrow: in this thread, while the agent's processes load what they need.
        from heldout.rollouts.plan import make_plan

        return make_plan(run)

    return await asyncio.to_thread(make)


async def _play(
    run: Run,
    plan: "Plan",
    services: Services,
    switch: StopSwitch,
    on_start: Callable[[Progress], None],
    mirror: Mirror | None,
    max_runtime_seconds: int | None,
) -> Ending:
    """Plays what is left of the plan. When this returns, all that came of it is in the journal."""
    parameters = run.document.hyperparameters
    journal = Journal(run.journal_folder, writer="" if mirror is None else mirror.writer)
    journal.open()  # not before: a run that could not start leaves nothing behind
    try:
        run.update(secondary_status=SecondaryStatus.EVALUATING)
        plan.progress.started = time.monotonic()
        on_start(plan.progress)
        engine = Engine(
            prompts=plan.prompts,
            group_size=parameters.eval_group_size,
            concurrency=parameters.rollout_max_concurrency,
            max_retries=parameters.rollout_max_retries,
            isolate_attempts=parameters.isolate_attempts,
            index=plan.index,
            player=AttemptPlayer(
                rules=_play_rules(run), runtime=services.runtime, agent=services.agent, journal=journal
            ),
            progress=plan.progress,
            switch=switch,
            on_nearly_done=lambda: warm_up(load, has_tracking=_is_tracked(run)),
        )
        async with _timed(run), _mirrored(mirror, journal, switch):
            return await engine.play(max_runtime_seconds or run.document.stopping_condition.max_runtime_in_seconds)
    finally:
        await services.runtime.stop()  # reports on their way are taken first
        await journal.close()


def _is_tracked(run: Run) -> bool:
    return run.document.output_data_config.mlflow_config is not None


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
        passes_columns=run.document.agent_config.agent.aws_name is None,
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
async def _mirrored(mirror: Mirror | None, journal: Journal, switch: StopSwitch) -> AsyncIterator[None]:
    """Copies what is finished inside. Once another machine has taken over, the rest is not played and JobFailed is raised."""
    if mirror is None:
        yield
        return

    async def keep_up() -> None:
        try:
            await mirror.keep_up(journal)
        except JobFailed:
            switch.stop()
            switch.stop()  # at once
            raise

    copying = asyncio.create_task(keep_up())
    try:
        yield
    finally:
        copying.cancel()
        (ended,) = await asyncio.gather(copying, return_exceptions=True)
    if isinstance(ended, JobFailed):
        raise ended


async def _write_up(run: Run, ending: Ending) -> "Summary":
    run.update(secondary_status=SecondaryStatus.UPLOADING)
    return await in_results_process(write_numbers, run.folder, is_partial=ending is not Ending.FINISHED)


def _conclude(run: Run, ending: Ending) -> None:
    """Marks the run done or stopped; of one that is done the journal goes."""
    if ending is Ending.FINISHED:
        run.complete()
    else:
        out_of_time = ending is Ending.OUT_OF_TIME
        run.update(
            status=JobStatus.STOPPED,
            secondary_status=SecondaryStatus.MAX_RUNTIME_EXCEEDED if out_of_time else SecondaryStatus.INTERRUPTED,
            ended_at=time.time(),
        )


def _fail(run: Run, reason: str) -> None:
    run.update(
        status=JobStatus.FAILED,
        secondary_status=SecondaryStatus.FAILED,
        failure_reason=reason,
        ended_at=time.time(),
    )
