"""Invokes a Lambda function that forwards prompts to an agent.

The agent behind it reports through the Job Runtime, usually after the function has answered. Source: Invoke of botocore's
service model `lambda` (1.44); the forwarder's answers as in the AWS developer guide on multi-turn RL.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Any

from heldout.agents.agentcore_contract import one_line, read_answer
from heldout.agents.aws import CallFailed, connect, retried
from heldout.agents.base import Agent, AgentSettings, Invocation, InvocationResult, Outcome
from heldout.job.kinds.lambda_function import LambdaAgent

if TYPE_CHECKING:
    from types_boto3_lambda import LambdaClient


def make(function: LambdaAgent, settings: AgentSettings) -> "LambdaForwarder":
    """Builds the agent behind a Lambda function."""
    return LambdaForwarder(function, concurrency=settings.concurrency, timeout_seconds=settings.timeout_seconds)


class LambdaForwarder(Agent):
    """A Lambda function in AWS. Its region is the ARN's."""

    def __init__(self, function: LambdaAgent, *, concurrency: int, timeout_seconds: float) -> None:
        """concurrency: attempts at once. timeout_seconds: the longest an attempt may take."""
        self._arn = function.arn
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._client: LambdaClient | None = None

    async def start(self) -> None:
        """Creates the client. Raises ReferenceProblem without AWS credentials; a missing function fails the first attempt."""
        self._client = await connect(
            "lambda",
            self._arn.split(":")[3],
            agent=self._arn,
            concurrency=self._concurrency,
            timeout_seconds=self._timeout_seconds,
        )

    async def stop(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            self._client.close()

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        """Plays one attempt up to the function's answer: `{}` means that it accepted the prompt."""
        try:
            async with asyncio.timeout(invocation.timeout_seconds):
                return await retried(lambda: self._invoke(invocation), doing=f"Invoke of {self._arn}")
        except TimeoutError:
            return InvocationResult(Outcome.TIMED_OUT, message=f"no answer within {invocation.timeout_seconds:g} s")
        except CallFailed as failure:
            return failure.result

    async def is_busy(self) -> bool:
        """Always true: the function only forwards, and the agent behind it may report a reward later."""
        return True

    def _invoke(self, invocation: Invocation) -> InvocationResult:
        assert self._client is not None  # `start` comes before `invoke`
        answer = self._client.invoke(
            FunctionName=self._arn, InvocationType="RequestResponse", Payload=invocation.payload
        )
        body = answer["Payload"].read()
        if answer.get("FunctionError"):
            return InvocationResult(Outcome.RAISED, message=one_line(f"the function failed: {_error_text(body)}"))
        return read_answer(200, "application/json", body)


def _error_text(body: bytes) -> str:
    """The error of a failed function: `errorType` and `errorMessage`, as every Lambda runtime writes them."""
    try:
        error: Any = json.loads(body)
    except ValueError:
        error = None
    if isinstance(error, dict) and "errorMessage" in error:
        return f"{error.get('errorType', 'Error')}: {error['errorMessage']}"
    return body.decode(errors="replace") or "(no reason given)"
