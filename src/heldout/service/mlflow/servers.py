"""MLflow's own servers: one process for each requested app, which ends with this server."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiohttp import web

from heldout.errors import MissingExtra, StorageError
from heldout.service.mlflow.rest_calls import tracking_uri
from heldout.service.mlflow.watchdog import STOP_SECONDS
from heldout.service.wire.raw_handlers import forward, new_session
from heldout.tracking.connection import ui_command

START_SECONDS = 120.0
"""Longest start of a server: it imports most of the scientific stack."""
_POLL_SECONDS = 0.2
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Defaults that the user's environment may override: no telemetry, and no worker processes for unused background jobs."""


class _Server(NamedTuple):
    process: asyncio.subprocess.Process
    url: str

    async def stop(self) -> None:
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            pass
        self._signal(signal.SIGKILL)  # its workers may outlive it
        await self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class MlflowServers:
    """MLflow servers by app id. Each starts on its first request; an app's pages are below `prefix` and its id."""

    def __init__(self, prefix: str, *, start_seconds: float) -> None:
        self._prefix = prefix
        self._start_seconds = start_seconds
        self._starting: dict[str, asyncio.Task[_Server]] = {}
        self._http: aiohttp.ClientSession | None = None

    async def forward(self, request: web.Request, app_id: str, folder: Path, path: str) -> web.StreamResponse:
        """Forwards a request to the server of an app and returns its reply. folder: of the app's store. path: raw path and query.

        Raises MissingExtra if the package `mlflow` is not installed, StorageError if the server does not start.
        """
        server = await self._server(app_id, folder)
        return await forward(self._session(), request, server.url, path)

    async def stop(self) -> None:
        """Stops all servers."""
        if self._http is not None:
            await self._http.close()  # first, because the servers wait for open connections
        for task in self._starting.values():
            task.cancel()
        started = await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in started if isinstance(server, _Server)))

    async def _server(self, app_id: str, folder: Path) -> _Server:
        task = self._starting.get(app_id)
        if task is None or (task.done() and (task.exception() or task.result().process.returncode is not None)):
            task = self._starting[app_id] = asyncio.create_task(self._start(app_id, folder))
        return await asyncio.shield(task)

    async def _start(self, app_id: str, folder: Path) -> _Server:
        uri = tracking_uri(folder)
        if importlib.util.find_spec("flask") is None:
            raise MissingExtra(
                f"MLflow's pages need the package mlflow: pip install mlflow, or where it is installed: {ui_command(uri)}"
            )
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "heldout.service.mlflow.watchdog"),
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port), "--static-prefix", f"{self._prefix}{app_id}"),
            *("--artifacts-destination", str(folder / "mlartifacts")),
            stdin=asyncio.subprocess.PIPE,  # closes when this process ends, also by kill -9
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env={**_QUIET, **os.environ},
            start_new_session=True,
        )
        server = _Server(process, f"http://127.0.0.1:{port}")
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._wait_until_healthy(server)
        except BaseException as error:
            await server.stop()
            if isinstance(error, TimeoutError):
                raise StorageError(
                    f"MLflow's server for {uri} did not answer within {self._start_seconds:g} s"
                ) from error
            raise
        return server

    async def _wait_until_healthy(self, server: _Server) -> None:
        while server.process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with self._session().get(f"{server.url}/health"):
                    return
            await asyncio.sleep(_POLL_SECONDS)
        raise StorageError(f"MLflow's server ended with exit code {server.process.returncode} before it answered")

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = new_session()
        return self._http


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
