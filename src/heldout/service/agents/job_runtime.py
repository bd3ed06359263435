"""Job Runtimes behind the server's address: each request is forwarded to the runtime of the job that it names.

That runtime authenticates the request; signatures, tokens and secrets are forwarded unchanged. Without a running runtime, this
module refuses unauthenticated callers with the same messages, so that they cannot learn which jobs exist.
"""

import asyncio
from collections.abc import Callable

import aiohttp
import orjson
from aiohttp import web

from heldout.backends.local.services import runtime_address
from heldout.errors import shown
from heldout.runs.run import Run
from heldout.runtime.access import Access
from heldout.runtime.refusals import Refusal, conflict, internal, invalid, not_found
from heldout.runtime.signing import SignedRequest
from heldout.service.wire.authentication import KeySource
from heldout.service.wire.raw_handlers import forward, new_session, signed_request

_JOB_HEADER = "X-Amzn-SageMaker-Job-Arn"
_REPORTS = ("/complete-rollout", "/update-reward")
_CALLS = ("/chat/completions", "/completions", "/sample", "/sample-with-response-stream")


class JobRuntimes:
    """Forwards requests to the runtimes of running jobs."""

    def __init__(self, run_of: Callable[[str], Run | None], keys: KeySource | None, region: str) -> None:
        """run_of: finds the run of a job by its ARN; may block. keys: key pairs that may sign; None disables verification."""
        self._run_of = run_of
        self._keys = keys
        self._region = region
        self._http: aiohttp.ClientSession | None = None

    def takes(self, request: web.Request) -> bool:
        """Whether the request is a Job Runtime request."""
        return request.path.removeprefix("/v1") in _REPORTS + _CALLS or (
            request.path == "/v1/models" and _JOB_HEADER in request.headers
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply of the job's runtime, streamed."""
        try:
            address = await self._address(request)
            if self._http is None:
                self._http = new_session()
            return await forward(self._http, request, address)
        except Refusal as refusal:
            return _refused(refusal)
        except aiohttp.ClientConnectionError as error:
            return _refused(internal(f"the connection to the job's Job Runtime was lost: {error}"))

    async def stop(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.close()

    async def _address(self, request: web.Request) -> str:
        is_report = request.path.removeprefix("/v1") in _REPORTS
        arn = request.headers.get(_JOB_HEADER) or (_arn_in(await request.read()) if is_report else None)
        if not arn:
            raise invalid(f"the request names no job; send its ARN in the header {_JOB_HEADER}")
        run = await asyncio.to_thread(self._run_of, arn) if arn.isascii() else None  # a header may hold any bytes
        address = None if run is None else await asyncio.to_thread(runtime_address, run)
        if address is not None:
            return address
        self._check_caller(arn, signed_request(request, await request.read()))
        if run is None:
            raise not_found(f"there is no job {shown(arn, 300)} on this server")
        if is_report:
            raise conflict(f"job {arn} is {run.state.status}: its trajectories are not in valid status for reports")
        raise not_found(f"job {arn} is {run.state.status} and has no Job Runtime now")

    def _check_caller(self, arn: str, request: SignedRequest) -> None:
        """Raises Refusal (403) like the runtime of a running job."""
        if self._keys is None:
            return
        access = Access(job_arn=arn, region=self._region, credentials=self._keys())
        authorization = request.headers.get("authorization", "")
        if access.needs_body(authorization):
            access.check_signature(request)
        else:
            access.check_bearer(authorization)


def _refused(refusal: Refusal) -> web.Response:
    return web.Response(status=refusal.status, headers=refusal.headers(), body=refusal.body())


def _arn_in(body: bytes) -> str | None:
    try:
        arn = orjson.loads(body)["JobArn"]
    except (ValueError, KeyError, TypeError):
        return None
    return arn if isinstance(arn, str) else None
