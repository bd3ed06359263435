"""Bedrock AgentCore and Lambda operations: the registry's agents, listed and invoked by their AWS names.

The reply is the agent's complete answer as JSON; for an event stream (SSE) it is the last event. An invocation of type Event
runs once, without a retry, and its result is dropped.
"""

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from heldout.agents.base import InvocationResult, Outcome
from heldout.errors import did_you_mean
from heldout.job.kinds.agentcore import AGENTCORE_ARN
from heldout.job.kinds.lambda_function import LAMBDA_ARN
from heldout.service.context import REGISTRY_CREATED_AT, Context
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import paged

RUNTIMES = OperationTable[Context]("bedrock-agentcore")
CONTROL = OperationTable[Context]("bedrock-agentcore-control")
LAMBDA = OperationTable[Context]("lambda")

_SESSION = re.compile(r"[A-Za-z0-9_.-]+")
_VERSION = "1"
_LATEST = "$LATEST"
_SORT_KEYS = {"": "agentRuntimeArn"}
_TIMED_OUT = "Sandbox.Timedout"
_EXITED = "Runtime.ExitError"
"""Lambda's error types for a function that timed out and for one whose process ended."""


@RUNTIMES.operation("InvokeAgentRuntime")
async def invoke_agent_runtime(context: Context, params: Params) -> Reply:
    """Invokes an agent in the session that the request names, or in a new one."""
    arn = params["agentRuntimeArn"]
    runtimes = _mapped(context, AGENTCORE_ARN)
    if arn not in runtimes:
        raise _not_found(f"agent runtime {arn!r} does not exist", arn, runtimes)
    session = params.get("runtimeSessionId") or str(uuid.uuid4())
    if not _SESSION.fullmatch(session):
        raise ServiceError(
            "ValidationException", f"runtimeSessionId {session!r} must be letters, digits, '_', '.' and '-'"
        )
    result = await context.agents.invoke(arn, params["payload"], session)
    if result.outcome is not Outcome.RETURNED:
        raise ServiceError("RuntimeClientError", f"Received error from runtime: {_reason(result)}")
    return {
        "runtimeSessionId": session,
        "contentType": "application/json",
        "statusCode": 200,
        "response": json.dumps(result.body).encode(),
    }


@CONTROL.operation("ListAgentRuntimes")
async def list_agent_runtimes(context: Context, params: Params) -> Reply:
    """Lists the registry's AgentCore runtimes."""
    return paged("agentRuntimes", [_runtime(arn) for arn in _mapped(context, AGENTCORE_ARN)], params, _SORT_KEYS)


@CONTROL.operation("GetAgentRuntime")
async def get_agent_runtime(context: Context, params: Params) -> Reply:
    """Describes an AgentCore runtime of the registry by its id."""
    given = params["agentRuntimeId"]
    by_id = {_runtime_id(arn): arn for arn in _mapped(context, AGENTCORE_ARN)}
    if given not in by_id or params.get("agentRuntimeVersion", _VERSION) != _VERSION:
        raise _not_found(f"agent runtime {given!r} does not exist", given, list(by_id))
    return _runtime(by_id[given]) | {
        "createdAt": REGISTRY_CREATED_AT,
        "roleArn": f"arn:aws:iam::{context.account}:role/heldout",
        "networkConfiguration": {"networkMode": "PUBLIC"},
        "lifecycleConfiguration": {"idleRuntimeSessionTimeout": 900, "maxLifetime": 28_800},
        "protocolConfiguration": {"serverProtocol": "HTTP"},
    }


@LAMBDA.operation("Invoke")
async def invoke_function(context: Context, params: Params) -> Reply:
    """Invokes an agent as a function: waits for its answer, returns at once (Event), or only checks the request (DryRun)."""
    arn = _function_arn(context, params["FunctionName"])
    payload = params.get("Payload") or b"{}"
    try:
        json.loads(payload)
    except ValueError as error:
        raise ServiceError(
            "InvalidRequestContentException", f"Could not parse request body into json: {error}"
        ) from None
    match params.get("InvocationType", "RequestResponse"):
        case "DryRun":
            return {"StatusCode": 204}
        case "Event":
            context.agents.invoke_later(arn, payload)
            return {"StatusCode": 202}
        case _:
            return _function_reply(await context.agents.invoke(arn, payload))


def _function_reply(result: InvocationResult) -> Reply:
    reply: Reply = {"StatusCode": 200, "ExecutedVersion": _LATEST}
    if result.outcome is Outcome.RETURNED:
        return reply | {"Payload": json.dumps(result.body).encode()}
    match result.outcome:
        case Outcome.TIMED_OUT:
            kind, message = _TIMED_OUT, result.message
        case Outcome.RAISED:
            kind, colon, message = result.message.partition(": ")
            kind, message = (kind, message) if colon and kind.isidentifier() else ("Exception", result.message)
        case _:
            kind, message = _EXITED, _reason(result)
    error: dict[str, Any] = {"errorType": kind, "errorMessage": message}
    return reply | {"FunctionError": "Unhandled", "Payload": json.dumps(error).encode()}


def _mapped(context: Context, pattern: re.Pattern[str]) -> list[str]:
    return [arn for arn in context.registry.agents if pattern.fullmatch(arn)]


def _function_arn(context: Context, given: str) -> str:
    """The ARN of a mapped function by name, partial ARN or ARN, each with or without a version or alias."""
    functions = _mapped(context, LAMBDA_ARN)
    for arn in functions:
        _, _, _, _, account, _, name, *_ = arn.split(":")
        known = {name, f"{account}:function:{name}", ":".join(arn.split(":")[:7])}
        if given in known or given == arn or given.rpartition(":")[0] in known:
            return arn
    raise _not_found(f"Function not found: {given}", given, functions)


def _runtime(arn: str) -> Reply:
    runtime_id = _runtime_id(arn)
    return {
        "agentRuntimeArn": arn,
        "agentRuntimeId": runtime_id,
        "agentRuntimeName": runtime_id.rpartition("-")[0] or runtime_id,
        "agentRuntimeVersion": _VERSION,
        "description": "an agent on this machine, mapped by the registry",
        "lastUpdatedAt": REGISTRY_CREATED_AT,
        "status": "READY",
    }


def _runtime_id(arn: str) -> str:
    return arn.split("/")[1]


def _reason(result: InvocationResult) -> str:
    return result.message or str(result.outcome)


def _not_found(what: str, given: str, known: Sequence[str]) -> ServiceError:
    return ServiceError(
        "ResourceNotFoundException",
        f"{what}; the registry maps {', '.join(known) or 'none'}.{did_you_mean(given, known)}",
    )
