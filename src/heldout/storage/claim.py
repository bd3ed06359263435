"""The lock of a remote location: one machine at a time works there.

    claim.json      the machine that holds the claim, its token, and a count that it increments every few seconds

A machine takes, renews and releases the claim by conditional writes of this one file. If two take it at the same time, one
succeeds. A machine that dies cannot release its claim; another machine takes it over once the renewals have stopped. If the
first machine is still alive, its next renewal fails. A claim that was lost stays lost: a released claim leaves its file, marked
as released, so a machine that was cut off finds the trace of its successor. The holder of a claim whose file is missing has
also lost it. `heldout.storage.fence` refuses every other write of a machine that has lost its claim.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import orjson

from heldout.background import start_thread
from heldout.errors import HeldoutError, JobFailed, RunError, StorageError
from heldout.storage.base import Versioned
from heldout.storage.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTimes:
    """Intervals, limits and the clock of a remote run. All times are in seconds."""

    renew_every_seconds: float = 10.0
    """Time between two renewals of a claim."""
    watch_seconds: float = 45.0
    """A claim without a renewal for this long is taken over. The time allows for several failed renewals."""
    look_every_seconds: float = 1.0
    """Time between two looks at a claim that is watched."""
    surely_old_seconds: float = 20 * 60.0
    """A claim this old needs no watch. Amazon S3 refuses clients whose clocks differ from its own by more than 15 minutes. A
    clock that is wrong by more costs its machine the claim, and no data."""
    refusal_waits_seconds: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0)
    """Waits between tries of a write that was refused although nothing has changed."""
    seal_every_seconds: float = 10.0
    """Time between two copies of finished rollouts. A lost machine loses at most the rollouts of this time."""
    finish_waits_seconds: tuple[float, ...] = (1.0, 5.0, 15.0, 60.0, 120.0)
    """Waits between tries to copy results: a night's results survive a remote place that is away for some minutes."""
    clock: Callable[[], float] = time.monotonic
    """Seconds that never go back."""
    sleep: Callable[[float], None] = time.sleep


DEFAULT_TIMES = RemoteTimes()


log = logging.getLogger(__name__)

CLAIM_FILE = "claim.json"


class Claim:
    """A claim, held until `release` or until another machine takes it over (see `check`)."""

    def __init__(self, storage: Storage, times: RemoteTimes, found: Versioned | None) -> None:
        """found: the claim to replace; None if there is none."""
        self.token = secrets.token_hex(8)
        """Identifies this claim."""
        self._storage = storage
        self._times = times
        self._version = None if found is None else found.version
        self._unfenced = () if found is None else (_token(found), *_unfenced(found))
        self._count = 0
        self._is_held = False
        self._lost: str | None = None
        self._released = threading.Event()
        self._turn = threading.Lock()

    @classmethod
    def take(
        cls,
        storage: Storage,
        *,
        before: str | None,
        note: Callable[[str], None],
        times: RemoteTimes = DEFAULT_TIMES,
        renews_itself: bool = True,
    ) -> Self:
        """Takes the claim on a location.

        Another machine's claim is watched for some seconds and taken over if it is not renewed; `note` gets a line about the
        wait. before: `token` of a claim whose holder is known to be dead; it is taken over at once. renews_itself: whether a
        thread renews the claim; without it only `check` does.
        Raises RunError if the claim is renewed, or if another machine takes it at the same time; StorageError or ReferenceProblem
        if the location refuses.
        """
        found = storage.read_version(CLAIM_FILE)
        if found is not None and _token(found) != before and not _is_released(found):
            found = _watched(storage, found, note, times)
        claim = cls(storage, times, found)
        claim._write()
        if claim._lost is not None:
            raise RunError(
                f"{storage.location} was claimed by {claim._lost} at the same time; one machine at a time works on a run"
            )
        claim._is_held = True
        if renews_itself:
            start_thread(claim._keep_renewed, f"the renewal of the claim on {storage.location}")
        return claim

    @property
    def unfenced(self) -> tuple[str, ...]:
        """Tokens of earlier claims whose holders may still add journal segments."""
        return self._unfenced

    def note_fenced(self) -> None:
        """Records that no earlier holder can add journal segments any more. The next renewal writes it down."""
        self._unfenced = ()

    def check(self) -> None:
        """Renews the claim, which proves that this machine holds it at this moment.

        Raises JobFailed if it does not; StorageError or ReferenceProblem if the location cannot be read.
        """
        self._renew()
        if self._lost is not None:
            raise JobFailed(
                f"{self._storage.location} was taken over by {self._lost} after this machine's renewals failed; rollouts that "
                f"only this machine has are kept here and join the run with: heldout resume {self._storage.location}"
            )

    def release(self) -> None:
        """Marks the claim as released. If the location cannot be reached, the claim expires like that of a dead machine."""
        self._released.set()
        try:
            with self._turn:
                if self._lost is None:
                    self._write(is_released=True)
                    self._lost = self._lost or "no machine: this one has released it"
        except HeldoutError as error:
            log.warning("the claim on %s was not released: %s", self._storage.location, error)

    def abandon(self) -> None:
        """Stops the renewals without releasing the claim, as the death of this process would."""
        self._released.set()

    def _keep_renewed(self) -> None:
        while not self._released.wait(self._times.renew_every_seconds) and self._lost is None:
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001  # a claim that is renewed no more is lost; the next renewal may succeed
                log.warning("the claim on %s was not renewed: %s", self._storage.location, error)

    def _renew(self) -> None:
        with self._turn:
            if self._lost is None:
                self._write()

    def _write(self, *, is_released: bool = False) -> None:
        """Replaces the version last seen by the next count. Sets `_lost` if another claim, or none, is in its place.

        Raises StorageError if the location keeps refusing although nothing has changed.
        """
        self._count += 1
        written = orjson.dumps(
            {
                "machine": socket.gethostname(),
                "token": self.token,
                "count": self._count,
                "released": is_released,
                "unfenced": self._unfenced,
            }
        )
        for wait in (*self._times.refusal_waits_seconds, None):
            version = self._storage.replace(CLAIM_FILE, written, self._version)
            if version is not None:
                self._version = version
                return
            found = self._storage.read_version(CLAIM_FILE)
            if found is not None and found.data == written:  # the write succeeded and its reply was lost
                self._version = found.version
                return
            if not self._may_replace(found):
                self._lost = "another machine, whose claim is gone" if found is None else _holder(found)
                return
            self._version = None if found is None else found.version
            if wait is not None:
                self._times.sleep(wait)
        raise StorageError(
            f"{self._storage.location}/{CLAIM_FILE} refuses conditional writes, although no other machine has changed it; "
            "try again"
        )

    def _may_replace(self, found: Versioned | None) -> bool:
        if self._is_held:
            return found is not None and _token(found) == self.token
        return found is None or found.version == self._version or _token(found) == self.token


