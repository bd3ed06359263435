"""The services of a job: its policy, its Job Runtime and its agent, started and stopped together."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from heldout.agents.base import Agent, AgentSettings, check_agent, make_agent
from heldout.backends.local.runtime_address import LISTEN_VARIABLE, exposure_of
from heldout.datasets.files import PromptDataset
from heldout.errors import ReferenceProblem
from heldout.job.document import JobConfigDocument
from heldout.policies.base import Policy, PolicySettings, make_policy
from heldout.runs.run import Run, write_whole
from heldout.runtime import CallRules, Credentials, JobRuntime

_ADDRESS_FILE = "runtime-address"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class Services:
    runtime: JobRuntime
    agent: Agent
    policy: Policy
    starting: asyncio.Task[None]
    """The start of the policy and the agent."""

    async def ready(self) -> None:
        """Waits until the policy and the agent have started. Raises the first error of either."""
        try:
            await self.starting
        except BaseExceptionGroup as group:
            raise _cause(group) from group


@contextlib.asynccontextmanager
async def services_of(run: Run, concurrency: int, note: Callable[[str], None]) -> AsyncIterator[Services]:
    """Starts the Job Runtime, begins to start the policy and the agent, and stops all three on leaving.

    concurrency: the most rollouts that play at once. note: receives a line that the user has to see, such as a field that the
    model server refuses.

    Raises ReferenceProblem when the Job Runtime cannot listen at its address, or the model or agent cannot be used here.
    """
    policy = make_policy(run.document.model, PolicySettings(was_there=run.has_journal))
    configured = _configured_credentials()
    own = Credentials(f"HELDOUT{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30), None)
    runtime = await _started_runtime(run, policy, [own, *configured], note)
    address = run.folder / _ADDRESS_FILE
    environment = _agent_environment(runtime, run, None if configured else own)
    agent = make_agent(run.document.agent_config.agent, _agent_settings(run.document, environment, concurrency))
    write_whole(address, runtime.local_url.encode())
    starting = asyncio.create_task(_start(policy, agent))
    try:
        yield Services(runtime, agent, policy, starting)
    finally:
        address.unlink(missing_ok=True)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.gather(agent.stop(), runtime.stop(), policy.stop())


async def _started_runtime(
    run: Run, policy: Policy, credentials: list[Credentials], note: Callable[[str], None]
) -> JobRuntime:
    parameters = run.document.hyperparameters
    exposure = exposure_of(run.document.agent_config)
    runtime = JobRuntime(
        job_arn=run.state.arn,
        region=region_of(run),
        policy=policy,
        rules=CallRules(
            temperature=parameters.sampling_temperature,
            top_p=parameters.top_p,
            max_tokens=parameters.max_tokens,
            enforce_sampling=parameters.enforce_sampling,
            wants_logprobs=parameters.logprobs,
        ),
        credentials=credentials,
        host=exposure.host,
        port=exposure.port,
        public_url=exposure.public_url,
        note=note,
    )
    try:
        await runtime.start()
    except OSError as error:
        raise ReferenceProblem(
            f"the Job Runtime cannot listen on {exposure.host}:{exposure.port}: {error.strerror or error}; another "
            f"evaluation may be using it: wait for that, or give this one another address ({LISTEN_VARIABLE}=host:port)"
        ) from error
    return runtime


async def _start(policy: Policy, agent: Agent) -> None:
    async with asyncio.TaskGroup() as starting:
        starting.create_task(policy.start())
        starting.create_task(agent.start())


def runtime_address(run: Run) -> str | None:
    """Returns the address of the Job Runtime of a run; None when the run is not playing."""
    if not run.is_running():
        return None  # a killed process leaves the file, and another may use the port by now
    try:
        return (run.folder / _ADDRESS_FILE).read_text()
    except FileNotFoundError:
        return None


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def check_document(document: JobConfigDocument) -> None:
    """Checks that the job can be played on this machine, without starting anything.

    Raises InputError: the model is in AWS; the agent is in AWS and cannot reach the Job Runtime here; the agent's file or
    function does not exist; the dataset's first prompt cannot be read.
    """
    make_policy(document.model)
    agent = document.agent_config.agent
    exposure_of(document.agent_config)
    make_agent(agent, _agent_settings(document, {}, document.hyperparameters.rollout_max_concurrency))
    check_agent(agent)
    source = document.prompts.data_source
    if source.dataset_source is not None:
        raise ReferenceProblem(
            f"dataset {source.dataset!r} is in AWS; give a local path or an s3:// URI, or map it in a registry "
            "(--registry FILE or HELDOUT_REGISTRY)"
        )
    if source.file_data_source is not None:
        next(iter(PromptDataset(source.dataset, is_prefix=source.is_prefix)))


def _agent_settings(document: JobConfigDocument, environment: Mapping[str, str], concurrency: int) -> AgentSettings:
    parameters = document.hyperparameters
    return AgentSettings(
        environment=environment,
        concurrency=concurrency,
        timeout_seconds=parameters.rollout_timeout,
    )


def _agent_environment(runtime: JobRuntime, run: Run, own: Credentials | None) -> dict[str, str]:
    environment = {"RFT_RUNTIME_ENDPOINT": runtime.endpoint}
    if own is not None:
        environment |= {"AWS_ACCESS_KEY_ID": own.access_key, "AWS_SECRET_ACCESS_KEY": own.secret_key}
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        environment.setdefault(name, os.environ.get(name) or region_of(run))
    return environment | _proxy_exceptions(runtime)


def _proxy_exceptions(runtime: JobRuntime) -> dict[str, str]:
    """The variables that keep clients from reaching the Job Runtime through a proxy; empty where no proxy is set.

    Both spellings get the hosts of both, because clients differ in which one they read.
    """
    if not any(os.environ.get(spelling) for name in _PROXIES for spelling in (name, name.upper())):
        return {}
    given = f"{os.environ.get('no_proxy', '')},{os.environ.get('NO_PROXY', '')}".split(",")
    hosts = [urlsplit(url).hostname or "" for url in (runtime.endpoint, runtime.local_url)]
    exceptions = ",".join(dict.fromkeys(host.strip() for host in (*given, *hosts) if host.strip()))
    return {"no_proxy": exceptions, "NO_PROXY": exceptions}


def region_of(run: Run) -> str:
    return run.state.arn.split(":")[3]


def _configured_credentials() -> list[Credentials]:
    """Returns the AWS credentials that agents on this machine find; empty if the configuration is unusable."""
    if not _may_have_credentials():
        return []
    import boto3  # slow to import, and only needed here
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = boto3.Session().get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
    except (BotoCoreError, ClientError):
        # A missing profile, an expired sign-in: the agent may not need AWS, and reports the error itself if it does.
        return []
    if frozen is None or frozen.access_key is None or frozen.secret_key is None:
        return []
    return [Credentials(frozen.access_key, frozen.secret_key, frozen.token)]


def _may_have_credentials() -> bool:
    """Whether any place that AWS SDKs search could hold credentials. A fast check that is never wrongly False."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    containers = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONFIG_FILE")
    if any(os.environ.get(name) for name in (*names, *containers)):
        return True
    if any((Path.home() / ".aws" / name).exists() for name in ("credentials", "config")):
        return True
    # An EC2 instance may have a role. The older kinds, on Xen, can only be recognized by their firmware's version.
    machine = (Path("/sys/class/dmi/id") / name for name in ("sys_vendor", "bios_version"))
    return any("amazon" in path.read_text(errors="replace").lower() for path in machine if path.exists())
