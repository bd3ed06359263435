"""One job on this machine, played in this process.

`play_job` publishes the results of a run; `play_rollouts` starts the services of the job and hands the rollouts to the engine.
The whole chain of frames is in `heldout.backends.local.evaluation`.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from heldout.agents.processes import raise_descriptor_limit, share_processors
from heldout.backends.local.capacity import capacity
from heldout.backends.local.services import Services, region_of, services_of
from heldout.backends.results import finish_run, load, write_numbers
from heldout.backends.results_process import in_results_process, warm_up
from heldout.background import logged_failure, start_task
from heldout.errors import HeldoutError, JobFailed, NothingScored, RunError
from heldout.rollouts.attempt import AttemptPlayer, PlayRules
from heldout.rollouts.card import CardRecorder
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending, Engine, StopSwitch
from heldout.runs.journal import Journal, drop_damaged, reopen_failed
from heldout.runs.progress import ModelWait
from heldout.runs.remote_mirror import Mirror
from heldout.runs.run import JobStatus, Run, SecondaryStatus
from heldout.storage import is_remote

if TYPE_CHECKING:
    from heldout.rollouts.plan import Plan

_WRITE_EVERY_SECONDS = 5.0
"""The interval at which the evaluation time is written to job.json."""


async def play_job(run: Run, context: PlayContext) -> Ending:
    """Plays a job from its current state, then publishes its results: report, MLflow run, remote copies.

    A run that is complete is only published. Raises HeldoutError as `play_rollouts` does, StorageError when the remote place
    refuses the results. A failure to log to MLflow is a warning (`context.note`).
    """
    async with _mirrored_run(run, context) as mirror:
        if run.state.status is JobStatus.COMPLETED and not _is_opened_again(run, context):
            run.drop_journal()  # an earlier process may have been killed before it did
            ending = Ending.FINISHED
        else:
            ending = await play_rollouts(run, dataclasses.replace(context, mirror=mirror))
        if ending is Ending.FINISHED:
            await finish_run(run, context.tags, context.note, context.say)
    return ending


async def play_rollouts(run: Run, context: PlayContext) -> Ending:
    """Plays the remaining rollouts of `run` until they are done or the job is stopped, and writes tables and metrics.

    A complete run stays as it is. The mirror in `context` stays claimed. Raises InputError when model, agent or dataset cannot be
    used (before the first rollout), JobFailed when every attempt fails; job.json records either, and
    finished rollouts are kept. Raises RunError, and changes nothing, when an incomplete run has lost its journal.
    """
    share_processors()
    descriptor_limit = raise_descriptor_limit()
    with run.locked(context.lock):
        if context.mirror is not None:
            await asyncio.to_thread(context.mirror.claim)
        if context.drop_damaged:
            for damaged in await asyncio.to_thread(drop_damaged, run.journal_folder):
                context.note(
                    f"dropped the damaged line at byte {damaged.place.offset} of {damaged.place.segment.name} ({damaged.rollout})"
                )
        if run.state.status is JobStatus.COMPLETED and not _is_opened_again(run, context):
            return Ending.FINISHED  # without its journal, it would be played from the beginning
        if context.retry_failed and run.has_journal:
            await _reopen_failed(run, context)
        with _status_recorded(run):
            plan = await _planned(run, context) if run.has_journal else None
            if plan is not None and plan.is_done:  # an earlier start was stopped before it wrote the results
                return await _conclude(run, Ending.FINISHED)
            async with contextlib.AsyncExitStack() as stack:
                # The prompts are read while the agent's processes and the model start.
                concurrency = _fitting_concurrency(run, descriptor_limit, context.note)
                services = await stack.enter_async_context(services_of(run, concurrency, context.note))
                plan = plan or await _planned(run, context)
                if context.mirror is not None:
                    await context.mirror.begin()
                await _ready_or_stopped(services, context.switch)
                card = CardRecorder(
                    run,
                    services.agent,
                    services.policy,
                    note=context.note,
                    publish=_nothing if context.mirror is None else context.mirror.publish_state,
                )
                async with _engine(run, plan, services, concurrency, context) as engine, card.recording():
                    limit = run.document.stopping_condition.max_runtime_in_seconds
                    ending = await engine.play(context.max_runtime_seconds or limit)
                # The results are written while those processes end.
                ended = asyncio.create_task(_end_services(stack.pop_all(), card))
            return await _conclude(run, ending, ended)


def _is_opened_again(run: Run, context: PlayContext) -> bool:
    """Whether this start plays rollouts of a run that is done."""
    return context.retry_failed and run.state.retryable > 0 and run.has_journal


async def _reopen_failed(run: Run, context: PlayContext) -> None:
    journal = Journal(run.journal_folder, writer="" if context.mirror is None else context.mirror.writer)
    journal.open()
    try:
        number = await reopen_failed(journal, run.journal_folder)
    finally:
        await journal.close()
    context.say(f"{number:,} rollouts of {run.state.run_name} are played again")


async def _end_services(services: contextlib.AsyncExitStack, card: CardRecorder) -> None:
    """Ends the services, and records the code that the agent's processes had loaded by then."""
    await services.aclose()
    await card.finish()


