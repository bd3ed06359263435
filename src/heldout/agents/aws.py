"""Calls agents in AWS with boto3, in threads, and retries the calls that AWS did not play.

Retries a call only if AWS was throttling, failed by itself, or could not be reached: then the agent has almost certainly not seen
it. botocore's own retries are off, because they also retry calls that timed out.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from heldout.agents.agentcore_contract import one_line
from heldout.agents.base import InvocationResult, Outcome
from heldout.background import backoff_seconds
from heldout.errors import ReferenceProblem
from heldout.http.headers import retry_after_seconds

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_Result = TypeVar("_Result")
Service = Literal["bedrock-agentcore", "lambda"]

_MAX_TRIES = 8
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 20.0
_CONNECT_SECONDS = 10.0
_LATE_SECONDS = 5.0
"""The socket waits longer than the attempt's timeout by this much, so that the attempt's own clock ends it."""
_BUSY_CODES = frozenset(
    {"RetryableConflictException", "ResourceConflictException", "ProvisionedThroughputExceededException"}
)
_RUNTIME_ERROR = "RuntimeClientError"
"""The code by which InvokeAgentRuntime reports an error of the agent itself (424)."""


class CallFailed(Exception):
    """A call to AWS failed, and a retry would fail too."""

    def __init__(self, result: InvocationResult) -> None:
        super().__init__(result.message)
        self.result = result


async def connect(service: Service, region: str, *, agent: str, concurrency: int, timeout_seconds: float) -> Any:
    """Creates a boto3 client for `concurrency` threads. agent: its name in error messages.

    boto3's own settings (`AWS_ENDPOINT_URL_<SERVICE>`, profiles) can override region and endpoint.
    Raises ReferenceProblem when there are no credentials or the AWS configuration is unusable.
    """
    return await in_thread(lambda: _client(service, region, agent, concurrency, timeout_seconds))


def _client(service: Service, region: str, agent: str, concurrency: int, timeout_seconds: float) -> Any:
    import boto3  # slow to import, and only needed for agents in AWS
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=timeout_seconds + _LATE_SECONDS,
        max_pool_connections=concurrency,
        retries={"total_max_attempts": 1},
        tcp_keepalive=True,
    )
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            raise ReferenceProblem(
                f"no AWS credentials to invoke agent {agent!r} with; looked at AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, the shared credentials and configuration files, container and instance roles"
            )
        return session.client(service, region_name=region, config=config)
    except BotoCoreError as error:
        raise ReferenceProblem(f"agent {agent!r} cannot be invoked with this AWS configuration: {error}") from error


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """Runs `work` in a daemon thread of its own; returns or raises what it does.

    Cancelling leaves the thread to end by itself. A pool's thread would delay the interpreter's exit, and an abandoned one would
    keep its place in the pool until AWS answers.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # whatever `work` returned

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - it is raised again in the caller
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nothing awaits the result
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="heldout-aws-call", daemon=True).start()
    return await done


async def retried(
    call: Callable[[], _Result], *, doing: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> _Result:
    """Makes `call` in a thread, and again while AWS throttles or fails. doing: the call's name in error messages.

    Raises CallFailed.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    for number in range(1, _MAX_TRIES + 1):
        try:
            return await in_thread(call)
        except (BotoCoreError, ClientError) as error:
            if number == _MAX_TRIES or not _may_be_sent_again(error):
                raise CallFailed(_result_of(error, doing, number)) from error
            await sleep(_wait_seconds(error, number))
    raise AssertionError("the last try returns or raises")


def _may_be_sent_again(error: "BotoCoreError | ClientError") -> bool:
    from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError

    if not isinstance(error, ClientError):
        return isinstance(error, ConnectTimeoutError | EndpointConnectionError | ProxyConnectionError)
    code, status = _code(error), _status(error)
    return "Throttl" in code or code in _BUSY_CODES or status == 429 or (status >= 500 and code != _RUNTIME_ERROR)


def _result_of(error: "BotoCoreError | ClientError", doing: str, tries: int) -> InvocationResult:
    from botocore.exceptions import ClientError, ReadTimeoutError

    after = "" if tries == 1 else f", {tries} times"
    if isinstance(error, ClientError):
        code, text = _code(error), error.response.get("Error", {}).get("Message", "")
        if code == _RUNTIME_ERROR:
            return InvocationResult(Outcome.RAISED, message=one_line(text or code))
        return InvocationResult(Outcome.UNREACHABLE, message=one_line(f"{doing}: {code}{after}: {text}{_advice(code)}"))
    outcome = Outcome.TIMED_OUT if isinstance(error, ReadTimeoutError) else Outcome.UNREACHABLE
    return InvocationResult(outcome, message=one_line(f"{doing}{after}: {error}"))


def _advice(code: str) -> str:
    if code == "AccessDeniedException":
        return " (the credentials in use need the permission for this call on this agent)"
    if code.startswith(("ExpiredToken", "UnrecognizedClient", "InvalidSignature")):
        return " (the AWS credentials in use are not valid)"
    return ""


def _wait_seconds(error: "BotoCoreError | ClientError", number: int) -> float:
    """The wait that AWS asks for; without one, twice as long each time, with jitter."""
    headers = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    asked = retry_after_seconds(headers.get("retry-after"), time.time())
    if asked is not None:
        return min(asked, _LONGEST_WAIT_SECONDS)
    return backoff_seconds(_FIRST_WAIT_SECONDS, number - 1, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1)


def _code(error: "ClientError") -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
