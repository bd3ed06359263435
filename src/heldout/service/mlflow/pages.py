"""MLflow apps as a browser and SDKs open them: a link that lets in for a while, and what is behind it.

Two calls of MLflow's REST API are answered from the store itself, since SDKs make them while they start an evaluation and for
links to its runs. Everything else is MLflow's own server, started for an app when its pages are first asked for and ended with
this one; it comes with the package `mlflow`, and where that is not installed a page says how to have it.

The plugin `sagemaker-mlflow` comes in by its signature, with SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT set to this server.
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
from heldout.service.mlflow.servers import MlflowServers
from heldout.service.wire.authentication import Gate
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.raw_handlers import signed_request

PREFIX = "/mlflow-apps/"
OWN_APP = "app-heldout"
"""The id of the app that is there from the start."""
_APP_HEADER = "x-sm-mlflow-app-arn"
"""How the plugin (sagemaker-mlflow 0.5) says which app it means."""
_ID = re.compile(r"[A-Za-z0-9-]+")
_COOKIE = "heldout-mlflow"
_SESSION_SECONDS = 43_200
"""The longest that the service lets a session be."""
_NO_APP = "there is no MLflow app {!r} on this server\n"
_EXPIRED = "this link is over, or is none; make a new one with CreatePresignedMlflowAppUrl\n"


class MlflowPages:
    """The pages of the apps whose stores are in `folder`, each in a folder of its id."""

    def __init__(self, folder: Path, gate: Gate) -> None:
        self._folder = folder
        self._gate = gate
        self._key = secrets.token_bytes(32)
        """Links and sessions end with the process: they are for minutes and hours."""
        self._servers = MlflowServers(PREFIX)
        self.make_folder(OWN_APP)

    def folder_of(self, app_id: str) -> Path:
        """Where an app's store lies."""
        return self._folder / app_id

    def make_folder(self, app_id: str) -> None:
        """Makes an app's folder, if it is not there."""
        self.folder_of(app_id).mkdir(parents=True, exist_ok=True)

    def authorized_url(self, endpoint: str, app_id: str, seconds: int) -> str:
        """A link that lets in for so long. endpoint: where its reader reaches this server."""
        return f"{endpoint}{PREFIX}{app_id}/auth?authToken={quote(self._token(app_id, seconds))}"

    def takes(self, request: web.Request) -> bool:
        """Whether a request is for an app."""
        return request.path.startswith(PREFIX) or _APP_HEADER in request.headers

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply to a request below `PREFIX`, or to one of the plugin."""
        if _APP_HEADER in request.headers:
            return await self._answer_signed(request, request.headers[_APP_HEADER].rpartition("/")[2])
        app_id, _, path = request.path.removeprefix(PREFIX).partition("/")
        if not self._is_app(app_id):
            return web.Response(status=404, text=_NO_APP.format(app_id))
        if path == "auth":
            return self._let_in(request, app_id)
        if not self._is_valid(app_id, request.cookies.get(_COOKIE, "")):
            return web.Response(status=403, text=_EXPIRED)
        folder = self._folder / app_id
        match request.method, path:
            case "GET", "api/2.0/mlflow/experiments/get-by-name":
                return await _answered(experiment_by_name, folder, request.query.get("experiment_name", ""))
            case "POST", "api/2.0/mlflow/runs/search":
                return await _answered(search_runs, folder, await request.read())
            case "GET", "" if "text/html" not in request.headers.get("Accept", ""):
                return web.Response(text=f"MLflow app {app_id}: open this link in a browser\n")
        return await self._forwarded(request, app_id, request.raw_path)

    async def stop(self) -> None:
        """Ends MLflow's servers."""
        await self._servers.stop()

    async def _answer_signed(self, request: web.Request, app_id: str) -> web.StreamResponse:
        try:
            self._gate.admit(signed_request(request, await request.read()), time.time(), is_query=False)
        except ServiceError as error:
            refusal = {"error_code": "PERMISSION_DENIED", "message": error.message}
            return web.Response(status=403, body=orjson.dumps(refusal), content_type="application/json")
        if not self._is_app(app_id):
            return web.Response(status=404, text=_NO_APP.format(app_id))
        return await self._forwarded(request, app_id, f"{PREFIX}{app_id}{request.raw_path}")

    async def _forwarded(self, request: web.Request, app_id: str, path: str) -> web.StreamResponse:
        """The reply of MLflow's own server to a request for this raw path."""
        try:
            return await self._servers.forward(request, app_id, self._folder / app_id, path)
        except MissingExtra as error:
            return web.Response(status=501, text=f"{error}\n")
        except (StorageError, aiohttp.ClientError) as error:
            return web.Response(status=502, text=f"{error}\n")

    def _is_app(self, app_id: str) -> bool:
        return _ID.fullmatch(app_id) is not None and (self._folder / app_id).is_dir()

    def _let_in(self, request: web.Request, app_id: str) -> web.Response:
        """The link itself: a cookie, and on to the pages. What follows `#` the browser keeps by itself."""
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


async def _answered(call: Callable[[Path, Any], Any], folder: Path, asked: Any) -> web.Response:
    try:
        body, status = await asyncio.to_thread(call, folder, asked), 200
    except CallRefused as refused:
        body, status = {"error_code": refused.code, "message": str(refused)}, refused.status
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
