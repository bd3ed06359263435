"""The Job Runtime's HTTP: finds the operation of a request, checks access, and answers.

Source: CompleteRollout and UpdateReward of botocore's service model `sagemakerjobruntime` (2026-02-01); the client published
in sagemaker-train 1.27, which sends `JobArn` in the body. Model calls: `heldout.runtime.dialects`.
"""

import asyncio
import enum
import logging
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from heldout.errors import shown
from heldout.http.exchange import Answer, BodyTooLong, BodyTooSlow, Request
from heldout.policies.base import Policy
from heldout.runtime.access import Access
from heldout.runtime.dialects.base import AgentRequest, Dialect
from heldout.runtime.model_calls import ModelCalls
from heldout.runtime.refusals import Refusal, denied, internal, invalid, not_found
from heldout.runtime.reports import Report, ReportBody, ReportKind, completion, not_in_valid_status, parse_body, reward
from heldout.runtime.rules import Limits
from heldout.runtime.signing import SignedRequest
from heldout.runtime.trajectories import Trajectories, Trajectory

log = logging.getLogger(__name__)

_JOB_HEADER = "x-amzn-sagemaker-job-arn"
_TRAJECTORY_HEADER = "X-Amzn-SageMaker-Trajectory-Id"
_TRAJECTORY_KEY = _TRAJECTORY_HEADER.lower()
_JSON = {"Content-Type": "application/json"}


class _Operation(enum.Enum):
    """The operations that are no model calls."""

    COMPLETE_ROLLOUT = enum.auto()
    UPDATE_REWARD = enum.auto()
    MODELS = enum.auto()
    HEALTH = enum.auto()


_OPERATIONS = {
    ("POST", "/complete-rollout"): _Operation.COMPLETE_ROLLOUT,
    ("POST", "/update-reward"): _Operation.UPDATE_REWARD,
    ("GET", "/models"): _Operation.MODELS,
    ("GET", "/health"): _Operation.HEALTH,
    ("GET", "/ping"): _Operation.HEALTH,
}


class _Target(NamedTuple):
    serves: _Operation | Dialect
    path: str
    """Without `/v1` and without the trajectory's own prefix."""
    trajectory_id: str | None = None
    """The trajectory whose own URL the request uses."""
    url_token: str = ""


