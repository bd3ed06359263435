"""Invokes an agent in Bedrock AgentCore.

Source: InvokeAgentRuntime and StopRuntimeSession of botocore's service model `bedrock-agentcore` (1.44).
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from heldout.agents.agentcore_contract import read_answer
from heldout.agents.aws import CallFailed, connect, in_thread, retried
from heldout.agents.base import Agent, AgentSettings, Invocation, InvocationResult, Outcome
from heldout.job.kinds.agentcore import AgentCoreRuntime

if TYPE_CHECKING:
    from types_boto3_bedrock_agentcore import BedrockAgentCoreClient

_log = logging.getLogger(__name__)
_STOPPING_SECONDS = 5.0
"""How long the end of a job waits while AgentCore ends the sessions of abandoned attempts."""


def make(runtime: AgentCoreRuntime, settings: AgentSettings) -> "AgentCoreAgent":
    """Builds the agent of an AgentCore runtime."""
    return AgentCoreAgent(runtime, concurrency=settings.concurrency, timeout_seconds=settings.timeout_seconds)


class AgentCoreAgent(Agent):
    """An agent runtime in AWS, each attempt in a session of its own. Its region is the ARN's."""

    def __init__(self, runtime: AgentCoreRuntime, *, concurrency: int, timeout_seconds: float) -> None:
        """concurrency: attempts at once. timeout_seconds: the longest an attempt may take."""
        self._runtime = runtime
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._client: BedrockAgentCoreClient | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Creates the client. Raises ReferenceProblem without AWS credentials; a missing runtime fails the first attempt."""
        self._client = await connect(
            "bedrock-agentcore",
            self._runtime.arn.split(":")[3],
            agent=self._runtime.arn,
            concurrency=self._concurrency,
            timeout_seconds=self._timeout_seconds,
        )

    async def stop(self) -> None:
        """Waits briefly for the sessions of abandoned attempts to end, then closes the connections."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=_STOPPING_SECONDS)
        if self._client is not None:
            self._client.close()

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        """Plays one attempt. Ends its session if the attempt is abandoned: AgentCore would keep it running."""
        try:
            async with asyncio.timeout(invocation.timeout_seconds):
                return await retried(
                    lambda: self._invoke(invocation), doing=f"InvokeAgentRuntime of {self._runtime.arn}"
                )
        except TimeoutError:
            self._end_session(invocation)
            return InvocationResult(Outcome.TIMED_OUT, message=f"no answer within {invocation.timeout_seconds:g} s")
        except CallFailed as failure:
            return failure.result
        except asyncio.CancelledError:
            self._end_session(invocation)
            raise

    async def is_busy(self) -> bool:
        """Always true: AgentCore does not report background work, so the agent may still send a reward."""
        return True

    def _invoke(self, invocation: Invocation) -> InvocationResult:
        answer = self._aws.invoke_agent_runtime(
            agentRuntimeArn=self._runtime.arn,
            qualifier=self._runtime.qualifier or "DEFAULT",
            runtimeSessionId=invocation.trajectory_id,
            contentType="application/json",
            accept="application/json, text/event-stream",
            payload=invocation.payload,
        )
        return read_answer(answer.get("statusCode", 200), answer.get("contentType", ""), answer["response"].read())

    def _end_session(self, invocation: Invocation) -> None:
        task = asyncio.create_task(self._ended(invocation.trajectory_id))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _ended(self, session_id: str) -> None:
        try:
            await in_thread(
                lambda: self._aws.stop_runtime_session(
                    agentRuntimeArn=self._runtime.arn,
                    qualifier=self._runtime.qualifier or "DEFAULT",
                    runtimeSessionId=session_id,
                )
            )
        except Exception as error:  # noqa: BLE001 - AgentCore ends an idle session itself; no failure here may cost a rollout
            _log.info("session %s was not ended: %s", session_id, error)

    @property
    def _aws(self) -> "BedrockAgentCoreClient":
        assert self._client is not None  # `start` comes before `invoke`
        return self._client
