"""pass@k and pass^k: brute force over all draws, and the laws that hold for any counts."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.errors import MetricError
from heldout.metrics.pass_k import pass_at_k, pass_at_k_by_prompt, pass_power_k, pass_power_k_by_prompt
from heldout.metrics.table import IntArray


@st.composite
def counts(draw: st.DrawFn) -> tuple[IntArray, IntArray]:
    """Successes and rollouts of 1 to 20 prompts with up to 100 rollouts."""
    rollouts = draw(st.lists(st.integers(1, 100), min_size=1, max_size=20))
    successes = [draw(st.integers(0, n)) for n in rollouts]
    return np.array(successes, dtype=np.int64), np.array(rollouts, dtype=np.int64)


@pytest.mark.parametrize("n", range(1, 9))
def test_the_estimates_are_the_share_of_all_draws(n: int) -> None:
    for c in range(n + 1):
        rollouts = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            draws = list(combinations(rollouts, k))
            some = sum(any(draw) for draw in draws) / len(draws)
            every = sum(all(draw) for draw in draws) / len(draws)
            assert pass_at_k(np.array([c]), np.array([n]), k) == pytest.approx(some, abs=1e-15)
            assert pass_power_k(np.array([c]), np.array([n]), k) == pytest.approx(every, abs=1e-15)


@settings(deadline=None)
@given(counts())
def test_pass_at_1_is_the_mean_success_rate_of_prompts(table: tuple[IntArray, IntArray]) -> None:
    successes, rollouts = table
    rate = float((successes / rollouts).mean())
    assert pass_at_k(successes, rollouts, 1) == pytest.approx(rate)
    assert pass_power_k(successes, rollouts, 1) == pytest.approx(rate)


@settings(deadline=None)
@given(counts(), st.integers(1, 100))
def test_on_the_same_prompts_pass_power_k_never_exceeds_pass_at_1_nor_that_pass_at_k(
    table: tuple[IntArray, IntArray], k: int
) -> None:
    successes, rollouts = table
    same = rollouts >= k
    one = pass_at_k_by_prompt(successes, rollouts, 1)[same]
    assert (pass_power_k_by_prompt(successes, rollouts, k)[same] <= one + 1e-12).all()
    assert (pass_at_k_by_prompt(successes, rollouts, k)[same] >= one - 1e-12).all()


@settings(deadline=None)
@given(counts(), st.integers(1, 100))
def test_a_prompt_with_fewer_than_k_rollouts_has_no_estimate(table: tuple[IntArray, IntArray], k: int) -> None:
    successes, rollouts = table
    assert (np.isnan(pass_at_k_by_prompt(successes, rollouts, k)) == (rollouts < k)).all()


def test_large_groups_neither_overflow_nor_lose_digits() -> None:
    # 1 - C(1950, 1000) / C(2000, 1000): about 1 - 2**-50; pass^k of 1 failure in 2000 at k = 1000 is exactly 1/2.
    assert pass_at_k(np.array([50]), np.array([2000]), 1000) == pytest.approx(1.0)
    assert pass_power_k(np.array([1999]), np.array([2000]), 1000) == pytest.approx(0.5, rel=1e-12)


def test_no_prompt_with_k_rollouts_is_nan() -> None:
    assert np.isnan(pass_at_k(np.array([1]), np.array([2]), 3))


@pytest.mark.parametrize(
    ("successes", "rollouts", "k", "message"),
    [
        ([1], [2], 0, "k is 0"),
        ([1, 1], [2], 1, "differ in shape"),
        ([3], [2], 1, "more successes than rollouts"),
    ],
)
def test_counts_that_cannot_be_are_refused(successes: list[int], rollouts: list[int], k: int, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        pass_at_k(np.array(successes), np.array(rollouts), k)
