"""The numbers on these very prompts: only rollouts vary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import Summary, summarize
from heldout.metrics.table import FloatArray, RolloutTable

MEAN, PASS_1, PASS_2, ALL_2, PASS_4 = (
    f"eval/reward/{name}" for name in ("mean", "pass_at_1", "pass_at_2", "pass_power_2", "pass_at_4")
)


def summary_of(rewards_PG: FloatArray) -> Summary:
    prompts, size = rewards_PG.shape
    table = RolloutTable(
        prompt_index=np.repeat(np.arange(prompts), size),
        rollout_index=np.tile(np.arange(size), prompts),
        is_scored=np.ones(prompts * size, dtype=np.bool_),
        reward=rewards_PG.ravel(),
        turns=np.ones(prompts * size, dtype=np.int64),
    )
    return summarize(table, None, MetricSettings((1, 2, 4), 1.0), seconds=None)


def drawn(rates: FloatArray, size: int, rng: np.random.Generator) -> FloatArray:
    return (rng.random((len(rates), size)) < rates[:, None]).astype(np.float64)


def test_the_error_by_hand() -> None:
    # The variance within each of 2 prompts of 4 rollouts is 1/3, so (4/3 + 4/3) / 64 for the mean. One rollout moves it by 1/8.
    found = summary_of(np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]))
    assert found.rerun[PASS_1].error == pytest.approx(np.sqrt(8 / 3 / 64 + 1 / 64))
    assert found.rerun[MEAN].error == pytest.approx(found.rerun[PASS_1].error)


def test_prompts_that_differ_widen_the_one_interval_and_not_the_other() -> None:
    found = summary_of(np.array([[1.0] * 8, [0.0] * 8] * 20))
    like_these, these = found.intervals[PASS_1], found.rerun[PASS_1].interval
    assert like_these[1] - like_these[0] > 0.25
    assert these[1] - these[0] < 0.03
    assert these[0] < 0.5 < these[1]  # all rollouts of a prompt agree, and yet a rerun may differ


def test_one_rollout_a_prompt_does_not_show_what_a_rerun_would_give() -> None:
    assert not summary_of(np.array([[1.0], [0.0]] * 10)).rerun


def test_pass_k_needs_twice_k_rollouts() -> None:
    rerun = summary_of(drawn(np.full(20, 0.5), 4, np.random.default_rng(1))).rerun
    assert {PASS_1, PASS_2, ALL_2} <= rerun.keys()
    assert PASS_4 not in rerun


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=2, max_size=12))
def test_the_interval_holds_the_number_and_stays_in_the_range(groups: list[list[float]]) -> None:
    found = summary_of(np.array(groups))
    for name, one in found.rerun.items():
        low, high = one.interval
        assert low <= found.metrics[name] <= high
        assert (name == MEAN) or (0 <= low <= high <= 1)


@pytest.mark.parametrize("metric", [PASS_1, PASS_2, ALL_2])
def test_95_of_100_intervals_hold_what_endless_reruns_would_give(metric: str) -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        rates = rng.choice([0.0, 1.0, 0.5, 0.9], 30)
        truth = {PASS_1: rates, PASS_2: 1 - (1 - rates) ** 2, ALL_2: rates**2}[metric].mean()
        low, high = summary_of(drawn(rates, 8, rng)).rerun[metric].interval
        held += low <= truth <= high
    assert held >= 181  # binomial(200, 0.95): at least 181 with probability 0.99


def test_the_chance_of_another_verdict_is_how_often_reruns_give_one() -> None:
    rng = np.random.default_rng(3)
    promised, flipped = [], []
    for _ in range(300):
        rates, bound = rng.beta(2, 2, 20), rng.uniform(0.3, 0.7)
        first, second = (summary_of(drawn(rates, 4, rng)) for _ in range(2))
        promised.append(first.rerun[PASS_1].flip_chance(first.metrics[PASS_1] - bound))
        flipped.append((first.metrics[PASS_1] >= bound) != (second.metrics[PASS_1] >= bound))
    assert np.mean(promised) == pytest.approx(np.mean(flipped), abs=0.05)  # standard error 0.022
    assert 0.05 < np.mean(flipped) < 0.5
