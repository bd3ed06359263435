"""The records of a rollout: one sum of rewards on every version of Python."""

import itertools
import math

import pytest

from heldout.job.records import total_reward


def test_the_sum_of_rewards_is_rounded_once_in_any_order() -> None:
    for rewards in itertools.permutations([0.7, 0.2, 0.1, 1e16, -1e16]):
        assert total_reward(rewards) == math.fsum([0.7, 0.2, 0.1])  # one addition after the other loses up to 1 of it


@pytest.mark.parametrize(("rewards", "total"), [([1e308, 1e308], math.inf), ([-1e308, -1e308], -math.inf), ([], 0.0)])
def test_rewards_whose_sum_a_float_cannot_hold_have_an_infinite_sum(rewards: list[float], total: float) -> None:
    assert total_reward(rewards) == total
