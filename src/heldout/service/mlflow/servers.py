"""MLflow's own servers, one for each app whose pages are asked for, in processes of their own that end with this one."""

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
from heldout.service.mlflow.keeper import STOP_SECONDS
from heldout.service.mlflow.rest_calls import tracking_uri
from heldout.service.wire.forwarding import forward, new_session
from heldout.tracking.connection import ui_command

_START_SECONDS = 120.0
"""How long one may take to answer: it imports most of the scientific stack."""
_ASK_AGAIN_SECONDS = 0.2
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Unless the user says otherwise: nothing phones home, and no processes for background jobs, which nobody here asks for."""


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
        self._signal(signal.SIGKILL)  # its workers too, whatever became of the first
        await self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class MlflowServers:
    """Started when first asked for; every app's pages are below `prefix` and its id."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._starting: dict[str, asyncio.Task[_Server]] = {}
        self._http: aiohttp.ClientSession | None = None

    async def forward(self, request: web.Request, app_id: str, folder: Path, path: str) -> web.StreamResponse:
        """MLflow's reply to a request for a raw path of the app whose store is in `folder`.

        Raises MissingExtra when the package `mlflow` is not installed, StorageError when its server does not start.
        """
        server = await self._server(app_id, folder)
        return await forward(self._session(), request, server.url, path)

    async def stop(self) -> None:
        """Ends all of them."""
        if self._http is not None:
            await self._http.close()  # first: its servers wait for connections that are open
        for task in self._starting.values():
            task.cancel()
        ended = await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in ended if isinstance(server, _Server)))

    async def _server(self, app_id: str, folder: Path) -> _Server:
        task = self._starting.get(app_id)
        if task is None or (task.done() and (task.exception() or task.result().process.returncode is not None)):
            task = self._starting[app_id] = asyncio.create_task(self._start(app_id, folder))
        return await asyncio.shield(task)

    async def _start(self, app_id: str, folder: Path) -> _Server:
        uri = tracking_uri(folder)
        if importlib.util.find_spec("flask") is None:
            raise MissingExtra(
                f"MLflow's pages need the package mlflow: pip install mlflow, or where that is installed: {ui_command(uri)}"
            )
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "heldout.service.mlflow.keeper"),
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port), "--static-prefix", f"{self._prefix}{app_id}"),
            *("--artifacts-destination", str(folder / "mlartifacts")),
            stdin=asyncio.subprocess.PIPE,  # it closes with this process, however that ends
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env={**_QUIET, **os.environ},
            start_new_session=True,
        )
        server = _Server(process, f"http://127.0.0.1:{port}")
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._answering(server)
        except BaseException as error:
            await server.stop()
            if isinstance(error, TimeoutError):
                raise StorageError(f"MLflow's server for {uri} did not answer within {_START_SECONDS:g} s") from error
            raise
        return server

    async def _answering(self, server: _Server) -> None:
        while server.process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with self._session().get(f"{server.url}/health"):
                    return
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
        raise StorageError(f"MLflow's server ended with exit code {server.process.returncode} before it answered")

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = new_session()
        return self._http


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
