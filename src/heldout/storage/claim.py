"""The lock of a remote place: one machine at a time works on what is there.

    claim.json      who works there, and a count that goes up every few seconds

It is taken, renewed and lost by conditional writes, so of two that take it at the same moment one has it. Nothing releases it
when a machine dies: whoever finds one that is not renewed any more takes it over, and the other, should it live after all,
finds that out when it next renews and must write no more. No clock is compared with another machine's.
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
"""Without a renewal for so long its holder is dead, or cut off: some renewals may fail and be tried again."""
_LOOK_EVERY_SECONDS = 1.0
_SURELY_OLD_SECONDS = 20 * 60.0
"""S3 refuses whoever's clock is off by more than a quarter of an hour, so what looks this old is."""


class Claim:
    """A claim that is held until `release`, unless another machine takes it over, which `check` tells."""

    def __init__(self, storage: Storage, token: str) -> None:
        self.token = token
        """Of this claim alone."""
        self._storage = storage
        self._count = 0
        self._version: str | None = None
        self._lost: str | None = None
        self._released = threading.Event()
        self._turn = threading.Lock()

    @classmethod
    def take(cls, storage: Storage, *, before: str | None, note: Callable[[str], None]) -> Self:
        """before: `token` of a claim whose holder is known to be dead, and is not waited for.

        A claim of another is watched for some seconds, which `note` is told: it is taken over if it is not renewed. Raises
        RunError when it is, or when another takes it at the same moment.
        """
        found = storage.read_version(CLAIM_FILE)
        if found is not None and _token(found) != before:
            found = _watched(storage, found, note)
        claim = cls(storage, secrets.token_hex(8))
        claim._version = None if found is None else found.version
        if not claim._write():
            raise RunError(
                f"{storage.location} was taken up by {claim._lost} at the same moment; one machine at a time plays a run"
            )
        threading.Thread(target=claim._keep_renewed, daemon=True).start()
        return claim

    def check(self) -> None:
        """Raises JobFailed when another machine has taken over; StorageError, ReferenceProblem when the place refuses to say."""
        self._renew()
        if self._lost is not None:
            raise JobFailed(
                f"{self._storage.location} was taken up by {self._lost} meanwhile, when nothing was heard of this machine; "
                "it goes on there"
            )

    def release(self) -> None:
        """Lets go, if the place can be reached; what is not let go of is taken over from a dead one."""
        self._released.set()
        try:
            self._renew()
            with self._turn:
                if self._lost is None:
                    self._storage.delete(CLAIM_FILE)
                    self._lost = "nobody"
        except HeldoutError as error:
            log.warning("the claim on %s is not released: %s", self._storage.location, error)

    def _keep_renewed(self) -> None:
        while not self._released.wait(_RENEW_EVERY_SECONDS) and self._lost is None:
            try:
                self._renew()
            except HeldoutError as error:
                log.info("the claim on %s is not renewed: %s", self._storage.location, error)

    def _renew(self) -> None:
        with self._turn:
            if self._lost is None:
                self._write()

    def _write(self) -> bool:
        """Writes the next count over the version that was last seen; False, and `_lost`, when another has written."""
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
            # It is gone, removed by hand; or this write or one before it succeeded, and its answer was lost.
            self._version = None if found is None else found.version
            if found is not None and found.data == written:
                return True
        self._lost = "another machine"
        return False


def holder(storage: Storage, *, but: str | None) -> str | None:
    """The machine that works on a remote place, as far as one look tells; None when it seems to be none.

    but: `token` of a claim whose holder is known to be dead.
    """
    found = storage.read_version(CLAIM_FILE)
    if found is None or _token(found) == but or found.age_seconds > _WATCH_SECONDS:
        return None
    return _machine(found)


def _watched(storage: Storage, found: Versioned, note: Callable[[str], None]) -> Versioned | None:
    """The claim as it stands when its holder is known to be gone. Raises RunError when it is not."""
    if found.age_seconds > _SURELY_OLD_SECONDS:
        return found
    holder = _machine(found)
    note(
        f"{storage.location} was being worked on by {holder}; {_WATCH_SECONDS:g} s are waited to see whether it still is"
    )
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
