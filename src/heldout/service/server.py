"""A running server: its address, its state folder, its parts, and the jobs of earlier servers that it resumes."""

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
from aiohttp.http_exceptions import HttpProcessingError

from heldout.background import start_task
from heldout.errors import InputError, RunError
from heldout.job.registry import Registry
from heldout.pipeline.evaluation import LOCAL_ACCOUNT
from heldout.runtime.signing import Credentials
from heldout.service.agents.hosting import HostedAgents
from heldout.service.agents.job_runtime import JobRuntimes
from heldout.service.application import Application
from heldout.service.context import Context
from heldout.service.mlflow.pages import MlflowPages
from heldout.service.mlflow.servers import START_SECONDS
from heldout.service.s3.objects import Objects
from heldout.service.sagemaker import executions, jobs
from heldout.service.sagemaker.jobs import run_of
from heldout.service.store import Store
from heldout.service.supervisor import LOOK_EVERY_SECONDS, Supervisor
from heldout.service.wire.authentication import Authenticator, KeySource, is_loopback, own_keys
from heldout.storage.lock import FolderLock

_STORE_FILE = "service.db"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a server."""

    host: str
    port: int
    """0 for any free port."""
    region: str
    registry: Registry
    state: Path
    """The folder for the server's files; created if missing."""
    has_auth: bool = True
    keys: Sequence[Credentials] = ()
    """Key pairs that may sign requests; by default the one that AWS tools in this environment use."""
    look_every_seconds: float = LOOK_EVERY_SECONDS
    """How often the supervisor checks the jobs it runs."""
    mlflow_start_seconds: float = START_SECONDS
    """Longest start of an MLflow server."""


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Context]:
    """Runs a server while inside. It resumes the jobs of an earlier server that died with it.

    Raises InputError for an address in use, a missing key pair, or disabled verification on an address that other machines reach;
    RunError if another server uses the state folder.
    """
    keys = _keys(settings)
    listening = _bound(settings.host, settings.port)
    settings.state.mkdir(parents=True, exist_ok=True)
    endpoint = f"http://{_url_host(settings.host)}:{listening.getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listening.close)
        stack.callback(_locked(settings.state).release)
        store = Store(settings.state / _STORE_FILE)
        stack.callback(store.close)
        agents = HostedAgents(settings.registry, {"RFT_RUNTIME_ENDPOINT": endpoint})
        stack.push_async_callback(agents.stop)
        authenticator = Authenticator(keys, settings.region)
        pages = MlflowPages(
            settings.state.absolute() / "mlflow", authenticator, server_start_seconds=settings.mlflow_start_seconds
        )
        stack.push_async_callback(pages.stop)
        context = Context(
            account=LOCAL_ACCOUNT,
            region=settings.region,
            endpoint=endpoint,
            state=settings.state,
            registry=settings.registry,
            store=store,
            supervisor=Supervisor(store, look_every_seconds=settings.look_every_seconds),
            agents=agents,
            pages=pages,
        )
        runtimes = JobRuntimes(functools.partial(run_of, context), keys, settings.region)
        stack.push_async_callback(runtimes.stop)
        application = Application(context, authenticator, (Objects(authenticator), pages, runtimes))
        runner = web.AppRunner(
            application.for_aiohttp(),
            access_log=None,
            logger=_http_log(),
            auto_decompress=False,  # signatures cover the body as sent, and no operation accepts a compressed one
            shutdown_timeout=1.0,
        )
        await runner.setup()
        watching = start_task(context.supervisor.watch(), "the supervision of jobs")
        ending = threading.Event()
        # In the background, because each restarted process takes a moment and there may be many.
        unfinished = [*jobs.unfinished(context), *executions.unfinished(context)]
        resuming = start_task(asyncio.to_thread(_resume_all, unfinished, ending), "the resuming of jobs")
        try:
            await web.SockSite(runner, listening).start()
            yield context
        finally:
            ending.set()
            watching.cancel()
            await asyncio.gather(watching, resuming, return_exceptions=True)
            await runner.cleanup()


def _resume_all(unfinished: Sequence[Callable[[], None]], ending: threading.Event) -> None:
    """Resumes what an earlier server left unfinished, until `ending` is set."""
    for resume in unfinished:
        if ending.is_set():
            return
        try:
            resume()
        except Exception:  # noqa: BLE001
            # The boundary between jobs: a fault in one must not keep the others from being resumed.
            _log.exception("a job of an earlier server was not resumed")


def _keys(settings: Settings) -> KeySource | None:
    if settings.has_auth:
        return (lambda: settings.keys) if settings.keys else own_keys()
    if not is_loopback(settings.host):
        raise InputError(
            f"--no-auth would admit everyone who can reach {settings.host!r}; use it on this machine only (--host 127.0.0.1)"
        )
    return None


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen at {host}:{port}: {error}; choose another --host or --port") from error


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _locked(state: Path) -> FolderLock:
    try:
        return FolderLock.take(state)
    except RunError as error:
        raise RunError(f"another server uses the state folder {str(state)!r}; choose another --state") from error


def _http_log() -> logging.Logger:
    """The logger for aiohttp's server: one line for malformed HTTP in place of a traceback, none for a closed connection."""
    log = logging.getLogger(f"{__name__}.http")
    log.addFilter(_in_one_line)
    return log


def _in_one_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError):
        return False
    if isinstance(error, HttpProcessingError):
        record.exc_info = None
        record.msg = f"{record.getMessage()}: {' '.join(error.message.split())[:200]}"
        record.args = ()
    return True
