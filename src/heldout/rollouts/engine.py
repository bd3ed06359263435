"""The engine: keeps a window of rollouts playing until every prompt has its group.

It owns scheduling, retries and stopping. `attempt` plays one attempt, and `runs.journal` stores its result.
"""

import asyncio
import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from heldout.background import backoff_seconds
from heldout.errors import JobFailed
from heldout.job.records import Attempt, Prompt
from heldout.rollouts.attempt import AttemptPlayer, Try
from heldout.runs.progress import Progress

if TYPE_CHECKING:
    from heldout.runs.journal_index import JournalIndex

_HOPELESS_FACTOR = 2
_HOPELESS_LEAST = 50
"""A job fails after this many consecutive failed attempts (or twice the concurrency, if that is more), provided that
no rollout was ever scored or that every failure lies outside the agent."""
_MOST_HARNESS_FAILURES = 6
"""Attempts of one rollout that may fail because the machine ran out of something, 0.5 to 10 s apart."""
_WAVE = 256
"""Rollouts that start together. Thousands at once would overflow the listen queues, and their connections be reset."""
_NEARLY_DONE_SECONDS = 10.0
"""The time in which the results process becomes ready while agents use every processor; otherwise it needs a second or two."""


class Ending(enum.Enum):
    """The reason why playing ended."""

    FINISHED = "finished"
    """Every rollout has ended."""
    STOPPED = "stopped"
    """It was asked to stop: rollouts in flight were finished, the others were not started."""
    OUT_OF_TIME = "out of time"
    """It stopped in the same way because the maximum runtime was reached."""


