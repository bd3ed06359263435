"""The local backend: one job, on this machine, in this process."""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from heldout.policies.embedded import EmbeddedPolicy
from heldout.policies.endpoint import EndpointPolicy

from heldout.agents.base import Agent
from heldout.agents.entry_point import EntryPointAgent
from heldout.agents.http import HttpAgent
from heldout.errors import HeldoutError, ReferenceProblem
from heldout.job.references import (
    AgentContainer,
    AgentReference,
    EmbeddedModel,
    EndpointModel,
    EntryPoint,
    ModelReference,
)
from heldout.metrics.summary import Summary
from heldout.policies.base import Policy
from heldout.rollouts.attempt import AttemptPlayer, PlayRules
from heldout.rollouts.engine import Ending, Engine, StopSwitch
from heldout.rollouts.journal import Journal
from heldout.rollouts.mirror import Mirror
from heldout.rollouts.progress import Progress
from heldout.rollouts.prompts import PromptReader, PromptSource, copy_prompts
from heldout.rollouts.results import complete, metric_settings, write_results
from heldout.rollouts.run import JobStatus, Run, SecondaryStatus
from heldout.rollouts.tables import JournalIndex
from heldout.runtime import CallRules, Credentials, JobRuntime
from heldout.storage import is_remote

_WRITE_EVERY_SECONDS = 5.0
"""How often the time spent so far goes into job.json."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one start of a job came to."""

    ending: Ending
    summary: Summary
    differences: Mapping[str, int]
    """Model calls whose sampling parameters were not the job's, by parameter."""


async def run_job(run: Run, switch: StopSwitch, on_start: Callable[[Progress], None] = lambda _: None) -> Played:
    """Plays `run` from where it stands until it is done or stopped, and writes its results.

    on_start: called once, when the first rollout is about to begin, with counts that go on changing.
    Raises InputError when model, agent or dataset cannot be had (nothing has been played then), JobFailed when nothing but
    failures comes back. Either way job.json says so and what was finished is kept.
    """
    with run.locked():
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
    progress = Progress.of((run.state.num_prompts or 0) * parameters.eval_group_size, metric_settings(parameters))
    index = JournalIndex.of(run.journal_folder, parameters.eval_group_size, progress.count_before)
    if progress.finished == progress.planned:
        return await _write_up(run, Ending.FINISHED, {})
    journal = Journal(run.journal_folder)
    journal.open()
    try:
        async with _services(run) as services:
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
            )
            async with _timed(run), _mirrored(mirror, journal):
                ending = await engine.play(run.document.stopping_condition.max_runtime_in_seconds)
            differences = dict(services.runtime.differences)
    finally:
        await journal.close()
    return await _write_up(run, ending, differences)


async def _fetch_prompts(run: Run) -> None:
    if run.state.num_prompts is not None and run.prompts_path.exists():
        return
    channel = run.document.prompts
    source = PromptSource(channel.data_source.dataset, channel.limit, channel.shuffle_seed)
    count = await asyncio.to_thread(copy_prompts, source, run.prompts_path)
    run.update(num_prompts=count.number, dataset_hash=count.content_hash)


@dataclass(frozen=True, slots=True)
class _Services:
    runtime: JobRuntime
    agent: Agent


