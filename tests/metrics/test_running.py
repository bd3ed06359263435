"""The live numbers may be looked at, and acted on, at any time."""

import heapq
import tracemalloc
from random import Random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heldout.metrics.running import RunningEstimate, RunningTotals
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import summarize
from heldout.metrics.table import RolloutTable

SETTINGS = MetricSettings((1,), 1.0)
GROUPS = st.lists(st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=9)


def played(groups: list[list[float | None]], order_of_ends: list[int] | None = None) -> RunningEstimate:
    """The estimate after all rollouts of these prompts; order_of_ends: which prompt ends when."""
    totals = RunningTotals(SETTINGS, len(groups[0]), range(len(groups)))
    for prompt in order_of_ends or range(len(groups)):
        for reward in groups[prompt]:
            totals.add(prompt, reward)
    return totals.estimate()


@settings(deadline=None)
@given(GROUPS.filter(lambda groups: any(reward is not None for group in groups for reward in group)))
def test_the_last_live_mean_is_the_final_mean(groups: list[list[float | None]]) -> None:
    rewards = [reward for group in groups for reward in group]
    table = RolloutTable(
        prompt_index=np.repeat(np.arange(len(groups)), 4),
        rollout_index=np.tile(np.arange(4), len(groups)),
        is_scored=np.array([reward is not None for reward in rewards]),
        reward=np.array([np.nan if reward is None else reward for reward in rewards]),
        turns=np.ones(len(rewards), dtype=np.int64),
    )
    final, live = summarize(table, None, SETTINGS, seconds=None).metrics, played(groups)
    assert live.reward_mean == pytest.approx(final["eval/reward/mean"])
    assert live.success_rate == pytest.approx(final["eval/reward/pass_at_1"])
    assert live.num_prompts == len(groups)


@settings(deadline=None)
@given(GROUPS, st.randoms())
def test_the_order_in_which_rollouts_end_does_not_matter_to_the_end(
    groups: list[list[float | None]], random: Random
) -> None:
    order = list(range(len(groups)))
    random.shuffle(order)
    assert played(groups, order) == played(groups)


def test_a_prompt_that_still_plays_holds_back_those_behind_it() -> None:
    totals = RunningTotals(SETTINGS, 2, [7, 3, 5])
    totals.add(3, 1.0)
    totals.add(3, 1.0)
    totals.add(7, 0.0)
    assert totals.estimate().num_prompts == 0
    assert np.isnan(totals.estimate().reward_mean)
    assert totals.estimate().success_interval is None
    totals.add(7, 0.0)
    estimate = totals.estimate()
    assert (estimate.num_prompts, estimate.reward_mean, estimate.success_rate) == (2, 0.5, 0.5)
    totals.add(5, 1.0)  # its group is not complete
    assert totals.estimate() == estimate


def test_easy_prompts_that_end_first_do_not_lead_a_reader_astray_who_looks_after_every_rollout() -> None:
    rng = np.random.default_rng(15)
    missed, missed_by_all_finished = 0, 0
    for _ in range(60):
        rates = rng.beta(0.84, 1.16, 60)  # mean 0.42
        totals, ends = RunningTotals(SETTINGS, 1, range(60)), [0.0] * 20
        rollouts: list[tuple[float, int, bool]] = []
        for prompt, rate in enumerate(rates):  # 20 at a time; failures take several times as long
            is_success = bool(rng.random() < rate)
            end = heapq.heappop(ends) + float(rng.exponential(0.3 if is_success else 2.0))
            heapq.heappush(ends, end)
            rollouts.append((end, prompt, is_success))
        finished: list[bool] = []
        is_missed, is_missed_by_all_finished = False, False
        for _, prompt, is_success in sorted(rollouts):
            totals.add(prompt, float(is_success))
            finished.append(is_success)
            interval = totals.estimate().success_interval or (0.0, 1.0)
            low, high = rate_interval_of(finished)
            is_missed |= not interval[0] <= 0.42 <= interval[1]
            is_missed_by_all_finished |= len(finished) >= 10 and not low <= 0.42 <= high
        missed += is_missed
        missed_by_all_finished += is_missed_by_all_finished
    assert missed <= 7  # Binomial(60, 0.05): at most 7 with probability 0.99
    assert missed_by_all_finished >= 20


def rate_interval_of(finished: list[bool]) -> tuple[float, float]:
    """A 95% interval for one look at a rate of independent rollouts."""
    low, high = stats.binomtest(sum(finished), len(finished)).proportion_ci(method="wilson")
    return float(low), float(high)


def test_prompts_that_are_complete_take_no_memory() -> None:
    totals = RunningTotals(SETTINGS, 2, range(20_000))
    for number in range(2):
        totals.add(0, float(number))
    totals.estimate()
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


def test_rollouts_of_one_prompt_count_as_one() -> None:
    alike = played([[float(prompt % 2)] * 8 for prompt in range(40)]).success_interval
    mixed = played([[0.0, 1.0] * 4 for _ in range(40)]).success_interval
    assert alike is not None
    assert mixed is not None
    assert alike[1] - alike[0] > 1.5 * (mixed[1] - mixed[0])


@pytest.mark.parametrize("failed", ["zero", "exclude"])
def test_a_failed_rollout_counts_as_the_job_says(failed: Literal["zero", "exclude"]) -> None:
    totals = RunningTotals(MetricSettings((1,), 1.0, failed_rollouts=failed), 2, range(3))
    for prompt, reward in ((0, None), (0, None), (1, 1.0), (1, None), (2, 1.0), (2, 1.0)):
        totals.add(prompt, reward)
    estimate = totals.estimate()
    assert (estimate.num_prompts, estimate.reward_mean) == ((3, 0.5) if failed == "zero" else (2, 1.0))


def test_rewards_of_an_unknown_range_have_no_interval_and_the_reason() -> None:
    estimate = played([[0.2, 0.4], [3.0, 0.1], [0.2, 0.3]])
    assert estimate.reward_interval is None
    assert estimate.no_reward_interval == "rewards leave [0, 1], so their range is not known"
    assert estimate.reward_mean == pytest.approx(0.7)
    assert estimate.success_interval is not None


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=40))
def test_limits_never_leave_the_possible_range(groups: list[list[float]]) -> None:
    estimate = played([list(group) for group in groups])
    for interval in (estimate.reward_interval, estimate.success_interval):
        assert interval is not None
        assert 0 <= interval[0] <= interval[1] <= 1