class _Router:
    """Finds what serves a path: an operation of the Job Runtime, or a dialect. Raises ValueError if two claim one route."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._table: dict[tuple[str, str], _Operation | Dialect] = {}
        for dialect in dialects:
            for route in dialect.routes:
                self._add(route, dialect)
        for key, operation in _OPERATIONS.items():
            self._add(key, operation)

    def target(self, method: str, path: str) -> _Target:
        """Splits a path into the trajectory's own prefix `/trajectories/ID/SECRET`, if it has one, and the rest, and finds what
        serves the rest. Raises Refusal (404)."""
        if path.startswith("/trajectories/") and path.count("/") >= 4:
            _, _, trajectory_id, url_token, below = path.split("/", 4)
            return self._find(method, f"/{below}", trajectory_id, url_token)
        return self._find(method, path, None, "")

    def _add(self, key: tuple[str, str], serves: _Operation | Dialect) -> None:
        if key in self._table:
            raise ValueError(f"{' '.join(key)} is served twice: by {_name(self._table[key])} and {_name(serves)}")
        self._table[key] = serves

    def _find(self, method: str, path: str, trajectory_id: str | None, url_token: str) -> _Target:
        rest = path.removeprefix("/v1") if path.startswith("/v1/") else path
        serves = self._table.get((method, rest)) or self._subtree(method, rest)
        if serves is None:
            known = ", ".join(" ".join(key) for key in self._table)
            raise not_found(f"there is no operation {method} {shown(path, 200)}; there are {known}")
        return _Target(serves, rest, trajectory_id, url_token)

    def _subtree(self, method: str, path: str) -> _Operation | Dialect | None:
        """Returns what serves the nearest subtree that holds the path: `/a/b/`, then `/a/`, for `/a/b/c`."""
        while path := path.rstrip("/").rpartition("/")[0]:
            if (serves := self._table.get((method, f"{path}/"))) is not None:
                return serves
        return None


class RequestHandler:
    """Answers the requests of one job's agents. Raises ValueError if two dialects serve one route."""

    def __init__(
        self,
        *,
        access: Access,
        trajectories: Trajectories,
        calls: ModelCalls,
        policy: Policy,
        dialects: Sequence[Dialect],
        limits: Limits,
    ) -> None:
        self._access = access
        self._trajectories = trajectories
        self._calls = calls
        self._policy = policy
        self._limits = limits
        self._router = _Router(dialects)
        self._reporting: set[asyncio.Task[None]] = set()

    async def __call__(self, request: Request) -> Answer | None:
        try:
            target = self._router.target(request.method, request.path)
        except Refusal as refusal:
            return refusal.answer()
        try:
            return await self._answer(request, target)
        except Refusal as refusal:
            return _refused(target.serves, refusal)
        except ConnectionError:
            raise
        except Exception as error:
            # A bug costs one request, which gets an error answer, and leaves the server running.
            # Only the end of the path is logged: a trajectory's secret may precede it.
            log.exception("the Job Runtime failed on %s .../%s", request.method, request.path.rpartition("/")[2])
            return _refused(target.serves, internal(f"{type(error).__name__}: {error}"))

    async def finish_reports(self) -> None:
        """Waits until every report that has arrived is stored."""
        while self._reporting:
            await asyncio.wait(self._reporting)

    async def _answer(self, request: Request, target: _Target) -> Answer | None:
        serves = target.serves
        if serves is _Operation.HEALTH:
            return Answer(200, _JSON, b'{"status":"Healthy"}')
        body = await self._admit(request, target)
        if not isinstance(serves, _Operation):
            trajectory = self._trajectory(target.trajectory_id or request.headers.get(_TRAJECTORY_KEY))
            asked = AgentRequest(request.method, target.path, request.headers, body, trajectory)
            return await self._calls.answer(request, trajectory, serves, asked)
        if serves is _Operation.MODELS:
            return _models(self._policy.model_name)
        return await self._take_report(target, parse_body(body))

    async def _admit(self, request: Request, target: _Target) -> bytes:
        """Checks access and returns the body. A refused request is not read, unless its proof of access covers the body."""
        headers = request.headers
        authorization = headers.get("authorization", "")
        if target.trajectory_id is not None:
            trajectory = self._trajectories.get(target.trajectory_id)
            expected = trajectory.url_token if trajectory else self._access.url_token(target.trajectory_id)
            self._access.check_url_token(target.url_token, expected)
        elif self._access.needs_body(authorization):
            body = await self._read(request)
            self._access.check_signature(SignedRequest(request.method, request.path, request.query, headers, body))
            self._access.check_job(headers.get(_JOB_HEADER))
            return body
        else:
            self._access.check_bearer(authorization)
        self._access.check_job(headers.get(_JOB_HEADER))
        return await self._read(request)

    def _trajectory(self, trajectory_id: str | None) -> Trajectory:
        if not trajectory_id:
            raise invalid(
                f"the request names no trajectory: send the header {_TRAJECTORY_HEADER}, or use the trajectory's own base URL"
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
            raise invalid("TrajectoryId is missing; it must name the trajectory that the report is about")
        if target.trajectory_id is not None and trajectory_id != target.trajectory_id:
            raise denied("this URL belongs to another trajectory than the body's TrajectoryId names")
        report = completion(body) if target.serves is _Operation.COMPLETE_ROLLOUT else reward(body)
        await self._store(trajectory_id, report, body.text("ClientToken"))
        if report.kind is ReportKind.FAILED and report.failure_kind == "bad_reward":
            raise invalid(report.message)
        return Answer(200, _JSON, b"{}")

    async def _read(self, request: Request) -> bytes:
        """Returns the whole body. Raises Refusal (408, 413) if it is too slow or too long."""
        limits = self._limits
        try:
            return await request.read(limit=limits.body_bytes, seconds=limits.body_seconds)
        except BodyTooSlow:
            raise Refusal(
                408, "ValidationException", f"the body did not arrive within {limits.body_seconds:g} s"
            ) from None
        except BodyTooLong:
            mebibytes, odd = divmod(limits.body_bytes, 2**20)
            most = f"{limits.body_bytes} bytes" if odd else f"{mebibytes} MiB"
            raise Refusal(413, "ValidationException", f"the body is longer than {most}, the most allowed") from None

    async def _store(self, trajectory_id: str, report: Report, client_token: str | None) -> None:
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is not None:
            # Shielded: an agent that disconnects must not interrupt storing its report.
            task = asyncio.create_task(trajectory.report(report, client_token))
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)
            await asyncio.shield(task)
            return
        self._check_id(trajectory_id)
        ledger = self._trajectories.ledger_of_closed(trajectory_id)
        if ledger is None or ledger.is_news(report, client_token):
            raise not_in_valid_status(trajectory_id, f"the report {report.kind}: it has ended")


def _name(serves: _Operation | Dialect) -> str:
    return "the Job Runtime" if isinstance(serves, _Operation) else f"dialect {serves.name!r}"


def _models(name: str) -> Answer:
    model = {"id": name, "object": "model", "created": 0, "owned_by": "heldout"}
    return Answer(200, _JSON, orjson.dumps({"object": "list", "data": [model]}))


def _refused(serves: _Operation | Dialect, refusal: Refusal) -> Answer:
    return refusal.answer() if isinstance(serves, _Operation) else serves.error(refusal)
