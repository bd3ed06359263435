"""The benchmarks work in their smallest form, and the judge of the crash benchmark can find a fault."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.crash_evidence import Event, Final, Rollout, Snapshot, judge  # noqa: E402  # needs the line above

PLANNED = [Rollout(0, 0), Rollout(0, 1)]
EVENTS = [
    Event("start", "0-0-1-a", 1.0, None),
    Event("taken", "0-0-1-a", 2.0, 1.0),
    Event("start", "0-1-1-b", 2.0, None),
]
DEATHS = [Snapshot(5.0, {Rollout(0, 0): "0-0-1-a", Rollout(0, 1): "0-1-1-b"})]
FINALS = [Final(Rollout(0, 0), "0-0-1-a", 1.0), Final(Rollout(0, 1), "0-1-1-b", 0.0)]
ATTEMPTS = Counter(PLANNED)


def test_a_run_in_which_every_witness_agrees_is_clean() -> None:
    assert judge(PLANNED, EVENTS, DEATHS, FINALS, ATTEMPTS) == (0, 0, 0, 0)


def test_a_taken_reward_that_is_not_in_the_results_is_a_lost_rollout() -> None:
    replayed = [FINALS[0]._replace(trajectory_id="0-0-1-c"), FINALS[1]]
    assert judge(PLANNED, EVENTS, [], replayed, ATTEMPTS).lost == 1


def test_a_rollout_on_disk_at_a_death_that_is_missing_at_the_end_is_lost() -> None:
    assert judge(PLANNED, [], DEATHS, FINALS[:1], ATTEMPTS).lost == 1


def test_a_rollout_played_after_it_was_on_disk_is_a_repeated_one() -> None:
    again = [*EVENTS, Event("start", "0-1-1-d", 6.0, None)]
    assert judge(PLANNED, again, DEATHS, FINALS, ATTEMPTS).repeated == 1


def test_a_rollout_played_after_its_reward_was_taken_is_a_repeated_one() -> None:
    again = [*EVENTS, Event("start", "0-0-2-d", 3.0, None)]
    assert judge(PLANNED, again, [], FINALS, ATTEMPTS).repeated == 1


def test_a_rollout_with_two_rows_is_scored_twice() -> None:
    assert judge(PLANNED, EVENTS, DEATHS, [*FINALS, FINALS[0]], ATTEMPTS).scored_twice == 1


def test_a_rollout_with_two_final_attempts_is_scored_twice() -> None:
    assert judge(PLANNED, EVENTS, DEATHS, FINALS, ATTEMPTS + Counter(PLANNED[:1])).scored_twice == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "smallest",
    [
        "crash --kills 3 --rollouts 48",
        "overhead --prompts 2 --rollouts 2 --repeats 1 --latency-ms 0 --only heldout-light heldout-openai bare-light",
        "runtime --repeats 1 --share 0.02 --only heldout relay direct",
        "scale --rollouts 16 32 --turns 2 4 --turns-in-all 64",
    ],
    ids=lambda command: command.partition(" ")[0],
)
def test_each_benchmark_works_in_its_smallest_form(smallest: str) -> None:
    name, *options = smallest.split()
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--no-results"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
