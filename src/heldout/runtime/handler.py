"""The Job Runtime's HTTP: which operation a request asks for, whether it may, and the answer.

Source: CompleteRollout, UpdateReward, Sample and SampleWithResponseStream of botocore's service model `sagemakerjobruntime`
(2026-02-01); the client published in sagemaker-train 1.27, which sends `JobArn` in the body; OpenAI's API for the rest.
"""

import asyncio
import enum
import logging
from typing import NamedTuple

import orjson

from heldout.errors import shown
from heldout.http.exchange import Answer, BodyTooLong, BodyTooSlow, Request
from heldout.policies.base import Policy
from heldout.runtime.access import Access
from heldout.runtime.model_calls import CHAT_PATH, COMPLETION_PATH, ModelCalls
from heldout.runtime.refusals import Refusal, denied, internal, invalid, not_found
from heldout.runtime.reports import Report, ReportBody, ReportKind, completion, not_in_valid_status, parse_body, reward
from heldout.runtime.signing import SignedRequest
from heldout.runtime.trajectories import Trajectories, Trajectory

log = logging.getLogger(__name__)

BODY_BYTES = 64 * 2**20
"""Most bytes of a request's body: a long conversation with images, far below what AgentCore hands an agent (100 MB)."""
_BODY_SECONDS = 60.0
"""How long a request's body may take to arrive once its headers have."""
_JOB_HEADER = "x-amzn-sagemaker-job-arn"
_TRAJECTORY_HEADER = "X-Amzn-SageMaker-Trajectory-Id"
_JSON = {"Content-Type": "application/json"}


class _Operation(enum.Enum):
    CHAT = enum.auto()
    COMPLETION = enum.auto()
    SAMPLE = enum.auto()
    SAMPLE_STREAMED = enum.auto()
    COMPLETE_ROLLOUT = enum.auto()
    UPDATE_REWARD = enum.auto()
    MODELS = enum.auto()
    HEALTH = enum.auto()


_OPERATIONS = {
    ("POST", "/chat/completions"): _Operation.CHAT,
    ("POST", "/completions"): _Operation.COMPLETION,
    ("POST", "/sample"): _Operation.SAMPLE,
    ("POST", "/sample-with-response-stream"): _Operation.SAMPLE_STREAMED,
    ("POST", "/complete-rollout"): _Operation.COMPLETE_ROLLOUT,
    ("POST", "/update-reward"): _Operation.UPDATE_REWARD,
    ("GET", "/models"): _Operation.MODELS,
    ("GET", "/health"): _Operation.HEALTH,
    ("GET", "/ping"): _Operation.HEALTH,
}
_OPERATIONS |= {(method, f"/v1{path}"): operation for (method, path), operation in _OPERATIONS.items()}


class _Target(NamedTuple):
    operation: _Operation
    trajectory_id: str | None = None
    """Whose own URL was asked."""
    url_token: str = ""