@contextlib.asynccontextmanager
async def _services(run: Run) -> AsyncIterator[_Services]:
    """The policy, the Job Runtime and the agent, started; and stopped, whatever happens."""
    parameters = run.document.hyperparameters
    policy = make_policy(run.document.model)
    configured = _configured_credentials()
    own = Credentials(f"HELDOUT{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30), None)
    runtime = JobRuntime(
        job_arn=run.state.arn,
        region=_region(run),
        policy=policy,
        rules=CallRules(
            temperature=parameters.sampling_temperature,
            top_p=parameters.top_p,
            max_tokens=parameters.max_tokens,
            enforce_sampling=parameters.enforce_sampling,
            wants_logprobs=parameters.logprobs,
        ),
        credentials=[own, *configured],
    )
    await runtime.start()
    agent = make_agent(run.document.agent_config.agent, _agent_environment(runtime, run, None if configured else own))
    try:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(policy.start())
            starting.create_task(agent.start())
        yield _Services(runtime, agent)
    except BaseExceptionGroup as group:
        raise _cause(group) from group
    finally:
        await asyncio.gather(agent.stop(), runtime.stop(), policy.stop())


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def make_policy(model: ModelReference) -> Policy:
    """The way to reach `model`. Raises ReferenceProblem for one that only the hosted service has."""
    match model:
        case EndpointModel(urls, name, variable):
            return EndpointPolicy(urls, name, api_key_variable=variable)
        case EmbeddedModel(name, adapter):
            return EmbeddedPolicy(name, adapter=None if adapter is None else Path(adapter))
        case _:
            raise ReferenceProblem(
                f"model {getattr(model, 'name', None) or getattr(model, 'arn', '')!r} is not on this machine; give an "
                "endpoint (http://host:port/v1#served-name) or an embedded model"
            )


def make_agent(agent: AgentReference, environment: Mapping[str, str]) -> Agent:
    """The way to invoke `agent`. Raises ReferenceProblem for one that only AWS has."""
    match agent:
        case EntryPoint(entry_point):
            return EntryPointAgent(entry_point, environment=environment)
        case AgentContainer(url):
            return HttpAgent(url)
        case _:
            raise ReferenceProblem(
                f"agent {agent.arn!r} is in AWS; give file.py:function or the http://host:port of its container"
            )


def _agent_environment(runtime: JobRuntime, run: Run, own: Credentials | None) -> dict[str, str]:
    environment = {"RFT_RUNTIME_ENDPOINT": runtime.endpoint}
    if own is not None:
        environment |= {"AWS_ACCESS_KEY_ID": own.access_key, "AWS_SECRET_ACCESS_KEY": own.secret_key}
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        environment.setdefault(name, os.environ.get(name) or _region(run))
    return environment


def _region(run: Run) -> str:
    return run.state.arn.split(":")[3]


def _configured_credentials() -> list[Credentials]:
    """The AWS credentials that agents on this machine would find by themselves."""
    if not _may_have_credentials():
        return []
    import boto3  # slow to import, and only needed here

    found = boto3.Session().get_credentials()
    if found is None:
        return []
    frozen = found.get_frozen_credentials()
    if frozen.access_key is None or frozen.secret_key is None:
        return []
    return [Credentials(frozen.access_key, frozen.secret_key, frozen.token)]


def _may_have_credentials() -> bool:
    """Whether any of the places that AWS SDKs look at could hold credentials: cheap, and never wrongly False."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    containers = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONFIG_FILE")
    if any(os.environ.get(name) for name in (*names, *containers)):
        return True
    if any((Path.home() / ".aws" / name).exists() for name in ("credentials", "config")):
        return True
    vendor = Path("/sys/class/dmi/id/sys_vendor")
    return vendor.exists() and "Amazon" in vendor.read_text(errors="replace")


def _play_rules(run: Run) -> PlayRules:
    parameters = run.document.hyperparameters
    return PlayRules(
        job_arn=run.state.arn,
        region=_region(run),
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
    summary = await asyncio.to_thread(write_results, run, is_partial=is_partial)
    if is_partial:
        out_of_time = ending is Ending.OUT_OF_TIME
        run.update(
            status=JobStatus.STOPPED,
            secondary_status=SecondaryStatus.MAX_RUNTIME_EXCEEDED if out_of_time else SecondaryStatus.INTERRUPTED,
            ended_at=time.time(),
        )
    else:
        complete(run)
    return Played(ending, summary, differences)


def _fail(run: Run, reason: str) -> None:
    run.update(
        status=JobStatus.FAILED,
        secondary_status=SecondaryStatus.FAILED,
        failure_reason=reason,
        ended_at=time.time(),
    )
