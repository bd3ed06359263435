"""The progress of a job, counted as attempts end. Displays read it at any time."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from heldout.job.records import Attempt
from heldout.metrics.failures import FailureCounter
from heldout.metrics.running import RunningTotals
from heldout.metrics.settings import MetricSettings


class ModelWait(NamedTuple):
    """The model calls that wait for an answer."""

    calls: int = 0
    longest_seconds: float = 0.0


@dataclass(slots=True)
class Progress:
    """Running counts of one job. `planned` is the number of rollouts, prompts x group size."""

    planned: int
    totals: RunningTotals
    scored: int = 0
    failed: int = 0
    finished_before: int = 0
    """Rollouts finished before this start of the job."""
    in_flight: int = 0
    turns: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    retried: int = 0
    """Failed attempts of this start whose rollout is tried again."""
    failures: FailureCounter = field(default_factory=FailureCounter)
    """Failed attempts by reason."""
    first_failures: dict[str, str] = field(default_factory=dict)
    """The reason of the first failed attempt of each `boundary: kind`."""
    flags: Counter[str] = field(default_factory=Counter)
    model_wait: Callable[[], ModelWait] = ModelWait
    """Returns the model calls that are in flight now."""
    started: float = field(default_factory=time.monotonic)
    step: str = ""
    """The place of the job among those of its evaluation, such as `2 of 2`; empty for the only one."""

    @classmethod
    def of(cls, num_prompts: int, group_size: int, settings: MetricSettings, order: Iterable[int]) -> "Progress":
        """The progress of a job before its first rollout. order: prompt indices in the order of play."""
        return cls(num_prompts * group_size, RunningTotals(settings, group_size, order))

    @property
    def finished(self) -> int:
        return self.scored + self.failed

    @property
    def seconds(self) -> float:
        """Seconds since this start of the job."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the rate so far; None before the first rollout of this start has finished."""
        done = self.finished - self.finished_before
        return None if done == 0 else self.seconds / done * (self.planned - self.finished)

    @property
    def stopping_line(self) -> str:
        """What the job waits for after it was asked to stop, in one line."""
        if not self.in_flight:
            return "stopping"
        wait = self.model_wait()
        model = (
            f"; the model has not answered {_counted(wait.calls, 'call')}, the oldest for {wait.longest_seconds:.0f} s"
        )
        return f"waiting for {_counted(self.in_flight, 'rollout')} in flight{model if wait.calls else ''}"

    def count_before(self, attempt: Attempt) -> None:
        """Counts a rollout that finished before this start."""
        self._count_final(attempt)
        self.finished_before += 1

    def count(self, attempt: Attempt) -> None:
        """Counts an attempt that has ended."""
        self.turns += attempt.num_turns
        self.prompt_tokens += sum(turn.prompt_tokens or 0 for turn in attempt.turns)
        self.response_tokens += sum(turn.response_tokens or 0 for turn in attempt.turns)
        if attempt.failure is not None:
            kind = f"{attempt.failure.boundary}: {attempt.failure.kind}"
            self.failures.add(attempt.failure.boundary, attempt.failure.kind, attempt.failure.message)
            self.first_failures.setdefault(kind, attempt.failure.message)
        if attempt.is_final:
            self._count_final(attempt)
            self.flags.update(attempt.flags)
        else:
            self.retried += 1

    def _count_final(self, attempt: Attempt) -> None:
        if attempt.failure is None:
            self.scored += 1
        else:
            self.failed += 1
        self.totals.add(attempt.prompt_index, attempt.reward)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
