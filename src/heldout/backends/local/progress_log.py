"""The progress lines in the log of a detached job: every tenth of the rollouts, and the first failure of each kind."""

from collections.abc import Callable

from heldout.report.live import line
from heldout.runs.progress import Progress

_PARTS = 10
"""The number of progress lines of a job."""


class Narrator:
    """Writes progress lines of one job. `look` is called at intervals, `begin` and `end` once."""

    def __init__(self, progress: Progress, say: Callable[[str], None]) -> None:
        self._progress = progress
        self._say = say
        self._said_part = self._part()
        self._said_failures: set[str] = set()

    def begin(self) -> None:
        before = self._progress.finished_before
        ended = f", {before} of which ended before" if before else ""
        self._say(f"playing {self._progress.planned} rollouts{ended}")

    def look(self) -> None:
        """Writes what is new: another tenth of the rollouts, or the first failure of a kind with its reason."""
        for kind, reason in list(self._progress.first_failures.items()):
            if kind not in self._said_failures:
                self._said_failures.add(kind)
                self._say(f"an attempt failed, the first with {kind}: {' '.join(reason.split())}")
        if self._part() > self._said_part and self._progress.finished < self._progress.planned:
            self._said_part = self._part()
            self._say(line(self._progress))

    def end(self) -> None:
        self.look()
        self._say(f"played {line(self._progress)}")
        if self._progress.failures:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in self._progress.failures.most_common())
            self._say(f"failed attempts: {kinds}")

    def _part(self) -> int:
        return _PARTS * self._progress.finished // max(self._progress.planned, 1)