class RequestHandler:
    """Answers the requests of one job's agents."""

    def __init__(self, *, access: Access, trajectories: Trajectories, calls: ModelCalls, policy: Policy) -> None:
        self._access = access
        self._trajectories = trajectories
        self._calls = calls
        self._policy = policy
        self._reporting: set[asyncio.Task[None]] = set()

    async def __call__(self, request: Request) -> Answer | None:
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return _refused(refusal)
        except ConnectionError:
            raise
        except Exception as error:
            # A bug must cost one request, told to the agent in the words of the wire, and not the server.
            # Only the path's end is logged: before it may stand a trajectory's secret.
            log.exception("the Job Runtime failed on %s .../%s", request.method, request.path.rpartition("/")[2])
            return _refused(internal(f"{type(error).__name__}: {error}"))

    async def finish_reports(self) -> None:
        """Waits until every report that has come in has been taken."""
        while self._reporting:
            await asyncio.wait(self._reporting)

    async def _answer(self, request: Request) -> Answer | None:
        target = _target(request.method, request.path)
        operation = target.operation
        if operation is _Operation.HEALTH:
            return Answer(200, _JSON, b'{"status":"Healthy"}')
        body = await self._admit(request, target)
        if operation is _Operation.MODELS:
            return _models(self._policy.model_name)
        if operation is _Operation.COMPLETE_ROLLOUT or operation is _Operation.UPDATE_REWARD:
            return await self._take_report(target, parse_body(body))
        trajectory = self._trajectory(target.trajectory_id or request.headers.get(_TRAJECTORY_HEADER.lower()))
        match operation:
            case _Operation.CHAT:
                return await self._calls.answer(request, trajectory, body, path=CHAT_PATH)
            case _Operation.COMPLETION:
                return await self._calls.answer(request, trajectory, body, path=COMPLETION_PATH)
            case _:
                must_stream = operation is _Operation.SAMPLE_STREAMED
                return await self._calls.answer(request, trajectory, body, path=None, must_stream=must_stream)

    async def _admit(self, request: Request, target: _Target) -> bytes:
        """The body of a request that may come in. Nothing is read of one that may not, unless its proof covers the body."""
        headers = request.headers
        authorization = headers.get("authorization", "")
        if target.trajectory_id is not None:
            trajectory = self._trajectories.get(target.trajectory_id)
            expected = trajectory.url_token if trajectory else self._access.url_token(target.trajectory_id)
            self._access.check_url_token(target.url_token, expected)
        elif self._access.needs_body(authorization):
            body = await _read(request)
            self._access.check_signature(SignedRequest(request.method, request.path, request.query, headers, body))
            self._access.check_job(headers.get(_JOB_HEADER))
            return body
        else:
            self._access.check_bearer(authorization)
        self._access.check_job(headers.get(_JOB_HEADER))
        return await _read(request)

    def _trajectory(self, trajectory_id: str | None) -> Trajectory:
        if not trajectory_id:
            raise invalid(
                f"which trajectory? Send the header {_TRAJECTORY_HEADER}, or use the trajectory's own base URL"
            )
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is not None:
            return trajectory
        self._check_id(trajectory_id)
        raise not_in_valid_status(trajectory_id, "model calls: it has ended")

    def _check_id(self, trajectory_id: str) -> None:
        if not self._access.is_own_id(trajectory_id):
            raise not_found(f"there is no trajectory {shown(trajectory_id, 300)} in this job")

    async def _take_report(self, target: _Target, body: ReportBody) -> Answer:
        self._access.check_job(body.text("JobArn"))
        trajectory_id = body.text("TrajectoryId") or target.trajectory_id
        if not trajectory_id:
            raise invalid("TrajectoryId is missing; it must say which trajectory the report is of")
        if target.trajectory_id is not None and trajectory_id != target.trajectory_id:
            raise denied("this URL is that of another trajectory than the body's TrajectoryId")
        report = completion(body) if target.operation is _Operation.COMPLETE_ROLLOUT else reward(body)
        await self._hand_on(trajectory_id, report, body.text("ClientToken"))
        if report.kind is ReportKind.FAILED and report.failure_kind == "bad_reward":
            raise invalid(report.message)
        return Answer(200, _JSON, b"{}")

    async def _hand_on(self, trajectory_id: str, report: Report, client_token: str | None) -> None:
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is not None:
            # Shielded: an agent that hangs up must not interrupt the report's being made to last.
            task = asyncio.create_task(trajectory.report(report, client_token))
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)
            await asyncio.shield(task)
            return
        self._check_id(trajectory_id)
        ledger = self._trajectories.ledger_of_closed(trajectory_id)
        if ledger is None or ledger.is_news(report, client_token):
            raise not_in_valid_status(trajectory_id, f"the report {report.kind}: it has ended")


def _target(method: str, path: str) -> _Target:
    """Which operation a path names, and whose own URL it is: `/trajectories/ID/SECRET` may come before any operation.

    Raises Refusal (404).
    """
    if path.startswith("/trajectories/") and path.count("/") >= 4:
        _, _, trajectory_id, url_token, below = path.split("/", 4)
        return _Target(_operation(method, f"/{below}"), trajectory_id, url_token)
    return _Target(_operation(method, path))


def _operation(method: str, path: str) -> _Operation:
    operation = _OPERATIONS.get((method, path))
    if operation is None:
        known = ", ".join(" ".join(key) for key in _OPERATIONS if not key[1].startswith("/v1/"))
        raise not_found(f"there is no operation {method} {shown(path, 200)}; there are {known}")
    return operation


def _models(name: str) -> Answer:
    model = {"id": name, "object": "model", "created": 0, "owned_by": "heldout"}
    return Answer(200, _JSON, orjson.dumps({"object": "list", "data": [model]}))


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, refusal.headers(), refusal.body())


async def _read(request: Request) -> bytes:
    """The whole body. Raises Refusal if it is too long or too slow."""
    try:
        return await request.read(limit=BODY_BYTES, seconds=_BODY_SECONDS)
    except BodyTooSlow:
        raise Refusal(408, "ValidationException", f"the body did not arrive within {_BODY_SECONDS:.0f} s") from None
    except BodyTooLong:
        raise Refusal(
            413, "ValidationException", f"the body is longer than {BODY_BYTES // 2**20} MiB, the most that is taken"
        ) from None
