"""The HTTP application of all services: authenticates, routes, validates and answers every request."""

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
from heldout.service.agents import operations as agents
from heldout.service.cloudwatch import logs
from heldout.service.context import Context
from heldout.service.mlflow import apps as mlflow_apps
from heldout.service.sagemaker import artifacts, executions, hub, identity, jobs, packages, pipelines, tagging
from heldout.service.wire.authentication import Authenticator
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.operations import Function, OperationTable, Params, Reply, Router
from heldout.service.wire.protocols import WireReply, is_form, parse_request, render_error, render_reply
from heldout.service.wire.raw_handlers import RawHandler, signed_request
from heldout.service.wire.validation import check_request

OPERATION_TABLES: Sequence[OperationTable[Context]] = (
    jobs.OPERATIONS,
    logs.OPERATIONS,
    pipelines.OPERATIONS,
    executions.OPERATIONS,
    tagging.OPERATIONS,
    hub.OPERATIONS,
    packages.OPERATIONS,
    mlflow_apps.OPERATIONS,
    artifacts.OPERATIONS,
    identity.STS,
    identity.IAM,
    agents.RUNTIMES,
    agents.CONTROL,
    agents.LAMBDA,
)
"""All operations that the server answers."""
_MAX_BODY_BYTES = 128 * 1024 * 1024
"""Above the 100 MB that an agent's payload may have."""
_log = logging.getLogger(__name__)


class Application:
    """Answers HTTP requests."""

    def __init__(self, context: Context, authenticator: Authenticator, raw_handlers: Sequence[RawHandler] = ()) -> None:
        """raw_handlers: tried in this order before the operation tables."""
        self._context = context
        self._authenticator = authenticator
        self._raw_handlers = raw_handlers
        self._router = Router(OPERATION_TABLES)

    def for_aiohttp(self) -> web.Application:
        """The application for aiohttp's runner."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES)
        application.router.add_route("*", r"/{path:[\s\S]*}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        for handler in self._raw_handlers:
            if handler.takes(request):
                return await handler.answer(request)
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
        """The reply to one request. Errors are replies too."""
        operation = None
        is_query = is_form(request)
        try:
            caller = self._authenticator.admit(request, time.time(), is_query=is_query)
            operation = self._router.find(request, caller.service)
            params = parse_request(operation, request)
            check_request(operation, params)
            host = request.headers.get("host")
            endpoint = f"http://{host}" if host else self._context.endpoint
            context = dataclasses.replace(self._context, endpoint=endpoint, access_key=caller.access_key)
            function = self._router.function(operation)
            return render_reply(operation, await _call(function, context, params))
        except ServiceError as error:
            return render_error(operation, error, is_query=is_query)
        except Exception as error:  # noqa: BLE001
            # The boundary to all operations: the client gets an answer, and an unexpected error leaves a traceback in the log.
            is_expected = isinstance(error, HeldoutError)
            message = str(error) if is_expected else f"unexpected: {error!r}"
            name = "a request" if operation is None else operation.name
            _log.error("%s failed: %s", name, message, exc_info=None if is_expected else error)
            return render_error(operation, ServiceError("InternalFailure", message), is_query=is_query)


def _too_large() -> ServiceError:
    message = f"the request's body is longer than {_MAX_BODY_BYTES // 1024**2} MiB"
    return ServiceError("RequestEntityTooLargeException", message, status=413)


async def _call(function: Function[Context], context: Context, params: Params) -> Reply:
    if inspect.iscoroutinefunction(function):
        awaited: Reply = await function(context, params)
        return awaited
    reply = await asyncio.to_thread(function, context, params)
    return cast(Reply, reply)  # only a coroutine function returns an awaitable


async def _stream(request: web.Request, reply: WireReply, body: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    await response.prepare(request)
    async for piece in body:
        await response.write(piece)
    await response.write_eof()
    return response
