"""Findings of sound runs: false alarms, measured on simulated runs in which nothing is wrong."""

import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.findings import MOST_FALSE_ALARMS, false_alarms, kinds  # noqa: E402  # needs the line above

RUNS_OF_EACH_KIND = 8


@pytest.mark.slow
def test_no_finding_appears_in_more_than_one_sound_run_of_twenty() -> None:
    of_difficulty: dict[str, Counter[str]] = {}
    num_runs: Counter[str] = Counter()
    for seed, kind in enumerate(kinds()):
        found = false_alarms(kind, RUNS_OF_EACH_KIND, seed)
        of_difficulty.setdefault(kind.difficulty, Counter()).update(found)
        num_runs[kind.difficulty] += RUNS_OF_EACH_KIND
    for difficulty, found in of_difficulty.items():
        for name, times in found.items():
            assert times <= MOST_FALSE_ALARMS * num_runs[difficulty], (difficulty, name, times, num_runs[difficulty])
