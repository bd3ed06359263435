"""Chooses the replica for a trajectory's calls. Opens no connection.

Rendezvous hashing over the replicas that are up gives a trajectory the same replica without storing it. Only trajectories that
had to move are stored: they stay with their new prefix cache when their first replica comes back.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

from yarl import URL

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0
"""Seconds without calls for a replica that is down, before one call tries it again."""

_MAX_MOVED = 65_536
"""The most moved trajectories stored. Dropping the oldest only costs a trajectory its prefix cache."""


class Replica:
    """One server of the policy."""

    def __init__(self, base: URL) -> None:
        self.base = base
        self.address = str(base.with_query(None))
        """The base URL as messages show it: without a query, which may hold a key."""
        self.down_until: float | None = None
        """Clock time until which it gets no calls; None while it is up."""
        self.failures_in_a_row = 0
        """Failed tries, of any call, since its last answer."""
        self._urls: dict[str, URL] = {}

    def url(self, path: str) -> URL:
        """The URL of `path` below the base. Cached: building one costs as much as parsing a reply."""
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = self.base.with_path(self.base.path.rstrip("/") + path).with_query(self.base.query)
        return url


class Replicas:
    """All servers of the policy, and which of them are up."""

    def __init__(self, bases: Sequence[URL], clock: Callable[[], float]) -> None:
        """clock: seconds that never go back."""
        self.all = [Replica(base) for base in bases]
        self._clock = clock
        self._moved: OrderedDict[str, Replica] = OrderedDict()

    def choose(self, trajectory_id: str) -> Replica:
        """Returns the replica for the trajectory's next call: its own if that is up or all are down, else another."""
        if len(self.all) == 1:
            return self.all[0]
        moved_to = self._moved.get(trajectory_id)
        if moved_to is not None and self._is_usable(moved_to):
            return moved_to
        ranked = sorted(self.all, key=lambda replica: _score(replica, trajectory_id), reverse=True)
        chosen = next((replica for replica in ranked if self._is_usable(replica)), ranked[0])
        if chosen is not ranked[0]:
            self._remember(trajectory_id, chosen)
        elif self._is_up(chosen):
            self._moved.pop(
                trajectory_id, None
            )  # its prefix cache is here now: it does not go back when the other is up again
        return chosen

    def mark_down(self, replica: Replica, reason: str) -> bool:
        """Mark a replica as down. Returns whether another one is up."""
        others = sum(other.down_until is None for other in self.all if other is not replica)
        if replica.down_until is None and len(self.all) > 1:
            consequence = (
                f"its trajectories move to the other {others}" if others else "none of the others is up either"
            )
            _log.warning("replica %s %s; %s", replica.address, reason, consequence)
        replica.down_until = self._clock() + _PROBE_SECONDS
        return others > 0

    def mark_up(self, replica: Replica) -> None:
        """Mark a replica as up: it has answered a call made while it was down."""
        if replica.down_until is not None and len(self.all) > 1:
            _log.warning("replica %s is back and gets new trajectories", replica.address)
        replica.down_until = None

    @staticmethod
    def _is_up(replica: Replica) -> bool:
        return replica.down_until is None

    def _is_usable(self, replica: Replica) -> bool:
        if replica.down_until is None:
            return True
        now = self._clock()
        if now < replica.down_until:
            return False
        replica.down_until = now + _PROBE_SECONDS  # this call is the probe; others use another replica until it ends
        return True

    def _remember(self, trajectory_id: str, replica: Replica) -> None:
        self._moved[trajectory_id] = replica
        self._moved.move_to_end(trajectory_id)
        if len(self._moved) > _MAX_MOVED:
            self._moved.popitem(last=False)


def _score(replica: Replica, trajectory_id: str) -> bytes:
    return hashlib.blake2b(f"{replica.address}\n{trajectory_id}".encode(), digest_size=8).digest()
