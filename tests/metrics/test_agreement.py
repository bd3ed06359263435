"""Agreement of the reward with an independent score, and the order in which disagreements are listed."""

import numpy as np
import pytest
from scipy import stats

from heldout.errors import MetricError
from heldout.metrics.agreement import agreement

NAN = float("nan")


def test_the_confusion_at_the_threshold_by_hand() -> None:
    reward = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    score = np.array([0.9, 0.2, 0.8, 0.1, 0.7])
    found = agreement(reward, score, np.arange(5), reward_threshold=1.0, score_threshold=0.5).confusion
    assert (found.both_succeed, found.only_reward, found.only_score, found.neither) == (2, 1, 1, 1)
    assert found.agreement == 3 / 5


def test_the_rank_correlation_is_spearmans_ties_included() -> None:
    rng = np.random.default_rng(2)
    reward = rng.integers(0, 4, 200).astype(float)
    score = reward + rng.integers(0, 5, 200).astype(float)
    found = agreement(reward, score, np.arange(200), reward_threshold=1, score_threshold=1)
    assert found.rank_correlation == pytest.approx(stats.spearmanr(reward, score).statistic)


def test_the_rollouts_that_disagree_most_come_first() -> None:
    reward, score = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 0.0, 3.0, -5.0])
    found = agreement(reward, score, np.arange(4), reward_threshold=1, score_threshold=1)
    assert found.disagreements[0] == 3  # best reward, worst score


def test_rollouts_without_reward_or_score_are_left_out() -> None:
    found = agreement(
        np.array([1.0, NAN, 0.0]), np.array([1.0, 1.0, NAN]), np.arange(3), reward_threshold=1, score_threshold=1
    )
    assert found.num_rollouts == 1
    assert np.isnan(found.rank_correlation)
    assert found.rank_interval is None


def test_no_rollout_with_a_reward_and_a_score_is_refused() -> None:
    with pytest.raises(MetricError, match="no rollout has both a reward and a score"):
        agreement(np.array([NAN]), np.array([1.0]), np.array([0]), reward_threshold=1, score_threshold=1)


def test_rollouts_of_one_prompt_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    x = np.repeat(rng.standard_normal(30), 10) + 0.1 * rng.standard_normal(300)
    y = np.repeat(rng.standard_normal(30), 10) + 0.1 * rng.standard_normal(300)
    alone = agreement(x, y, np.arange(300), reward_threshold=0, score_threshold=0).rank_interval
    by_prompt = agreement(x, y, np.repeat(np.arange(30), 10), reward_threshold=0, score_threshold=0).rank_interval
    assert alone is not None
    assert by_prompt is not None
    assert by_prompt[1] - by_prompt[0] > 2 * (alone[1] - alone[0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ranks_that_agree_or_differ_entirely_have_no_interval(sign: float) -> None:
    reward = np.arange(10.0)
    found = agreement(reward, sign * reward, np.arange(10), reward_threshold=1, score_threshold=1)
    assert found.rank_correlation == sign
    assert found.rank_interval is None


def test_the_rank_interval_is_as_wide_as_leaving_out_one_prompt_after_the_other_shows() -> None:
    rng = np.random.default_rng(12)
    prompts = np.repeat(np.arange(150), 2)
    level = np.repeat(rng.gamma(1.0, 2.0, 150), 2)
    reward, score = (np.round(level + rng.gamma(1.0, 1.0, 300)) for _ in range(2))  # skew, and with many ties
    found = agreement(reward, score, prompts, reward_threshold=1, score_threshold=1).rank_interval
    assert found is not None
    without = np.array([stats.spearmanr(reward[prompts != p], score[prompts != p]).statistic for p in range(150)])
    error = np.sqrt(149 / 150 * np.square(without - without.mean()).sum()) / (1 - without.mean() ** 2)
    assert np.diff(np.arctanh(found)) == pytest.approx(2 * stats.t.ppf(0.975, 149) * error, rel=0.02)


def test_the_rank_interval_covers_as_often_as_it_says() -> None:
    # Bivariate normal with correlation r has Spearman's 6 / pi * asin(r / 2); 400 draws of 60: 95% +- 3 standard errors.
    rng = np.random.default_rng(6)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    hits = 0
    for _ in range(400):
        x = rng.standard_normal(60)
        y = 0.6 * x + 0.8 * rng.standard_normal(60)
        interval = agreement(x, y, np.arange(60), reward_threshold=0, score_threshold=0).rank_interval
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    assert 0.917 <= hits / 400 <= 0.983