def holder(storage: Storage, *, but: str | None, times: RemoteTimes = DEFAULT_TIMES) -> str | None:
    """The machine that seems to work on a remote location, after one read; None if there seems to be none.

    but: `token` of a claim whose holder is known to be dead.
    """
    found = storage.read_version(CLAIM_FILE)
    if found is None or _is_released(found) or _token(found) == but or found.age_seconds > times.watch_seconds:
        return None
    return _machine(found)


def is_free(storage: Storage, *, but: str | None) -> bool:
    """Whether no machine holds or may hold the claim on a location. but: as for `holder`."""
    found = storage.read_version(CLAIM_FILE)
    return found is None or _is_released(found) or _token(found) == but


def _watched(storage: Storage, found: Versioned, note: Callable[[str], None], times: RemoteTimes) -> Versioned | None:
    """Watches a claim until its holder counts as dead; the version to replace. Raises RunError if it is renewed."""
    if found.age_seconds > times.surely_old_seconds:
        return found
    note(
        f"{storage.location} was being worked on by {_machine(found)}; waiting {times.watch_seconds:g} s for a sign of life"
    )
    deadline = times.clock() + times.watch_seconds
    while times.clock() < deadline:
        times.sleep(times.look_every_seconds)
        now = storage.read_version(CLAIM_FILE)
        if now is None or _is_released(now):
            return now
        if now.version != found.version:
            raise RunError(f"{storage.location} is being worked on by {_machine(now)}; stop that one first")
    return found


def _token(claim: Versioned) -> str:
    return str(_content(claim).get("token"))


def _is_released(claim: Versioned) -> bool:
    return _content(claim).get("released") is True


def _unfenced(claim: Versioned) -> tuple[str, ...]:
    tokens = _content(claim).get("unfenced")
    return tuple(map(str, tokens)) if isinstance(tokens, list) else ()


def _machine(claim: Versioned) -> str:
    return f"machine {_content(claim).get('machine', 'unknown')!r}"


def _holder(claim: Versioned) -> str:
    return f"{_machine(claim)} (claim {_token(claim)}{', released since' if _is_released(claim) else ''})"


def _content(claim: Versioned) -> dict[str, object]:
    try:
        content = orjson.loads(claim.data)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
