"""The Job Runtime of one job: an HTTP server on the engine's own loop, and the trajectories that agents reach through it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from heldout.http.server import Server
from heldout.policies.base import Policy
from heldout.runtime.access import Access
from heldout.runtime.edits import CallRules
from heldout.runtime.handler import RequestHandler
from heldout.runtime.model_calls import ModelCalls
from heldout.runtime.reports import Report
from heldout.runtime.signing import Credentials
from heldout.runtime.trajectories import Trajectories, Trajectory

_IDLE_SECONDS = 300.0
"""How long a connection may be silent, or take over a request's headers. Agents think between their turns."""
_STOP_SECONDS = 2.0
"""How long requests in flight may take to end when the service stops."""


class JobRuntime:
    """What agents of one job call: for the model, and to report how their rollouts ended.

    job_arn, region: requests that name another job, or are signed for another region, are refused. credentials: AWS key
    pairs that agents may sign with. public_url: where agents reach the service, if not at the host and port it listens on;
    such agents have credentials of their own, which nobody here can verify, so each attempt is given its trajectory's own URL.
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
    ) -> None:
        self._host = host
        self._port = port
        self._public_url = public_url.rstrip("/") if public_url else None
        self._access = Access(job_arn=job_arn, region=region, credentials=credentials)
        self._trajectories = Trajectories()
        self._calls = ModelCalls(policy=policy, rules=rules)
        self._handler = RequestHandler(
            access=self._access, trajectories=self._trajectories, calls=self._calls, policy=policy
        )
        self._server: Server | None = None

    @property
    def endpoint(self) -> str:
        """The service's URL for agents, without a slash at the end. Raises RuntimeError before `start` as `local_url` does."""
        return self._public_url or self.local_url

    @property
    def local_url(self) -> str:
        """The URL it listens at on this machine. Raises RuntimeError before `start` if the port is not known."""
        if self._port == 0:
            raise RuntimeError("the Job Runtime has no endpoint before it is started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def secret(self) -> str:
        """As a bearer token, it opens every trajectory of the job. Drawn anew for each instance."""
        return self._access.secret

    @property
    def differences(self) -> Mapping[str, int]:
        """How many calls had another `temperature`, `top_p` or `max_tokens` than the job's, or none. Empty if enforced."""
        return self._calls.differences

    async def start(self) -> None:
        """Listens. Raises OSError if the port is taken."""
        server = Server(self._handler, idle_seconds=_IDLE_SECONDS)
        self._port = await server.start(self._host, self._port)
        self._server = server

    async def stop(self) -> None:
        """Takes no more requests, lets reports that have come in be taken, and ends the rest. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close_listener()
        await self._handler.finish_reports()
        await server.stop(_STOP_SECONDS)

    def open(self, name: str, *, seed: int | None, on_report: Callable[[Report], Awaitable[None]]) -> Trajectory:
        """A trajectory for one attempt; its id is `name` and a mac.

        name: 1 to 200 characters of `[A-Za-z0-9_.-]`, its own for each attempt. seed: for calls that bring none; None leaves
        those without. on_report: is awaited before the agent is told that its report was taken, so whatever makes it last
        belongs in it; it may raise ReportRefused. Raises ValueError for a name that is not allowed or open already.
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
