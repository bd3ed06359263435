"""The engine: keeps a window of rollouts playing until every prompt has its group.

Owns scheduling, retries and stopping. What one attempt is belongs to `attempt`, what is kept of it to `journal`.
"""

import asyncio
import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from heldout.errors import JobFailed
from heldout.job.records import Attempt, Boundary, Prompt
from heldout.rollouts.attempt import AttemptPlayer, Try
from heldout.runs.progress import Progress

if TYPE_CHECKING:
    from heldout.runs.journal_index import JournalIndex

_HOPELESS_FACTOR = 2
_HOPELESS_LEAST = 50
"""A job is given up when so many attempts (or twice the concurrency, if that is more) failed on end, and either no rollout was
ever scored or all of them failed for what is outside the agent."""
_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 10.0
"""Between attempts where something outside was not reachable; an agent that failed is tried again at once."""
_NEARLY_DONE_SECONDS = 10.0
"""What comes after the last rollout takes this long to get ready where agents keep every processor busy, else a second or two."""


class Ending(enum.Enum):
    """How playing came to an end."""

    FINISHED = "finished"
    """Every rollout has ended."""
    STOPPED = "stopped"
    """Asked to stop: what was in flight is finished, the rest not started."""
    OUT_OF_TIME = "out of time"
    """As STOPPED, because the maximum runtime was reached."""


class StopSwitch:
    """How the outside stops a job: first let what is in flight finish, then not even that."""

    def __init__(self) -> None:
        self._drain = asyncio.Event()
        self._abort = asyncio.Event()

    @property
    def is_draining(self) -> bool:
        return self._drain.is_set()

    def stop(self) -> None:
        """First call: start nothing new. Second call: give up what is in flight."""
        if self._drain.is_set():
            self._abort.set()
        self._drain.set()

    async def draining(self) -> None:
        """Returns when nothing new is to be started."""
        await self._drain.wait()

    async def aborted(self) -> None:
        """Returns when what is in flight is to be given up."""
        await self._abort.wait()


class Engine:
    """Plays one job's rollouts."""

    def __init__(
        self,
        *,
        prompts: Iterable[Prompt],
        group_size: int,
        concurrency: int,
        max_retries: int,
        isolate_attempts: bool,
        index: "JournalIndex",
        player: AttemptPlayer,
        progress: Progress,
        switch: StopSwitch,
        on_nearly_done: Callable[[], None] = lambda: None,
    ) -> None:
        """on_nearly_done: called once, some seconds before the last rollout ends, as far as can be told."""
        self._prompts = prompts
        self._group_size = group_size
        self._concurrency = concurrency
        self._max_attempts = 1 + max_retries
        self._isolate_attempts = isolate_attempts
        self._index = index
        self._player = player
        self._progress = progress
        self._switch = switch
        self._on_nearly_done = on_nearly_done
        self._is_nearly_done = False
        self._pending = self._unfinished()
        self._failed_on_end: Counter[str] = Counter()
        self._is_out_of_time = False

    async def play(self, max_seconds: float) -> Ending:
        """Plays until every rollout has ended, or the switch or the time says stop.

        Raises JobFailed when nothing but failures comes back; what was finished stays in the journal. StorageError when the
        journal cannot be written.
        """
        slots = min(self._concurrency, max(1, self._progress.planned - self._progress.finished))
        clock = asyncio.create_task(self._run_out(max_seconds))
        playing = asyncio.create_task(self._fill(slots))
        aborted = asyncio.create_task(self._switch.aborted())
        try:
            await asyncio.wait({playing, aborted}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
            elif playing.exception() is not None:
                raise _first_of(playing.exception())
        finally:
            for task in (clock, aborted, playing):
                task.cancel()
            await asyncio.gather(clock, aborted, playing, return_exceptions=True)
        if self._progress.finished >= self._progress.planned:
            return Ending.FINISHED
        return Ending.OUT_OF_TIME if self._is_out_of_time else Ending.STOPPED

    async def _fill(self, slots: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(slots):
                group.create_task(self._play_slot())

    async def _play_slot(self) -> None:
        for prompt, rollout_index in self._pending:
            await self._play_rollout(prompt, rollout_index)
            if (self._progress.seconds_left or 0.0) < _NEARLY_DONE_SECONDS:
                self._tell_nearly_done()
            # A slot whose rollouts end without ever waiting must not starve the others.
            await asyncio.sleep(0)
        self._tell_nearly_done()

    def _tell_nearly_done(self) -> None:
        if not self._is_nearly_done:
            self._is_nearly_done = True
            self._on_nearly_done()

    async def _play_rollout(self, prompt: Prompt, rollout_index: int) -> None:
        """Plays attempts until one is final; while stopping, only the attempt in flight.

        One that was lost is played again alone in its process, and there it is not lost again.
        """
        number = self._index.attempts(prompt.index, rollout_index) + 1
        is_isolated = self._isolate_attempts
        while True:
            is_last = number >= self._max_attempts
            attempt = await self._play_attempt(Try(prompt, rollout_index, number, is_last, is_isolated))
            if attempt.is_final or self._switch.is_draining:
                return
            is_isolated = self._isolate_attempts or not attempt.is_counted
            if attempt.is_counted:
                number += 1
                await self._wait_before(number, attempt)

    async def _play_attempt(self, this: Try) -> Attempt:
        self._progress.in_flight += 1
        try:
            attempt = await self._player.play(this)
        finally:
            self._progress.in_flight -= 1
        self._progress.count(attempt)
        self._judge(attempt)
        return attempt

    def _unfinished(self) -> Iterator[tuple[Prompt, int]]:
        for prompt in self._prompts:
            for rollout_index in range(self._group_size):
                if self._switch.is_draining:
                    return
                if not self._index.is_finished(prompt.index, rollout_index):
                    yield prompt, rollout_index

    async def _wait_before(self, number: int, failed: Attempt) -> None:
        if failed.failure is not None and failed.failure.kind == "unreachable":
            await asyncio.sleep(min(_FIRST_DELAY_SECONDS * 2.0 ** (number - 2), _LONGEST_DELAY_SECONDS))

    async def _run_out(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._switch.is_draining:
            self._is_out_of_time = True
            self._switch.stop()

    def _judge(self, attempt: Attempt) -> None:
        """Gives the job up when it is hopeless: better than scoring ten thousand prompts 0 because a server is down."""
        if attempt.failure is None:
            self._failed_on_end.clear()
            return
        outside = attempt.failure.boundary is Boundary.POLICY or attempt.failure.kind == "unreachable"
        self._failed_on_end["outside" if outside else "agent"] += 1
        limit = max(_HOPELESS_LEAST, _HOPELESS_FACTOR * self._concurrency)
        is_hopeless = self._progress.scored == 0 or self._failed_on_end["outside"] == self._failed_on_end.total()
        if is_hopeless and self._failed_on_end.total() >= limit:
            raise JobFailed(
                f"the last {self._failed_on_end.total()} attempts all failed; the latest: "
                f"{attempt.failure.boundary}: {attempt.failure.message}"
            )


def _first_of(error: BaseException | None) -> BaseException:
    """The error to show of a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert error is not None  # only called for a task that failed
    return error
