"""The Job Runtime of one job: an HTTP server on the engine's loop, and the trajectories that agents reach through it."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from heldout.http.server import Server
from heldout.policies.base import Policy
from heldout.runtime.access import Access
from heldout.runtime.dialects.base import Dialect
from heldout.runtime.dialects.table import DIALECTS
from heldout.runtime.handler import RequestHandler
from heldout.runtime.model_calls import ModelCalls
from heldout.runtime.reports import Report
from heldout.runtime.rules import DEFAULT_LIMITS, CallRules, Limits
from heldout.runtime.signing import Credentials
from heldout.runtime.trajectories import Trajectories, Trajectory

log = logging.getLogger(__name__)


class JobRuntime:
    """The service that the agents of one job call for the model, and to report how their rollouts ended.

    job_arn, region: requests that name another job, or are signed for another region, are refused. credentials: AWS key
    pairs that agents may sign with. public_url: where agents reach the service, if not at the host and port it listens on.
    Such agents have credentials of their own, which this service cannot verify, so each attempt receives its trajectory's
    own URL. dialects: the protocols that agents may call the model in. note: receives a line that the user has to see.
    Raises ValueError if two dialects serve one route.
    """

    def __init__(
        self,
        *,
        job_arn: str,
        region: str,
        policy: Policy,
        rules: CallRules,
        credentials: Sequence[Credentials],
        host: str = "127.0.0.1",
        port: int = 0,
        public_url: str | None = None,
        dialects: Sequence[Dialect] = DIALECTS,
        limits: Limits = DEFAULT_LIMITS,
        note: Callable[[str], None] = log.warning,
    ) -> None:
        self._host = host
        self._port = port
        self._public_url = public_url.rstrip("/") if public_url else None
        self._access = Access(job_arn=job_arn, region=region, credentials=credentials)
        self._trajectories = Trajectories()
        self._limits = limits
        self._calls = ModelCalls(policy=policy, rules=rules, reply_bytes=limits.reply_bytes, note=note)
        self._handler = RequestHandler(
            access=self._access,
            trajectories=self._trajectories,
            calls=self._calls,
            policy=policy,
            dialects=dialects,
            limits=limits,
        )
        self._server: Server | None = None

    @property
    def endpoint(self) -> str:
        """The service's URL for agents, without a trailing slash. Raises RuntimeError before `start`, as `local_url` does."""
        return self._public_url or self.local_url

    @property
    def local_url(self) -> str:
        """The URL on this machine. Raises RuntimeError before `start` if the port is not known."""
        if self._port == 0:
            raise RuntimeError("the Job Runtime has no endpoint before it is started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def secret(self) -> str:
        """A bearer token for every trajectory of the job. Each instance draws its own."""
        return self._access.secret

    @property
    def differences(self) -> Mapping[str, int]:
        """How many calls had a `temperature`, `top_p` or `max_tokens` that differs from the job's, or none. Empty if enforced."""
        return self._calls.differences

    def waits(self) -> list[float]:
        """Returns how long each model call in flight has waited for the policy, in seconds."""
        return self._trajectories.waits()

    async def start(self) -> None:
        """Starts to listen. Raises OSError if the port is taken."""
        server = Server(self._handler, idle_seconds=self._limits.idle_seconds)
        self._port = await server.start(self._host, self._port)
        self._server = server

    async def stop(self) -> None:
        """Accepts no more requests, stores the reports that have arrived, and ends the rest. A second call has no effect."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close_listener()
        await self._handler.finish_reports()
        await server.stop(self._limits.stop_seconds)

    def open(self, name: str, *, seed: int | None, on_report: Callable[[Report], Awaitable[None]]) -> Trajectory:
        """Opens a trajectory for one attempt; its id is `name` and a mac.

        name: 1 to 200 characters of `[A-Za-z0-9_.-]`, a different one for each attempt. seed: for calls without a seed; None
        adds none. on_report: stores a report; the agent gets its answer afterwards. It may raise ReportRefused. Raises
        ValueError for a name with other characters, or of an open trajectory.
        """
        trajectory_id = self._access.trajectory_id(name)
        url_token = self._access.url_token(trajectory_id)
        own_url = f"{self.endpoint}/trajectories/{trajectory_id}/{url_token}"
        trajectory = Trajectory(
            trajectory_id,
            endpoint=self.endpoint if self._public_url is None else own_url,
            base_url=f"{own_url}/v1",
            url_token=url_token,
            seed=seed,
            on_report=on_report,
            on_close=self._trajectories.remove,
        )
        self._trajectories.add(trajectory)
        return trajectory
