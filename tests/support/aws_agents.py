"""Agents in AWS, for tests: a server that speaks InvokeAgentRuntime, StopRuntimeSession and Lambda's Invoke at the wire."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web

from tests.support.agents_support import served
from tests.support.s3_service import forget_aws

RUNTIME_ARN = "arn:aws:bedrock-agentcore:eu-west-1:123456789012:runtime/guesser-AbCdEfGhIj"
LAMBDA_ARN = "arn:aws:lambda:eu-west-1:123456789012:function:forwarder"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

Answer = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]


class AwsAgents:
    """What was asked, and how it is answered: by `answer`, or as the prompt's first word says."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer or self._as_the_prompt_says
        self.tries: Counter[str] = Counter()
        """Invocations by prompt."""
        self.queries: list[dict[str, str]] = []
        self.sessions: list[str] = []
        self.stopped: list[str] = []
        self.functions: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers every request."""
        parts = [unquote(part) for part in request.raw_path.partition("?")[0].strip("/").split("/")]
        match parts:
            case ["runtimes", arn, "stopruntimesession"] if arn == RUNTIME_ARN:
                self.stopped.append(request.headers[SESSION])
                return web.json_response({})
            case ["runtimes", arn, "invocations"] if arn == RUNTIME_ARN:
                self.queries.append(dict(request.query))
                self.sessions.append(request.headers[SESSION])
            case ["2015-03-31", "functions", arn, "invocations"]:
                self.functions.append(arn)
            case _:
                return refusal("ResourceNotFoundException", f"no {request.path}", 404)
        payload = json.loads(await request.read())
        self.tries[payload["prompt"]] += 1
        return await self.answer(payload)

    async def _as_the_prompt_says(self, payload: dict[str, Any]) -> web.StreamResponse:
        word, _, argument = payload["prompt"].partition(" ")
        match word:
            case "say":
                return web.json_response(json.loads(argument))
            case "stream":
                events = "".join(f"data: {event}\n\n" for event in argument.split("|"))
                return web.Response(body=events.encode(), content_type="text/event-stream")
            case "busy" if self.tries[payload["prompt"]] < 3:
                return refusal(argument, "slow down", 503 if argument.startswith("Service") else 429)
            case "refuse":
                code, status = argument.split()
                return refusal(code, "no, because", int(status))
            case "fail":
                body = {"errorType": "KeyError", "errorMessage": "'prompt'"}
                return web.json_response(body, headers={"X-Amz-Function-Error": "Unhandled"})
            case "hang":
                await asyncio.sleep(3600)
        return web.json_response({"reward": 1.0})


def refusal(code: str, message: str, status: int) -> web.Response:
    """An error as the REST services of AWS send it."""
    headers = {"x-amzn-errortype": code, "Retry-After": "0"}
    return web.json_response({"message": message}, status=status, headers=headers)


@asynccontextmanager
async def aws_agents(monkeypatch: pytest.MonkeyPatch, answer: Answer | None = None) -> AsyncIterator[AwsAgents]:
    """The server, and the variables that point boto3 at it."""
    agents = AwsAgents(answer)
    forget_aws(monkeypatch)
    async with served(agents.handle) as url:
        for service in ("BEDROCK_AGENTCORE", "LAMBDA"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield agents


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
