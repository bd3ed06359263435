"""The live numbers agree with the final ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.metrics.running import RunningTotals
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import summarize
from heldout.metrics.table import RolloutTable

ROLLOUTS = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]))), min_size=1, max_size=60
)


@given(ROLLOUTS)
def test_the_live_mean_is_the_final_mean(rollouts: list[tuple[int, float | None]]) -> None:
    settings = MetricSettings((1,), 1.0)
    totals = RunningTotals(settings)
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
        summarize(table, None, settings, seconds=None).metrics["eval/reward/mean"]
    )


def test_nothing_yet_is_not_zero() -> None:
    estimate = RunningTotals(MetricSettings((1,), 1.0)).estimate()
    assert np.isnan(estimate.reward_mean)
    assert estimate.reward_interval is None
    assert estimate.num_rollouts == 0


def test_rollouts_of_one_prompt_count_as_one_cluster() -> None:
    clustered, spread = RunningTotals(MetricSettings((1,), 1.0)), RunningTotals(MetricSettings((1,), 1.0))
    for j in range(80):
        clustered.add(j % 8, float(j % 2))  # every prompt always has the same outcome
        spread.add(j % 8, float(j % 3 > 0))  # outcomes differ within prompts
    wide, narrow = clustered.estimate().success_interval, spread.estimate().success_interval
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_excluded_failures_leave_no_trace() -> None:
    totals = RunningTotals(MetricSettings((1,), 1.0, failed_rollouts="exclude"))
    totals.add(0, None)
    totals.add(1, 1.0)
    assert totals.estimate().reward_mean == 1.0
    assert totals.estimate().num_prompts == 1
