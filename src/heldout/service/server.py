"""One HTTP server for all the services: every request is let in, routed, checked, served and answered here."""

import asyncio
import dataclasses
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import cast

from aiohttp import web

from heldout.errors import HeldoutError
from heldout.runtime.signing import SignedRequest
from heldout.service import identity
from heldout.service.agents import operations as agents
from heldout.service.cloudwatch import logs
from heldout.service.context import Context
from heldout.service.mlflow import apps as mlflow_apps
from heldout.service.operations import Function, Params, Reply, Room
from heldout.service.routing import Router
from heldout.service.sagemaker import artifacts, executions, hub, jobs, packages, pipelines, tagging
from heldout.service.wire.authentication import Gate
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.protocols import WireReply, is_form, parse_request, render_error, render_reply
from heldout.service.wire.raw_handlers import Front, signed_request
from heldout.service.wire.validation import check_request

ROOMS: Sequence[Room] = (
    jobs.ROOM,
    logs.ROOM,
    pipelines.ROOM,
    executions.ROOM,
    tagging.ROOM,
    hub.ROOM,
    packages.ROOM,
    mlflow_apps.ROOM,
    artifacts.ROOM,
    identity.STS,
    identity.IAM,
    agents.RUNTIMES,
    agents.CONTROL,
    agents.LAMBDA,
)
"""What is served."""
_LARGEST_BODY = 128 * 1024 * 1024
"""Above the 100 MB that an agent's payload may have."""
_log = logging.getLogger(__name__)


class Service:
    """Answers HTTP requests."""

    def __init__(self, context: Context, gate: Gate, fronts: Sequence[Front] = ()) -> None:
        """fronts: are asked first, in this order, whether a request is theirs."""
        self._context = context
        self._gate = gate
        self._fronts = fronts
        self._router = Router(ROOMS)

    def application(self) -> web.Application:
        """To be run by aiohttp."""
        application = web.Application(client_max_size=_LARGEST_BODY)
        application.router.add_route("*", r"/{path:[\s\S]*}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        for front in self._fronts:
            if front.takes(request):
                return await front.answer(request)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            reply = render_error(None, _too_large(), is_query=is_form(signed_request(request, b"")))
        else:
            reply = await self.answer(signed_request(request, body))
        reply.headers["x-amzn-RequestId"] = str(uuid.uuid4())
        if isinstance(reply.body, bytes):
            return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
        return await _stream(request, reply, reply.body)

    async def answer(self, request: SignedRequest) -> WireReply:
        """The reply to one request, errors included."""
        operation = None
        is_query = is_form(request)
        try:
            caller = self._gate.admit(request, time.time(), is_query=is_query)
            operation = self._router.find(request, caller.service)
            params = parse_request(operation, request)
            check_request(operation, params)
            host = request.headers.get("host")
            endpoint = f"http://{host}" if host else self._context.endpoint
            context = dataclasses.replace(self._context, endpoint=endpoint, access_key=caller.access_key)
            function = self._router.function(operation)
            return render_reply(operation, await _called(function, context, params))
        except ServiceError as error:
            return render_error(operation, error, is_query=is_query)
        except Exception as error:  # noqa: BLE001
            # Whatever an operation raises, the client gets an answer, and who runs the server a traceback if nobody foresaw it.
            is_foreseen = isinstance(error, HeldoutError)
            told = str(error) if is_foreseen else f"unexpected: {error!r}"
            name = "a request" if operation is None else operation.name
            _log.error("%s failed: %s", name, told, exc_info=None if is_foreseen else error)
            return render_error(operation, ServiceError("InternalFailure", told), is_query=is_query)


def _too_large() -> ServiceError:
    told = f"the request's body is longer than {_LARGEST_BODY // 1024**2} MiB"
    return ServiceError("RequestEntityTooLargeException", told, status=413)


async def _called(function: Function, context: Context, params: Params) -> Reply:
    if inspect.iscoroutinefunction(function):
        awaited: Reply = await function(context, params)
        return awaited
    reply = await asyncio.to_thread(function, context, params)
    return cast(Reply, reply)  # only a coroutine function gives something to wait for


async def _stream(request: web.Request, reply: WireReply, body: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    await response.prepare(request)
    async for piece in body:
        await response.write(piece)
    await response.write_eof()
    return response
