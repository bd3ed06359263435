"""A server that runs: its address, its state folder and what it takes up again when it starts."""

import asyncio
import contextlib
import functools
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from heldout.errors import InputError, RunError
from heldout.job.registry import Registry
from heldout.pipeline.evaluation import LOCAL_ACCOUNT
from heldout.runtime.signing import Credentials
from heldout.service.agents.hosting import HostedAgents
from heldout.service.agents.job_runtime import JobRuntimes
from heldout.service.context import Context
from heldout.service.mlflow.pages import MlflowPages
from heldout.service.s3.objects import Objects
from heldout.service.sagemaker import executions, jobs
from heldout.service.sagemaker.jobs import run_of
from heldout.service.server import Service
from heldout.service.store import Store
from heldout.service.supervisor import Supervisor
from heldout.service.wire.authentication import Gate, KeySource, is_loopback, own_keys
from heldout.service.wire.http_log import http_log
from heldout.storage.lock import FolderLock

_STORE_FILE = "service.db"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server is started."""

    host: str
    port: int
    """0: any that is free."""
    region: str
    registry: Registry
    state: Path
    """The folder for what it keeps; made if it is not there."""
    has_auth: bool = True
    keys: Sequence[Credentials] = ()
    """That may sign requests; by default the one that AWS tools started here would use."""


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Context]:
    """A server that accepts requests while inside; jobs that it was to run and that died with an earlier one go on.

    Raises InputError for an address that is not free, no key pair, or no verification where others than this machine can
    call; RunError when another server uses the state folder.
    """
    keys = _keys(settings)
    listening = _bound(settings.host, settings.port)
    settings.state.mkdir(parents=True, exist_ok=True)
    endpoint = f"http://{_shown_host(settings.host)}:{listening.getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listening.close)
        stack.callback(_taken(settings.state).release)
        store = Store(settings.state / _STORE_FILE)
        stack.callback(store.close)
        agents = HostedAgents(settings.registry, {"RFT_RUNTIME_ENDPOINT": endpoint})
        stack.push_async_callback(agents.stop)
        gate = Gate(keys, settings.region)
        pages = MlflowPages(settings.state.absolute() / "mlflow", gate)
        stack.push_async_callback(pages.stop)
        context = Context(
            account=LOCAL_ACCOUNT,
            region=settings.region,
            endpoint=endpoint,
            state=settings.state,
            registry=settings.registry,
            store=store,
            supervisor=Supervisor(),
            agents=agents,
            pages=pages,
        )
        runtimes = JobRuntimes(functools.partial(run_of, context), keys, settings.region)
        stack.push_async_callback(runtimes.stop)
        service = Service(context, gate, (Objects(gate), pages, runtimes))
        runner = web.AppRunner(
            service.application(),
            access_log=None,
            logger=http_log(),
            auto_decompress=False,  # signatures cover a body as it came, and no operation here takes a compressed one
            shutdown_timeout=1.0,
        )
        await runner.setup()
        watching = asyncio.create_task(context.supervisor.watch())
        ending = threading.Event()
        # Beside the requests: each process that is started again takes a moment, and there may be many.
        left = [*jobs.left_behind(context), *executions.left_behind(context)]
        taking_up = asyncio.create_task(asyncio.to_thread(_take_up, left, ending))
        try:
            await web.SockSite(runner, listening).start()
            yield context
        finally:
            ending.set()
            watching.cancel()
            await asyncio.gather(watching, taking_up, return_exceptions=True)
            await runner.cleanup()


def _take_up(left: Sequence[Callable[[], None]], ending: threading.Event) -> None:
    """Goes on with what an earlier server was to run, until told to end."""
    for go_on in left:
        if ending.is_set():
            return
        try:
            go_on()
        except Exception:  # noqa: BLE001
            # Whatever is wrong with one must not keep the others from going on.
            _log.exception("what an earlier server left does not go on")


def _keys(settings: Settings) -> KeySource | None:
    if settings.has_auth:
        return (lambda: settings.keys) if settings.keys else own_keys()
    if not is_loopback(settings.host):
        raise InputError(
            f"--no-auth would let everyone who reaches {settings.host!r} in; it is for this machine alone (--host 127.0.0.1)"
        )
    return None


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen at {host}:{port}: {error}; choose another --host or --port") from error


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _taken(state: Path) -> FolderLock:
    try:
        return FolderLock.take(state)
    except RunError as error:
        raise RunError(f"another server uses the state folder {str(state)!r}; choose another --state") from error
