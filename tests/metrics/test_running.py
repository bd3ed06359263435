"""The live numbers agree with the final ones."""

import tracemalloc
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heldout.metrics.running import RunningTotals
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import summarize
from heldout.metrics.table import RolloutTable

ROLLOUTS = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]))), min_size=1, max_size=60
)


@settings(deadline=None)
@given(ROLLOUTS.filter(lambda rollouts: any(reward is not None for _, reward in rollouts)))
def test_the_live_mean_is_the_final_mean(rollouts: list[tuple[int, float | None]]) -> None:
    totals = RunningTotals(MetricSettings((1,), 1.0), 60)
    for prompt, reward in rollouts:
        totals.add(prompt, reward)
    table = RolloutTable(
        prompt_index=np.array([prompt for prompt, _ in rollouts]),
        rollout_index=np.arange(len(rollouts)),
        is_scored=np.array([reward is not None for _, reward in rollouts]),
        reward=np.array([np.nan if reward is None else reward for _, reward in rollouts]),
        turns=np.ones(len(rollouts), dtype=np.int64),
    )
    assert totals.estimate().reward_mean == pytest.approx(
        summarize(table, None, MetricSettings((1,), 1.0), seconds=None).metrics["eval/reward/mean"]
    )


@pytest.mark.parametrize("failed", ["zero", "exclude"])
@given(
    groups=st.lists(st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=2, max_size=9)
)
def test_a_prompt_that_is_complete_still_counts(
    failed: Literal["zero", "exclude"], groups: list[list[float | None]]
) -> None:
    forgetting = RunningTotals(MetricSettings((1,), 1.0, failed_rollouts=failed), 4)
    remembering = RunningTotals(MetricSettings((1,), 1.0, failed_rollouts=failed), 5)
    for totals in (forgetting, remembering):
        for prompt, rewards in enumerate(groups):
            for reward in rewards:
                totals.add(prompt, reward)
    assert repr(forgetting.estimate()) == repr(remembering.estimate())  # NaN too


def test_prompts_that_are_complete_take_no_memory() -> None:
    totals = RunningTotals(MetricSettings((1,), 1.0), 2)
    totals.add(0, 1.0)
    tracemalloc.start()
    try:
        for prompt in range(1, 20_000):
            totals.add(prompt, 1.0)
            totals.add(prompt, 0.0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert totals.estimate().num_prompts == 20_000
    assert held < 20_000


def test_nothing_yet_is_not_zero() -> None:
    estimate = RunningTotals(MetricSettings((1,), 1.0), 8).estimate()
    assert np.isnan(estimate.reward_mean)
    assert estimate.reward_interval is None
    assert estimate.num_rollouts == 0


def test_rollouts_of_one_prompt_count_as_one_cluster() -> None:
    clustered, spread = RunningTotals(MetricSettings((1,), 1.0), 10), RunningTotals(MetricSettings((1,), 1.0), 10)
    for j in range(80):
        clustered.add(j % 8, float(j % 2))  # every prompt always has the same outcome
        spread.add(j % 8, float(j % 3 > 0))  # outcomes differ within prompts
    wide, narrow = clustered.estimate().success_interval, spread.estimate().success_interval
    assert wide is not None
    assert narrow is not None
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_excluded_failures_leave_no_trace() -> None:
    totals = RunningTotals(MetricSettings((1,), 1.0, failed_rollouts="exclude"), 2)
    totals.add(0, None)
    totals.add(1, 1.0)
    assert totals.estimate().reward_mean == 1.0
    assert totals.estimate().num_prompts == 1


def test_the_live_interval_is_near_the_final_one() -> None:
    rng = np.random.default_rng(9)
    rewards_PG = (rng.random((200, 8)) < rng.random((200, 1))).astype(np.float64)
    totals = RunningTotals(MetricSettings((1,), 1.0), 8)
    for prompt, group in enumerate(rewards_PG):
        for reward in group:
            totals.add(prompt, float(reward))
    table = RolloutTable(
        prompt_index=np.repeat(np.arange(200), 8),
        rollout_index=np.tile(np.arange(8), 200),
        is_scored=np.ones(1600, dtype=np.bool_),
        reward=rewards_PG.ravel(),
        turns=np.ones(1600, dtype=np.int64),
    )
    final = summarize(table, None, MetricSettings((1,), 1.0), seconds=None).intervals["eval/reward/pass_at_1"]
    assert totals.estimate().success_interval == pytest.approx(final, abs=0.01)


def test_all_successes_so_far_leave_room_below() -> None:
    totals = RunningTotals(MetricSettings((1,), 1.0), 8)
    for prompt in range(10):
        totals.add(prompt, 1.0)
    interval = totals.estimate().success_interval
    assert interval is not None
    assert interval[0] == pytest.approx(0.722, abs=0.001)  # Wilson's limit for 10 of 10 is 0.722
    assert interval[1] == 1.0


@pytest.mark.parametrize("prompts", [2, 3, 4, 6, 11, 31, 1001])
def test_the_live_reward_interval_is_students_on_the_prompts_means(prompts: int) -> None:
    rewards = np.linspace(0.0, 3.0, prompts)
    totals = RunningTotals(MetricSettings((1,), 1.0), 8)
    for prompt, reward in enumerate(rewards):
        totals.add(prompt, float(reward) - 0.5)
        totals.add(prompt, float(reward) + 0.5)
    half = float(stats.t.ppf(0.975, prompts - 1) * rewards.std(ddof=1) / np.sqrt(prompts))
    assert totals.estimate().reward_interval == pytest.approx((1.5 - half, 1.5 + half), abs=2e-3 * half)
