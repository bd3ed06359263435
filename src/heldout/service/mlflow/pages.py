"""The raw handler for MLflow apps: links that expire, browser sessions, and the requests of MLflow clients.

Two calls of MLflow's REST API are answered from the store, because SDKs make them while they start an evaluation. All other
requests go to MLflow's own server, which starts with the first request to an app and ends with this server. MLflow's server is
part of the package `mlflow`; if it is not installed, the page says how to install it.

The plugin `sagemaker-mlflow` authenticates by signature, with SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT set to this server.
"""

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web

from heldout.errors import MissingExtra, StorageError
from heldout.service.mlflow.rest_calls import CallRefused, experiment_by_name, search_runs
from heldout.service.mlflow.servers import START_SECONDS, MlflowServers
from heldout.service.wire.authentication import Authenticator
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.raw_handlers import signed_request

PREFIX = "/mlflow-apps/"
OWN_APP = "app-heldout"
"""The id of the server's own app."""
_APP_HEADER = "x-sm-mlflow-app-arn"
"""The header in which the plugin (sagemaker-mlflow 0.5) names the app."""
_ID = re.compile(r"[A-Za-z0-9-]+")
_COOKIE = "heldout-mlflow"
_SESSION_SECONDS = 43_200
"""The service's longest session."""
_NO_APP = "there is no MLflow app {!r} on this server\n"
_EXPIRED = "this link is invalid or has expired; create a new one with CreatePresignedMlflowAppUrl\n"


class MlflowPages:
    """Pages of the apps. `folder` holds one folder for each app, named by its id."""

    def __init__(
        self, folder: Path, authenticator: Authenticator, *, server_start_seconds: float = START_SECONDS
    ) -> None:
        self._folder = folder
        self._authenticator = authenticator
        self._key = secrets.token_bytes(32)
        """Signs links and sessions. They last hours at most, so they may end with the process."""
        self._servers = MlflowServers(PREFIX, start_seconds=server_start_seconds)
        self.make_folder(OWN_APP)

    def folder_of(self, app_id: str) -> Path:
        """The folder of an app's store."""
        return self._folder / app_id

    def make_folder(self, app_id: str) -> None:
        """Creates an app's folder if it is missing."""
        self.folder_of(app_id).mkdir(parents=True, exist_ok=True)

    def authorized_url(self, endpoint: str, app_id: str, seconds: int) -> str:
        """A link that is valid for `seconds`. endpoint: the URL by which its reader reaches this server."""
        return f"{endpoint}{PREFIX}{app_id}/auth?authToken={quote(self._token(app_id, seconds))}"

    def takes(self, request: web.Request) -> bool:
        """Whether the request is for an app."""
        return request.path.startswith(PREFIX) or _APP_HEADER in request.headers

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply to a request below `PREFIX` or to one from the plugin."""
        if _APP_HEADER in request.headers:
            return await self._answer_signed(request, request.headers[_APP_HEADER].rpartition("/")[2])
        app_id, _, path = request.path.removeprefix(PREFIX).partition("/")
        if not self._is_app(app_id):
            return web.Response(status=404, text=_NO_APP.format(app_id))
        if path == "auth":
            return self._start_session(request, app_id)
        if not self._is_valid(app_id, request.cookies.get(_COOKIE, "")):
            return web.Response(status=403, text=_EXPIRED)
        folder = self._folder / app_id
        match request.method, path:
            case "GET", "api/2.0/mlflow/experiments/get-by-name":
                return await _from_store(experiment_by_name, folder, request.query.get("experiment_name", ""))
            case "POST", "api/2.0/mlflow/runs/search":
                return await _from_store(search_runs, folder, await request.read())
            case "GET", "" if "text/html" not in request.headers.get("Accept", ""):
                return web.Response(text=f"MLflow app {app_id}: open this link in a browser\n")
        return await self._forwarded(request, app_id, request.raw_path)

    async def stop(self) -> None:
        """Stops MLflow's servers."""
        await self._servers.stop()

    async def _answer_signed(self, request: web.Request, app_id: str) -> web.StreamResponse:
        try:
            self._authenticator.admit(signed_request(request, await request.read()), time.time(), is_query=False)
        except ServiceError as error:
            refusal = {"error_code": "PERMISSION_DENIED", "message": error.message}
            return web.Response(status=403, body=orjson.dumps(refusal), content_type="application/json")
        if not self._is_app(app_id):
            return web.Response(status=404, text=_NO_APP.format(app_id))
        return await self._forwarded(request, app_id, f"{PREFIX}{app_id}{request.raw_path}")

    async def _forwarded(self, request: web.Request, app_id: str, path: str) -> web.StreamResponse:
        """The reply of MLflow's own server for a raw path."""
        try:
            return await self._servers.forward(request, app_id, self._folder / app_id, path)
        except MissingExtra as error:
            return web.Response(status=501, text=f"{error}\n")
        except (StorageError, aiohttp.ClientError) as error:
            return web.Response(status=502, text=f"{error}\n")

    def _is_app(self, app_id: str) -> bool:
        return _ID.fullmatch(app_id) is not None and (self._folder / app_id).is_dir()

    def _start_session(self, request: web.Request, app_id: str) -> web.Response:
        """Sets the session cookie and redirects to the pages. The browser keeps the part of the link after `#`."""
        if not self._is_valid(app_id, request.query.get("authToken", "")):
            return web.Response(status=403, text=_EXPIRED)
        reply = web.Response(status=302, headers={"Location": f"{PREFIX}{app_id}/"})
        session = self._token(app_id, _SESSION_SECONDS)
        reply.set_cookie(_COOKIE, session, path=f"{PREFIX}{app_id}", httponly=True, samesite="Lax")
        return reply

    def _token(self, app_id: str, seconds: int) -> str:
        until = int(time.time()) + seconds
        return f"{until}.{self._mac(app_id, until)}"

    def _is_valid(self, app_id: str, token: str) -> bool:
        until, _, mac = token.partition(".")
        if not (until.isascii() and until.isdigit() and len(until) < 16 and int(until) > time.time()):
            return False
        return hmac.compare_digest(mac.encode(), self._mac(app_id, int(until)).encode())

    def _mac(self, app_id: str, until: int) -> str:
        return hmac.digest(self._key, f"{app_id} {until}".encode(), "sha256").hex()


async def _from_store(call: Callable[[Path, Any], Any], folder: Path, query: Any) -> web.Response:
    try:
        body, status = await asyncio.to_thread(call, folder, query), 200
    except CallRefused as refused:
        body, status = {"error_code": refused.code, "message": str(refused)}, refused.status
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
