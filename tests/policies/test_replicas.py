"""The choice of the replica for a trajectory's calls."""

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from heldout.policies.replicas import Replicas

BASES = [URL(f"http://10.0.0.{number}:8000/v1") for number in range(4)]
TRAJECTORIES = [f"trajectory-{number}" for number in range(400)]


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_trajectory_always_goes_to_the_same_replica_also_in_another_process() -> None:
    first, second = Replicas(BASES, Clock()), Replicas(list(reversed(BASES)), Clock())
    for trajectory in TRAJECTORIES:
        assert first.choose(trajectory) is first.choose(trajectory)
        assert first.choose(trajectory).base == second.choose(trajectory).base


def test_trajectories_spread_evenly() -> None:
    replicas = Replicas(BASES, Clock())
    counts = Counter(replicas.choose(trajectory) for trajectory in TRAJECTORIES)
    assert len(counts) == 4
    assert all(70 <= count <= 130 for count in counts.values())  # 100 each; the deviation of one is 8.7


@given(st.integers(0, 3))
def test_only_the_trajectories_of_a_replica_that_is_down_move(down: int) -> None:
    replicas = Replicas(BASES, Clock())
    before = {trajectory: replicas.choose(trajectory) for trajectory in TRAJECTORIES}
    replicas.mark_down(replicas.all[down], "refuses connections")
    for trajectory, replica in before.items():
        if replica is replicas.all[down]:
            assert replicas.choose(trajectory) is not replica
        else:
            assert replicas.choose(trajectory) is replica


def test_a_replica_that_came_back_gets_new_trajectories_and_those_that_moved_stay() -> None:
    clock = Clock()
    replicas = Replicas(BASES, clock)
    lost = next(trajectory for trajectory in TRAJECTORIES if replicas.choose(trajectory) is replicas.all[0])
    replicas.mark_down(replicas.all[0], "refuses connections")
    moved_to = replicas.choose(lost)
    replicas.mark_up(replicas.all[0])
    assert replicas.choose(lost) is moved_to
    assert any(replicas.choose(f"new-{number}") is replicas.all[0] for number in range(100))


def test_a_trajectory_that_moved_moves_on_when_its_new_replica_is_down_too() -> None:
    replicas = Replicas(BASES, Clock())
    for _ in range(3):
        replicas.mark_down(replicas.choose("t"), "refuses connections")
    assert replicas.choose("t").down_until is None


def test_one_call_at_a_time_tries_a_replica_that_was_down() -> None:
    clock = Clock()
    replicas = Replicas(BASES, clock)
    down = replicas.all[0]
    own = [trajectory for trajectory in TRAJECTORIES if replicas.choose(trajectory) is down]
    replicas.mark_down(down, "refuses connections")
    assert replicas.choose(own[0]) is not down
    clock.time = 6.0
    assert [replicas.choose(trajectory) is down for trajectory in own[1:4]] == [True, False, False]


def test_a_replica_going_down_and_coming_back_is_reported_once_each(caplog: pytest.LogCaptureFixture) -> None:
    replicas = Replicas([URL("http://a/v1?key=secret"), URL("http://b/v1")], Clock())
    with caplog.at_level(logging.WARNING):
        assert replicas.mark_down(replicas.all[0], "refuses connections")
        assert replicas.mark_down(replicas.all[0], "refuses connections")
        assert not replicas.mark_down(replicas.all[1], "refuses connections")
        replicas.mark_up(replicas.all[0])
        replicas.mark_up(replicas.all[0])
    assert caplog.messages == [
        "replica http://a/v1 refuses connections; its trajectories move to the other 1",
        "replica http://b/v1 refuses connections; none of the others is up either",
        "replica http://a/v1 is back and gets new trajectories",
    ]


def test_there_is_no_other_replica_after_the_last_goes_down() -> None:
    replicas = Replicas(BASES[:2], Clock())
    assert replicas.mark_down(replicas.all[0], "refuses connections")
    assert not replicas.mark_down(replicas.all[1], "refuses connections")
    assert replicas.choose("t") in replicas.all


def test_a_query_of_the_base_url_goes_along_with_every_call() -> None:
    (replica,) = Replicas([URL("http://a/openai/v1/?api-version=1")], Clock()).all
    assert str(replica.url("/chat/completions")) == "http://a/openai/v1/chat/completions?api-version=1"


def test_a_trajectory_that_came_back_stays_when_the_replica_it_had_moved_to_is_up_again() -> None:
    clock = Clock()
    replicas = Replicas(BASES[:2], clock)
    own = replicas.choose("trajectory")
    replicas.mark_down(own, "is away")
    other = replicas.choose("trajectory")
    assert other is not own
    replicas.mark_up(own)
    replicas.mark_down(other, "is away")
    assert replicas.choose("trajectory") is own  # its prefix cache is here from now on
    replicas.mark_up(other)
    assert replicas.choose("trajectory") is own
