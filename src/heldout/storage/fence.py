"""Writes to a remote location that are refused once another machine has taken over.

A machine may be suspended, for any length of time, between the check of its claim and the write that follows. So the check
alone proves nothing. Each write here is conditional on the version of the file that this machine read while it held the claim.
A successor's first write of a file changes that version, so every later write of its predecessor is refused. The order matters:
the version is read first, then the claim is checked, then the file is written.
"""

from pathlib import Path

from heldout.errors import StorageError
from heldout.storage.claim import CLAIM_FILE, DEFAULT_TIMES, Claim, RemoteTimes
from heldout.storage.storage import Storage

CONDITIONAL_BYTES = 256 * 1024 * 1024
"""Larger files are uploaded in parts, which obstore cannot make conditional. The claim is checked before the parts are joined."""


class FencedStorage:
    """The files of a location, written by the holder of its claim."""

    def __init__(
        self,
        storage: Storage,
        claim: Claim,
        *,
        times: RemoteTimes = DEFAULT_TIMES,
        conditional_bytes: int = CONDITIONAL_BYTES,
    ) -> None:
        """Raises JobFailed if the claim is lost, StorageError or ReferenceProblem if the location refuses.

        conditional_bytes: size from which a file is uploaded in parts.
        """
        self._storage = storage
        self._claim = claim
        self._times = times
        self._conditional_bytes = conditional_bytes
        self._versions = {file.name: file.version for file in storage.list() if file.name != CLAIM_FILE}
        claim.check()

    def write(self, name: str, source: bytes | Path) -> str:
        """Creates or replaces a file. Returns its new version.

        Raises JobFailed if another machine has taken over, StorageError or ReferenceProblem if the location refuses.
        """
        if isinstance(source, Path) and source.stat().st_size > self._conditional_bytes:
            self._claim.check()
            version = self._storage.upload(name, source, before_completion=self._claim.check) or ""
            self._versions[name] = version
            return version
        for wait in (0.0, *self._times.refusal_waits_seconds):
            if wait:
                self._times.sleep(wait)
            if (written := self._storage.replace(name, source, self._versions.get(name))) is not None:
                self._versions[name] = written
                return written
            # A lost reply to an own write, a predecessor's write before this machine's first, a passing refusal, or a successor.
            found = self._storage.describe(name)
            self._claim.check()
            self._versions[name] = None if found is None else found.version
        raise self._refused(name)

    def add(self, name: str, path: Path) -> None:
        """Creates a file that never changes. Has no effect if it exists with the same content.

        Raises JobFailed if another machine has taken over, StorageError or ReferenceProblem if the location refuses.
        """
        for wait in (0.0, *self._times.refusal_waits_seconds):
            if wait:
                self._times.sleep(wait)
            if self._storage.replace(name, path, None) is not None:
                return
            found = self._storage.read_version(name)
            if found is not None and found.data == path.read_bytes():
                return
            self._claim.check()
        raise self._refused(name)

    def _refused(self, name: str) -> StorageError:
        return StorageError(
            f"{self._storage.location}/{name} refuses conditional writes, although this machine holds the claim; try again"
        )