def _nothing() -> None:
    """Publishes a local run, which needs no copy."""


@contextlib.asynccontextmanager
async def _mirrored_run(run: Run, context: PlayContext) -> AsyncIterator[Mirror | None]:
    """The mirror of a run whose place is remote. At the end it holds everything that the run holds."""
    if not is_remote(run.location):
        yield None
        return
    mirror = Mirror(run, note=context.say, times=context.times)
    try:
        try:
            yield mirror
        except HeldoutError:
            if mirror.is_claimed and run.has_journal:
                with contextlib.suppress(HeldoutError):  # the first error is the one to report
                    await mirror.finish()
            raise
        await mirror.finish()
    finally:
        await asyncio.to_thread(mirror.release)


@contextlib.contextmanager
def _status_recorded(run: Run) -> Iterator[None]:
    """Marks the run as in progress. Records an error or a cancellation inside in job.json. Raises RunError without
    the journal."""
    if run.rollouts_path.exists() and not run.has_journal:  # playing would overwrite the tables
        raise RunError(
            f"the run in {run.folder} is not complete and its journal is not there: it can be shown, not resumed; copy "
            "the whole folder again, journal/ too, or start a new evaluation"
        )
    run.update(
        status=JobStatus.IN_PROGRESS,
        secondary_status=SecondaryStatus.DOWNLOADING,
        failure_reason=None,
        ended_at=None,
        started_at=run.state.started_at or time.time(),
    )
    try:
        yield
    except (HeldoutError, OSError) as error:
        run.update(
            status=JobStatus.FAILED,
            secondary_status=SecondaryStatus.FAILED,
            failure_reason=str(error),
            ended_at=time.time(),
        )
        raise
    except asyncio.CancelledError:
        run.update(status=JobStatus.STOPPED, secondary_status=SecondaryStatus.INTERRUPTED, ended_at=time.time())
        raise


async def _ready_or_stopped(services: Services, switch: StopSwitch) -> None:
    """Waits until the policy and the agent are ready, or until the job is stopped. Raises the error of the first that fails."""
    ready, stopped = asyncio.create_task(services.ready()), asyncio.create_task(switch.draining())
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            await ready
    finally:
        for task in (ready, stopped):
            task.cancel()
        await asyncio.gather(ready, stopped, return_exceptions=True)


def _fitting_concurrency(run: Run, descriptor_limit: int, note: Callable[[str], None]) -> int:
    """The job's concurrency, lowered to what this machine allows, with a note."""
    wanted = run.document.hyperparameters.rollout_max_concurrency
    fitting = capacity(descriptor_limit)
    if wanted <= fitting.rollouts:
        return wanted
    note(f"{fitting.rollouts:,} rollouts play at once instead of {wanted:,}: this machine allows {fitting.limit}")
    return fitting.rollouts


async def _planned(run: Run, context: PlayContext) -> "Plan":
    def make() -> "Plan":
        # Loads numpy and pyarrow in this thread, while the agent's processes load their modules.
        from heldout.rollouts.plan import make_plan

        return make_plan(run)

    plan = await asyncio.to_thread(make)
    if plan.column_line is not None:
        (context.note if plan.is_column_doubtful else context.say)(plan.column_line)
    return plan