class StopSwitch:
    """Stops a job from outside, in two steps: first rollouts in flight may finish, then they are stopped too."""

    def __init__(self) -> None:
        self._drain = asyncio.Event()
        self._abort = asyncio.Event()

    @property
    def is_draining(self) -> bool:
        return self._drain.is_set()

    def stop(self) -> None:
        """The first call prevents new rollouts. The second call stops those in flight."""
        if self._drain.is_set():
            self._abort.set()
        self._drain.set()

    async def draining(self) -> None:
        """Waits until no new rollout may start."""
        await self._drain.wait()

    async def aborted(self) -> None:
        """Waits until rollouts in flight have to stop."""
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
        first_delay_seconds: float = 0.5,
        longest_delay_seconds: float = 10.0,
        wave_seconds: float = 0.1,
    ) -> None:
        """on_nearly_done: called once, at the estimated time of some seconds before the last rollout ends.

        first_delay_seconds, longest_delay_seconds: before another attempt after a service was unreachable, doubled each time. A
        failed agent is tried again without delay. wave_seconds: between the starts of one wave of rollouts and the next.
        """
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
        self._first_delay_seconds = first_delay_seconds
        self._longest_delay_seconds = longest_delay_seconds
        self._wave_seconds = wave_seconds
        self._is_nearly_done = False
        self._pending = self._unfinished()
        self._failed_on_end: Counter[str] = Counter()
        self._is_out_of_time = asyncio.Event()

    async def play(self, max_seconds: float) -> Ending:
        """Plays until every rollout has ended, the switch stops the job, or `max_seconds` are over.

        Raises JobFailed when nothing but failures comes back (finished rollouts stay in the journal), StorageError
        when the journal cannot be written.
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
        return Ending.OUT_OF_TIME if self._is_out_of_time.is_set() else Ending.STOPPED

    async def _fill(self, slots: int) -> None:
        async with asyncio.TaskGroup() as group:
            for slot in range(slots):
                if slot and slot % _WAVE == 0:
                    await asyncio.sleep(self._wave_seconds)
                group.create_task(self._play_slot())

    async def _play_slot(self) -> None:
        for prompt, rollout_index in self._pending:
            await self._play_rollout(prompt, rollout_index)
            if (self._progress.seconds_left or 0.0) < _NEARLY_DONE_SECONDS:
                self._announce_nearly_done()
            # A slot whose rollouts never wait must not starve the others.
            await asyncio.sleep(0)
        self._announce_nearly_done()

    def _announce_nearly_done(self) -> None:
        if not self._is_nearly_done:
            self._is_nearly_done = True
            self._on_nearly_done()

    async def _play_rollout(self, prompt: Prompt, rollout_index: int) -> None:
        """Plays attempts until one is final, or until the job is stopping.

        A lost attempt is played again alone in its process, so that the end of that process is a failure of its own.
        """
        number = self._index.attempts(prompt.index, rollout_index) + 1
        num_uncounted = 0
        is_isolated = self._isolate_attempts
        # A rollout that was opened again gets all its retries again.
        last = self._max_attempts if number <= self._max_attempts else number + self._max_attempts - 1
        while True:
            is_last = number >= last
            attempt = await self._play_attempt(Try(prompt, rollout_index, number, is_last, is_isolated))
            if attempt.is_final or self._is_stopping:
                return
            is_lost = attempt.failure is not None and attempt.failure.kind == "lost"
            is_isolated = self._isolate_attempts or is_lost
            if is_lost:
                continue
            if attempt.is_counted:
                number += 1
            else:
                num_uncounted += 1
                self._check_harness(attempt, num_uncounted)
            await self._wait_before(number - 1 + num_uncounted, attempt)
            if self._is_stopping:  # the stop came during the wait
                return

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
                if self._is_stopping:
                    return
                if not self._index.is_finished(prompt.index, rollout_index):
                    yield prompt, rollout_index

    def _check_harness(self, attempt: Attempt, times: int) -> None:
        """Stops the job when the model is gone or the machine keeps failing attempts, which are never scored."""
        assert attempt.failure is not None  # only failed attempts are not counted
        if attempt.failure.kind == "given_up":
            raise JobFailed(f"the model is gone: {attempt.failure.message}")
        if times >= _MOST_HARNESS_FAILURES:
            raise JobFailed(
                f"an attempt failed {times} times because of this machine, not the agent or the model; the latest: "
                f"{attempt.failure.message}; lower rollout_max_concurrency or raise the machine's limit"
            )

    async def _wait_before(self, failures: int, failed: Attempt) -> None:
        """Waits if something outside the agent has to recover. failures: failed attempts of the rollout so far."""
        if failed.failure is not None and failed.failure.is_infrastructure:
            seconds = backoff_seconds(self._first_delay_seconds, failures - 1, self._longest_delay_seconds)
            stops = [asyncio.create_task(stop) for stop in (self._switch.draining(), self._is_out_of_time.wait())]
            try:
                await asyncio.wait(stops, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for stop in stops:
                    stop.cancel()

    async def _run_out(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        # Not the switch: it belongs to the whole evaluation, and the time is this job's alone.
        if not self._switch.is_draining:
            self._is_out_of_time.set()

    @property
    def _is_stopping(self) -> bool:
        return self._is_out_of_time.is_set() or self._switch.is_draining

    def _judge(self, attempt: Attempt) -> None:
        """Raises JobFailed for a hopeless job, so that a server that is down does not score ten thousand prompts 0."""
        if attempt.failure is None:
            self._failed_on_end.clear()
            return
        outside = attempt.failure.is_infrastructure and attempt.failure.kind != "lost"
        self._failed_on_end["outside" if outside else "agent"] += 1
        limit = max(_HOPELESS_LEAST, _HOPELESS_FACTOR * self._concurrency)
        is_hopeless = self._progress.scored == 0 or self._failed_on_end["outside"] == self._failed_on_end.total()
        if is_hopeless and self._failed_on_end.total() >= limit:
            raise JobFailed(
                f"the last {self._failed_on_end.total()} attempts all failed; the latest: "
                f"{attempt.failure.boundary}: {attempt.failure.message}"
            )


def _first_of(error: BaseException | None) -> BaseException:
    """The first error of a group of tasks, which is the one to report."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert error is not None  # only called for a task that failed
    return error
