"""The index of a journal, built in one pass: numbers by rollout, without the attempts' content."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from heldout.job.records import Attempt
from heldout.metrics.table import IntArray
from heldout.runs.journal import Place, decode, read


class _Amendments:
    """The place of each rollout's last amendment: 20 bytes an amendment, whatever its size."""

    def __init__(self) -> None:
        self._segments: list[Path] = []
        self._keys = array("q")
        self._offsets = array("q")
        self._files = array("i")
        self._order: IntArray | None = None

    def note(self, key: int, place: Place) -> None:
        """Records the amendment at `place` as the latest of the rollout numbered `key`."""
        if not self._segments or self._segments[-1] != place.segment:
            self._segments.append(place.segment)
        self._keys.append(key)
        self._offsets.append(place.offset)
        self._files.append(len(self._segments) - 1)
        self._order = None

    def find(self, key: int) -> Attempt | None:
        """Reads the latest amendment of the rollout numbered `key` from disk; None when there is none."""
        keys = np.frombuffer(self._keys, dtype=np.int64) if self._keys else np.empty(0, dtype=np.int64)
        if self._order is None:
            self._order = np.argsort(keys, kind="stable")
        after = int(np.searchsorted(keys, key, side="right", sorter=self._order))
        if after == 0 or keys[self._order[after - 1]] != key:
            return None
        position = int(self._order[after - 1])
        place = Place(self._segments[self._files[position]], self._offsets[position])
        with place.segment.open("rb") as file:
            file.seek(place.offset)
            return decode(file.readline(), place).attempt


@dataclass(frozen=True, slots=True)
class JournalIndex:
    """Finished rollouts, attempts of each rollout, and amendments: some 30 bytes an attempt."""

    metric_names: tuple[str, ...]
    """Names of the agents' own metrics, sorted."""
    _group_size: int
    _finished_keys: IntArray
    """Number of each finished rollout, sorted."""
    _tried_keys: IntArray
    """Number of each rollout with a counted attempt, sorted, each once."""
    _attempts_made: IntArray
    """Highest counted attempt number of each of `_tried_keys`."""
    _amendments: _Amendments
    _reopened: frozenset[tuple[int, int]]
    """Number of each rollout that was opened again, and of the attempt that had decided it."""

    @classmethod
    def of(cls, journal: Path, group_size: int, on_final: Callable[[Attempt], None] | None = None) -> Self:
        """Reads the whole journal once. on_final: called with each final attempt, without its turns."""
        finished, tried, numbers = array("q"), array("q"), array("q")
        amendments = _Amendments()
        names: set[str] = set()
        reopened: set[tuple[int, int]] = set()
        may_reopen: list[Attempt] = []
        for line in read(journal, with_turns=False):
            attempt = line.attempt
            key = attempt.prompt_index * group_size + attempt.rollout_index
            names.update(name for name, _ in attempt.metrics)
            if line.reopens:
                reopened.add((key, attempt.number))
                continue
            if line.is_amendment:
                amendments.note(key, line.place)
                continue
            if attempt.is_counted:
                tried.append(key)
                numbers.append(attempt.number)
            if attempt.is_final and attempt.may_be_reopened:
                may_reopen.append(attempt)
            elif attempt.is_final:
                finished.append(key)
                if on_final is not None:
                    on_final(attempt)
        for attempt in may_reopen:
            key = attempt.prompt_index * group_size + attempt.rollout_index
            if (key, attempt.number) not in reopened:
                finished.append(key)
                if on_final is not None:
                    on_final(attempt)
        order = np.lexsort((np.array(numbers, dtype=np.int64), np.array(tried, dtype=np.int64)))
        keys, counts = np.array(tried, dtype=np.int64)[order], np.array(numbers, dtype=np.int64)[order]
        is_last = np.append(keys[1:] != keys[:-1], np.ones(min(1, len(keys)), dtype=bool))
        return cls(
            tuple(sorted(names)),
            group_size,
            np.sort(np.array(finished, dtype=np.int64)),
            keys[is_last],
            counts[is_last],
            amendments,
            frozenset(reopened),
        )

    def is_finished(self, prompt_index: int, rollout_index: int) -> bool:
        """Whether the rollout has its final attempt."""
        key = self._key(prompt_index, rollout_index)
        place = int(np.searchsorted(self._finished_keys, key))
        return place < len(self._finished_keys) and bool(self._finished_keys[place] == key)

    def attempts(self, prompt_index: int, rollout_index: int) -> int:
        """Returns the number of counted attempts of the rollout."""
        key = self._key(prompt_index, rollout_index)
        place = int(np.searchsorted(self._tried_keys, key))
        if place < len(self._tried_keys) and self._tried_keys[place] == key:
            return int(self._attempts_made[place])
        return 0

    def decides(self, attempt: Attempt) -> bool:
        """Whether the attempt decided its rollout, which was not opened again since."""
        return (
            attempt.is_final
            and (self._key(attempt.prompt_index, attempt.rollout_index), attempt.number) not in self._reopened
        )

    def amendment(self, prompt_index: int, rollout_index: int) -> Attempt | None:
        """Reads the rollout's latest amendment from disk; None when there is none."""
        return self._amendments.find(self._key(prompt_index, rollout_index))

    def _key(self, prompt_index: int, rollout_index: int) -> int:
        return prompt_index * self._group_size + rollout_index