@contextlib.asynccontextmanager
async def _engine(
    run: Run, plan: "Plan", services: Services, concurrency: int, context: PlayContext
) -> AsyncIterator[Engine]:
    """The engine of a job, with journal, progress display, clock and copies running. At exit the journal holds every result."""
    plan.progress.step = context.step
    parameters = run.document.hyperparameters
    journal = Journal(run.journal_folder, writer="" if context.mirror is None else context.mirror.writer)
    journal.open()  # only now: a run that could not start leaves no journal
    try:
        run.update(secondary_status=SecondaryStatus.EVALUATING)
        plan.progress.started = time.monotonic()
        plan.progress.model_wait = lambda: _model_wait(services)
        engine = Engine(
            prompts=plan.prompts,
            group_size=parameters.eval_group_size,
            concurrency=concurrency,
            max_retries=parameters.rollout_max_retries,
            isolate_attempts=parameters.isolate_attempts,
            index=plan.index,
            player=AttemptPlayer(
                rules=_play_rules(run), runtime=services.runtime, agent=services.agent, journal=journal
            ),
            progress=plan.progress,
            switch=context.switch,
            on_nearly_done=lambda: warm_up(load, has_tracking=_is_tracked(run)),
        )
        async with (
            context.display(run, plan.progress),
            _timed(run),
            _copied(context.mirror, journal, context.switch),
        ):
            yield engine
    finally:
        await services.runtime.stop()  # it accepts the reports that are on their way first
        await journal.close()


def _model_wait(services: Services) -> ModelWait:
    waits = services.runtime.waits()
    return ModelWait(len(waits), max(waits, default=0.0))


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
        retries_agent_failures=parameters.retry_agent_failures,
        passes_columns=run.document.agent_config.agent.aws_name is None,
    )


@contextlib.asynccontextmanager
async def _timed(run: Run) -> AsyncIterator[None]:
    """Adds the time spent inside to the run's evaluation time, at intervals, so that a crash loses little of it."""
    before, started = run.state.evaluation_seconds, time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - started

    async def keep_writing() -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_SECONDS)
            with logged_failure("the evaluation time was not written"):
                run.update(evaluation_seconds=spent())

    writing = start_task(keep_writing(), "the writing of the evaluation time")
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        run.update(evaluation_seconds=spent())


@contextlib.asynccontextmanager
async def _copied(mirror: Mirror | None, journal: Journal, switch: StopSwitch) -> AsyncIterator[None]:
    """Copies finished rollouts to the mirror. Raises JobFailed, and stops the job, when another machine has taken
    over the run."""
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

    copying = start_task(keep_up(), "the copying of finished rollouts", on_failure=lambda _: None)  # it is raised below
    try:
        yield
    finally:
        copying.cancel()
        (ended,) = await asyncio.gather(copying, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended


async def _conclude(run: Run, ending: Ending, ended: asyncio.Task[None] | None = None) -> Ending:
    """Writes tables and metrics, then marks the run complete (which removes its journal) or stopped.

    Raises NothingScored for a run in which no rollout was scored; its journal stays. ended: the end of the job's services. The
    journal stays until it is over, so that an interruption before loses nothing.
    """
    run.update(secondary_status=SecondaryStatus.UPLOADING)
    try:
        numbers = await in_results_process(write_numbers, run.folder, is_partial=ending is not Ending.FINISHED)
    finally:
        if ended is not None:
            await ended
    if ending is Ending.FINISHED and not numbers.scored:
        raise NothingScored(
            f"none of the {numbers.failed:,} rollouts of {run.state.run_name} was scored: {numbers.failures}",
            retryable=numbers.retryable,
        )
    if ending is Ending.FINISHED:
        run.complete(incomplete=numbers.is_incomplete, retryable=numbers.retryable)
    else:
        out_of_time = ending is Ending.OUT_OF_TIME
        run.update(
            status=JobStatus.STOPPED,
            secondary_status=SecondaryStatus.MAX_RUNTIME_EXCEEDED if out_of_time else SecondaryStatus.INTERRUPTED,
            ended_at=time.time(),
        )
    return ending
