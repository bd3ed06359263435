"""The Job Runtime of every job at this server's own address: requests are handed to the runtime of the job they name.

That one lets in who may, as it does its own agents: signatures, tokens and secrets are passed on untouched.
"""

import asyncio
from collections.abc import Callable

import aiohttp
import orjson
from aiohttp import web

from heldout.backends.services import runtime_address
from heldout.errors import shown
from heldout.rollouts.run import Run
from heldout.runtime.refusals import Refusal, conflict, internal, invalid, not_found
from heldout.service.forwarding import forward, new_session

_JOB_HEADER = "X-Amzn-SageMaker-Job-Arn"
_REPORTS = ("/complete-rollout", "/update-reward")
_CALLS = ("/chat/completions", "/completions", "/sample", "/sample-with-response-stream")


class JobRuntimes:
    """Hands requests on to the runtimes of the jobs that play."""

    def __init__(self, run_of: Callable[[str], Run | None]) -> None:
        """run_of: the run of a job by its ARN; may block."""
        self._run_of = run_of
        self._http: aiohttp.ClientSession | None = None

    def takes(self, request: web.Request) -> bool:
        """Whether a request is one that agents make."""
        return request.path.removeprefix("/v1") in _REPORTS + _CALLS or (
            request.path == "/v1/models" and _JOB_HEADER in request.headers
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply of the job's runtime, as it comes."""
        try:
            address = await self._address(request)
            if self._http is None:
                self._http = new_session()
            return await forward(self._http, request, address)
        except Refusal as refusal:
            return _refused(refusal)
        except aiohttp.ClientConnectionError as error:
            return _refused(internal(f"the job's Job Runtime went away: {error}"))

    async def stop(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.close()

    async def _address(self, request: web.Request) -> str:
        is_report = request.path.removeprefix("/v1") in _REPORTS
        arn = request.headers.get(_JOB_HEADER) or (_arn_in(await request.read()) if is_report else None)
        if not arn:
            raise invalid(f"which job? Send its ARN in the header {_JOB_HEADER}")
        run = await asyncio.to_thread(self._run_of, arn)
        if run is None:
            raise not_found(f"there is no job {shown(arn, 300)} on this server")
        address = await asyncio.to_thread(runtime_address, run)
        if address is None and is_report:
            raise conflict(f"job {arn} is {run.state.status}: its trajectories are not in valid status for reports")
        if address is None:
            raise not_found(f"job {arn} is {run.state.status} and has no Job Runtime now")
        return address


def _refused(refusal: Refusal) -> web.Response:
    return web.Response(status=refusal.status, headers=refusal.headers(), body=refusal.body())


def _arn_in(body: bytes) -> str | None:
    try:
        arn = orjson.loads(body)["JobArn"]
    except (ValueError, KeyError, TypeError):
        return None
    return arn if isinstance(arn, str) else None
