"""Quantiles and their intervals."""

import numpy as np
import pytest

from heldout.errors import MetricError
from heldout.metrics.intervals import quantile


def test_the_median_of_a_few_rows_by_hand() -> None:
    assert quantile(np.array([5.0, 1.0, 3.0]), np.arange(3), 0.5).value == 3.0
    assert quantile(np.array([4.0, 1.0, 3.0, 2.0]), np.arange(4), 0.5).value == 2.0
    assert [quantile(np.array([4.0, 1.0, 3.0, 2.0]), np.arange(4), share).value for share in (0.01, 0.99)] == [1.0, 4.0]


def test_one_prompt_has_a_median_and_no_interval() -> None:
    assert quantile(np.array([1.0, 2.0, 3.0]), np.zeros(3, dtype=np.int64), 0.5).interval is None


@pytest.mark.parametrize(("prompts", "share"), [(5, 0.5), (35, 0.9), (35, 0.1)])
def test_too_few_prompts_to_show_what_lies_beyond_a_quantile_give_no_interval(prompts: int, share: float) -> None:
    # 0.025 ** (1 / 6) = 0.54, 0.025 ** (1 / 36) = 0.903: with a prompt more there is one.
    values = np.random.default_rng(1).standard_normal(prompts + 1)
    too_few = quantile(values[:-1], np.arange(prompts), share)
    assert too_few.interval is None
    assert (
        too_few.no_interval == f"{prompts} prompts: no interval, since values beyond all of these cannot be ruled out"
    )
    enough = quantile(values, np.arange(prompts + 1), share)
    assert enough.interval is not None
    assert enough.no_interval is None
    assert enough.interval.low <= enough.value <= enough.interval.high


def test_one_rollout_a_prompt_has_the_order_statistics_of_the_sign_test() -> None:
    # Of 20 values the 6th and the 15th: binomial(20, 1/2) is at most 5 with probability 0.021, at most 6 with 0.058.
    assert quantile(np.arange(1.0, 21.0), np.arange(20), 0.5).interval == (6.0, 15.0)


def test_rollouts_that_repeat_their_prompt_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).standard_normal(40)
    once = quantile(values, np.arange(40), 0.5).interval
    repeated = quantile(np.repeat(values, 10), np.repeat(np.arange(40), 10), 0.5).interval
    assert once is not None
    assert repeated is not None
    assert repeated.high - repeated.low > 0.8 * (once.high - once.low)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_covers_as_often_as_it_says(share: float) -> None:
    rng = np.random.default_rng(2)
    truth = float(np.sqrt(2) * np.quantile(np.random.default_rng(3).standard_normal(400_000), share))
    prompts = np.repeat(np.arange(60), 4)
    hits = 0
    for _ in range(300):
        values = np.repeat(rng.standard_normal(60), 4) + rng.standard_normal(240)
        interval = quantile(values, prompts, share).interval
        assert interval is not None
        hits += interval.low <= truth <= interval.high
    assert hits / 300 > 0.912  # 0.95 less three standard errors


@pytest.mark.parametrize("share", [0, 1, 50])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(
        MetricError, match=rf"share is {share}; it must lie between 0 and 1, such as 0\.5 for the median"
    ):
        quantile(np.array([1.0]), np.array([0]), share)


def test_an_empty_sample_has_no_quantile() -> None:
    with pytest.raises(MetricError, match="a quantile needs numbers and their prompts"):
        quantile(np.array([]), np.array([], dtype=np.int64), 0.5)
    with pytest.raises(MetricError, match=r"got \(1,\) values, \(2,\) prompts"):
        quantile(np.array([1.0]), np.array([0, 1]), 0.5)
