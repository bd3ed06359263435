"""The lock of a remote location: one machine at a time works there.

    claim.json      the machine that holds the claim, and a count that it increments every few seconds

A machine takes and renews the claim by conditional writes, so of two that take it at the same time one succeeds. A machine that
dies cannot release its claim; another machine takes it over once the renewals have stopped. If the first machine is still alive,
its next renewal fails and it must not write again. Clocks of different machines are never compared.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

import orjson

from heldout.errors import HeldoutError, JobFailed, RunError
from heldout.storage.base import Versioned
from heldout.storage.storage import Storage

log = logging.getLogger(__name__)

CLAIM_FILE = "claim.json"
_RENEW_EVERY_SECONDS = 10.0
_WATCH_SECONDS = 45.0
"""A claim without a renewal for this long is taken over. The time allows for several failed renewals."""
_LOOK_EVERY_SECONDS = 1.0
_SURELY_OLD_SECONDS = 20 * 60.0
"""A claim this old needs no watch: S3 refuses clients whose clocks differ from its own by more than 15 minutes."""


class Claim:
    """A claim, held until `release` or until another machine takes it over (see `check`)."""

    def __init__(self, storage: Storage, token: str) -> None:
        self.token = token
        """Identifies this claim."""
        self._storage = storage
        self._count = 0
        self._version: str | None = None
        self._lost: str | None = None
        self._released = threading.Event()
        self._turn = threading.Lock()

    @classmethod
    def take(cls, storage: Storage, *, before: str | None, note: Callable[[str], None]) -> Self:
        """Takes the claim on a location.

        Another machine's claim is watched for some seconds and taken over if it is not renewed; `note` gets a line about the
        wait. before: `token` of a claim whose holder is known to be dead; it is taken over at once.
        Raises RunError if the claim is renewed, or if another machine takes it at the same time.
        """
        found = storage.read_version(CLAIM_FILE)
        if found is not None and _token(found) != before:
            found = _watched(storage, found, note)
        claim = cls(storage, secrets.token_hex(8))
        claim._version = None if found is None else found.version
        if not claim._write():
            raise RunError(
                f"{storage.location} was claimed by {claim._lost} at the same time; one machine at a time works on a run"
            )
        threading.Thread(target=claim._keep_renewed, daemon=True).start()
        return claim

    def check(self) -> None:
        """Raises JobFailed if another machine has taken over; StorageError or ReferenceProblem if the location cannot be read."""
        self._renew()
        if self._lost is not None:
            raise JobFailed(
                f"{self._storage.location} was taken over by {self._lost} after this machine's renewals failed; "
                "the run continues there"
            )

    def release(self) -> None:
        """Releases the claim. If the location cannot be reached, the claim expires like that of a dead machine."""
        self._released.set()
        try:
            self._renew()
            with self._turn:
                if self._lost is None:
                    self._storage.delete(CLAIM_FILE)
                    self._lost = "no machine"
        except HeldoutError as error:
            log.warning("the claim on %s was not released: %s", self._storage.location, error)

    def _keep_renewed(self) -> None:
        while not self._released.wait(_RENEW_EVERY_SECONDS) and self._lost is None:
            try:
                self._renew()
            except HeldoutError as error:
                log.info("the claim on %s was not renewed: %s", self._storage.location, error)

    def _renew(self) -> None:
        with self._turn:
            if self._lost is None:
                self._write()

    def _write(self) -> bool:
        """Replaces the version last seen by the next count. Returns False and sets `_lost` if another machine has written."""
        self._count += 1
        written = orjson.dumps({"machine": socket.gethostname(), "token": self.token, "count": self._count})
        for _ in range(2):
            version = self._storage.replace(CLAIM_FILE, written, self._version)
            if version is not None:
                self._version = version
                return True
            found = self._storage.read_version(CLAIM_FILE)
            if found is not None and _token(found) != self.token:
                self._lost = _machine(found)
                return False
            # The file was removed by hand, or this write or an earlier one succeeded and its reply was lost.
            self._version = None if found is None else found.version
            if found is not None and found.data == written:
                return True
        self._lost = "another machine"
        return False


def holder(storage: Storage, *, but: str | None) -> str | None:
    """The machine that seems to work on a remote location, after one read; None if there seems to be none.

    but: `token` of a claim whose holder is known to be dead.
    """
    found = storage.read_version(CLAIM_FILE)
    if found is None or _token(found) == but or found.age_seconds > _WATCH_SECONDS:
        return None
    return _machine(found)


def _watched(storage: Storage, found: Versioned, note: Callable[[str], None]) -> Versioned | None:
    """Watches a claim until its holder counts as dead; the version to replace. Raises RunError if it is renewed."""
    if found.age_seconds > _SURELY_OLD_SECONDS:
        return found
    holder = _machine(found)
    note(f"{storage.location} was being worked on by {holder}; waiting {_WATCH_SECONDS:g} s for a sign of life")
    deadline = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_SECONDS)
        now = storage.read_version(CLAIM_FILE)
        if now is None:
            return None
        if now.version != found.version:
            raise RunError(f"{storage.location} is being worked on by {_machine(now)}; stop that one first")
    return found


def _token(claim: Versioned) -> str:
    return str(_content(claim).get("token"))


def _machine(claim: Versioned) -> str:
    return f"machine {_content(claim).get('machine', 'unknown')!r}"


def _content(claim: Versioned) -> dict[str, object]:
    try:
        content = orjson.loads(claim.data)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
