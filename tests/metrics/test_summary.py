"""A run in numbers: every name of the contract on tables small enough to do by hand."""

import numpy as np
import pytest

from heldout.errors import MetricError
from heldout.metrics.sample import linearized
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import Summary, summarize
from heldout.metrics.table import FloatArray, RolloutTable, TurnTable

NAN = float("nan")
SETTINGS = MetricSettings(pass_k_values=(1, 2, 4), success_threshold=1.0)


def rollout_table(groups: list[list[float | None]], turns: list[int] | None = None) -> RolloutTable:
    """One inner list for each prompt; None is a rollout that failed for good."""
    rewards = [reward for group in groups for reward in group]
    return RolloutTable(
        prompt_index=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        rollout_index=np.array([j for group in groups for j in range(len(group))], dtype=np.int64),
        is_scored=np.array([reward is not None for reward in rewards], dtype=np.bool_),
        reward=np.array([NAN if reward is None else reward for reward in rewards], dtype=np.float64),
        turns=np.array(turns if turns is not None else [1] * len(rewards), dtype=np.int64),
    )


def turn_table(
    rollout_row: list[int],
    prompt_tokens: list[float],
    response_tokens: list[float],
    logprobs: list[tuple[float, ...]],
) -> TurnTable:
    """One entry of each list for each turn; the log-probabilities are those of its tokens."""
    nonzero = [np.array([value for value in values if value]) for values in logprobs]
    return TurnTable(
        rollout_row=np.array(rollout_row),
        prompt_tokens=np.array(prompt_tokens),
        response_tokens=np.array(response_tokens),
        logprob_zero_count=np.array([values.count(0) for values in logprobs]),
        logprob_nz_count=np.array([len(values) for values in nonzero]),
        logprob_nz_sum=np.array([values.sum() for values in nonzero]),
        logprob_nz_squares=np.array([np.square(values).sum() for values in nonzero]),
        logprob_nz_min=np.array([values.min() if len(values) else NAN for values in nonzero]),
        logprob_nz_max=np.array([values.max() if len(values) else NAN for values in nonzero]),
    )


def summary_of(groups: list[list[float | None]], settings: MetricSettings = SETTINGS) -> Summary:
    return summarize(rollout_table(groups), None, settings, seconds=None)


def test_reward_metrics_of_a_hand_made_run() -> None:
    summary = summary_of([[1.0, 0.0], [1.0, 1.0], [0.5, 0.0]])
    expected = {
        "mean": 3.5 / 6,  # (1 + 0 + 1 + 1 + 0.5 + 0) / 6
        "min": 0.0,
        "max": 1.0,
        "std": np.sqrt(3.25 / 6 - (3.5 / 6) ** 2),  # squares: 1 + 0 + 1 + 1 + 0.25 + 0 = 3.25
        "zero_frac": 2 / 6,
        "pass_at_1": 3 / 6,  # (1/2 + 1 + 0) / 3
        "pass_at_2": 2 / 3,  # two prompts have a success
        "pass_power_1": 3 / 6,
        "pass_power_2": 1 / 3,  # one prompt has both
        "succeeded_rollouts": 3,
        "failed_rollouts": 0,
        "num_prompts": 3,
        "rollouts_per_prompt": 2,
        "success_threshold": 1.0,
        "mean_within_groups": (0.5 + 1.0 + 0.25) / 3,
        "std_within_groups": (0.5 + 0.0 + 0.25) / 3,
        "min_within_groups": (0.0 + 1.0 + 0.0) / 3,
        "max_within_groups": (1.0 + 1.0 + 0.5) / 3,
    }
    found = {name.removeprefix("eval/reward/"): value for name, value in summary.metrics.items() if "reward" in name}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "groups",
    [
        [[1e308, 1.0], [1e308, 0.5], [-3.0, 1e308]],
        [[1e308, -1e308], [1e308, 1e308], [-1e308, -1e308]],
        [[1e308, 1e308], [1e308, 1e308], [1e308, 1.7e308]],
        [[1e-200, 1.0e-199], [1e-200, 3e-200], [0.0, 0.0]],
    ],
)
def test_numbers_beyond_what_a_float_can_hold_are_left_out_with_the_reason(groups: list[list[float | None]]) -> None:
    summary = summary_of(groups)  # warnings are errors here
    assert all(np.isfinite(value) for value in summary.metrics.values())
    assert all(np.isfinite(ends).all() for ends in summary.intervals.values())
    assert "64-bit float" in summary.notes["eval/reward/mean"]
    assert summary.metrics["eval/reward/max"] == max(reward or 0.0 for group in groups for reward in group)
    assert summary.intervals.keys() | summary.no_interval.keys() <= summary.metrics.keys()


def test_an_interval_of_what_cannot_be_negative_ends_at_zero() -> None:
    rewards: list[list[float | None]] = [[1.0]] * 4
    tokens = [1.0, 2.0, 1.0, 90_000.0]
    turns = turn_table([0, 1, 2, 3], tokens, tokens, [()] * 4)
    summary = summarize(rollout_table(rewards, [1, 2, 1, 90_000]), turns, SETTINGS, seconds=None)
    for name in ("eval/turns/mean", "eval/tokens/prompt_mean", "eval/tokens/response_mean"):
        low, high = summary.intervals[name]
        assert low == 0
        assert high > summary.metrics[name]
    below = summary_of([[-1.0], [-2.0], [-1.0], [90_000.0]])
    assert below.intervals["eval/reward/mean"][0] < 0


def test_a_k_above_every_group_is_absent_with_the_reason() -> None:
    summary = summary_of([[1.0, 0.0], [1.0, 1.0]])
    assert "eval/reward/pass_at_4" not in summary.metrics
    assert summary.notes["eval/reward/pass_at_4"] == "k = 4 needs 4 rollouts of a prompt; the largest group has 2"


def test_failed_rollouts_count_as_zero_unless_excluded() -> None:
    groups: list[list[float | None]] = [[1.0, None], [1.0, 1.0]]
    as_zero = summary_of(groups)
    assert as_zero.metrics["eval/reward/mean"] == 0.75  # (1 + 0 + 1 + 1) / 4
    assert as_zero.metrics["eval/reward/pass_at_1"] == 0.75  # (1/2 + 1) / 2
    assert as_zero.metrics["eval/reward/failed_rollouts"] == 1
    without = summary_of(groups, MetricSettings((1, 2), 1.0, failed_rollouts="exclude"))
    assert without.metrics["eval/reward/mean"] == 1.0
    assert without.metrics["eval/reward/pass_at_2"] == 1.0  # only the second prompt has two
    assert "1 prompts with fewer than 2 rollouts are left out" in without.notes["eval/reward/pass_at_2"]
    assert (without.scored, without.failed) == (3, 1)


@pytest.mark.parametrize(
    ("threshold", "reward", "succeeds"),
    [
        (1.0, 0.7 + 0.2 + 0.1, 1.0),
        (1.0, 1 - 0.9e-6, 1.0),
        (1.0, 1 - 1.1e-6, 0.0),
        (1e-9, 0.0, 0.0),
        (0.0, -1e-9, 0.0),
        (-1.0, -1.0000005, 1.0),
    ],
)
def test_a_reward_within_a_millionth_of_the_threshold_is_a_success(
    threshold: float, reward: float, succeeds: float
) -> None:
    settings = MetricSettings(pass_k_values=(1,), success_threshold=threshold)
    found = summary_of([[reward, reward]], settings).metrics
    assert found["eval/reward/pass_at_1"] == succeeds
    assert found["eval/reward/succeeded_rollouts"] == 2 * succeeds


def test_rewards_short_of_the_threshold_are_noted_beside_a_success_rate_of_zero() -> None:
    notes = summarize(rollout_table([[0.5], [0.95]]), None, SETTINGS, seconds=None).notes
    assert notes["eval/reward/pass_at_1"].endswith("; the highest reward is 0.95, short of success_threshold")


def test_an_incomplete_run_has_both_readings_of_its_failures() -> None:
    found = summary_of([[1.0, None, None, 0.0], [1.0, 1.0, 1.0, 0.0]])
    assert found.is_incomplete
    rates = {one.rule: one.metrics["eval/reward/pass_at_1"] for one in found.readings}
    assert rates == {"failed rollouts as reward 0": 0.5, "failed rollouts left out": (0.5 + 0.75) / 2}
    assert summary_of([[1.0, 1.0], [1.0, 0.0]]).readings == ()
    assert summary_of([[None, None], [None, None]]).readings == ()  # nothing was scored: there is no number at all


def test_a_failed_rollout_is_no_success_even_when_the_threshold_is_zero() -> None:
    summary = summary_of([[None, 0.0], [0.0, 0.0]], MetricSettings((1,), 0.0))
    assert summary.metrics["eval/reward/pass_at_1"] == 0.75  # (1/2 + 1) / 2
    assert summary.metrics["eval/reward/succeeded_rollouts"] == 3


def test_a_mean_over_groups_of_unequal_size_is_a_ratio() -> None:
    # 3 rollouts of 2.0 and one of 0.0: mean 6 / 4. Each prompt's value is 1.5 + (sum - 1.5 * size) / 2 (two rollouts a prompt).
    assert linearized(np.array([6.0, 0.0]), np.array([3.0, 1.0])) == pytest.approx([1.5 + 1.5 / 2, 1.5 - 1.5 / 2])


def test_one_prompt_has_values_and_no_interval() -> None:
    summary = summary_of([[1.0, 0.0, 1.0, 0.0]])
    assert summary.metrics["eval/reward/pass_at_2"] == pytest.approx(5 / 6)  # 1 - C(2,2) / C(4,2)
    assert summary.intervals == {}
    assert summary.notes["eval/reward/pass_at_1"].startswith("one prompt: no interval")
    assert summary.no_interval["eval/reward/pass_at_1"] == summary.notes["eval/reward/pass_at_1"]


def test_a_metric_has_an_interval_or_a_reason_why_not() -> None:
    # All but one prompt have mean reward 0.5: nothing shows how prompts like that one differ.
    groups: list[list[float | None]] = [[0.5, 0.5] for _ in range(9)]
    summary = summary_of([*groups, [0.25, 0.4]])
    assert "eval/reward/mean" not in summary.intervals
    assert summary.no_interval["eval/reward/mean"].startswith("all 10 prompts but one have the same value: no interval")
    assert not summary.no_interval.keys() & summary.intervals.keys()


def test_one_rollout_a_prompt_has_no_spread_within_groups() -> None:
    summary = summary_of([[1.0], [0.0], [1.0]])
    assert "eval/reward/std_within_groups" not in summary.metrics
    assert summary.notes["eval/reward/std_within_groups"] == "one rollout a prompt: no spread within groups"


def test_all_successes_say_what_the_prompts_can_rule_out() -> None:
    summary = summary_of([[1.0, 1.0]] * 30)
    low, high = summary.intervals["eval/reward/pass_at_1"]
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 30))  # 30 prompts without a failure, exactly
    assert "all rollouts succeeded" in summary.notes["eval/reward/pass_at_1"]
    assert summary.no_interval["eval/reward/mean"].startswith("all 30 prompts have the same value")
    assert summary.intervals["eval/reward/zero_frac"] == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    never = summary_of([[0.0, 0.0]] * 30)
    assert never.intervals["eval/reward/pass_at_1"] == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    assert (
        never.notes["eval/reward/pass_at_1"]
        == "no rollout succeeded: the interval is what this many prompts can rule out"
    )


def test_a_mean_of_rewards_0_and_1_has_the_interval_of_the_success_rate() -> None:
    summary = summary_of([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert summary.intervals["eval/reward/mean"] == pytest.approx(summary.intervals["eval/reward/pass_at_1"])


def test_a_mean_of_two_other_rewards_is_not_capped_at_the_greater() -> None:
    # Rewards of 0 and 0.1: 30 prompts without a success leave a success rate of up to 0.116, each with a reward of 1.
    rng = np.random.default_rng(2)
    summary = summary_of([[0.1 * float(x) for x in rng.random(4) < 0.4] for _ in range(30)])
    assert summary.intervals["eval/reward/pass_at_1"] == pytest.approx((0.0, 0.116), abs=1e-3)
    for name in ("mean", "mean_within_groups", "max_within_groups"):
        low, high = summary.intervals[f"eval/reward/{name}"]
        assert high >= summary.intervals["eval/reward/pass_at_1"][1]
        assert low > 0


def test_rewards_below_0_may_pull_the_mean_below_the_successes() -> None:
    rng = np.random.default_rng(2)
    summary = summary_of([[float(x) for x in rng.normal(-1, 1, 4)] for _ in range(30)])
    assert summary.intervals["eval/reward/mean"][1] < 0 < summary.intervals["eval/reward/pass_at_1"][1]


def test_turns_of_two_values_are_not_capped_at_the_greater() -> None:
    # All but two of 12 prompts take two turns: a prompt with more would not be surprising.
    groups: list[list[float | None]] = [[1.0]] * 12
    summary = summarize(rollout_table(groups, [1, 1] + [2] * 10), None, SETTINGS, seconds=None)
    assert summary.intervals["eval/turns/mean"][1] > 2


def test_no_rollouts_at_all_gives_counts_and_a_reason() -> None:
    summary = summary_of([])
    assert summary.metrics["eval/reward/num_prompts"] == 0
    assert summary.notes["eval/reward/mean"] == "no rollout to count: none has finished"


def test_only_failures_excluded_gives_a_reason() -> None:
    summary = summary_of([[None], [None]], MetricSettings((1,), 1.0, failed_rollouts="exclude"))
    assert "eval/reward/mean" not in summary.metrics
    assert "all 2 failed" in summary.notes["eval/reward/mean"]


def test_order_of_rows_does_not_matter() -> None:
    table = rollout_table([[1.0, 0.0, None], [0.5, 1.0, 0.25], [0.0, 0.0, 1.0]], turns=[1, 2, 3, 4, 5, 6, 7, 8, 9])
    order = np.random.default_rng(5).permutation(9)
    shuffled = RolloutTable(*(getattr(table, name)[order] for name in RolloutTable.__slots__))
    first, second = (summarize(t, None, SETTINGS, seconds=1.0) for t in (table, shuffled))
    assert first.metrics == pytest.approx(second.metrics)
    assert first.intervals.keys() == second.intervals.keys()
    for name, interval in first.intervals.items():
        assert interval == pytest.approx(second.intervals[name])


def test_turns_tokens_and_logprobs_of_a_hand_made_run() -> None:
    rollouts = rollout_table([[1.0], [0.0]], turns=[2, 1])
    turns = turn_table([0, 0, 1], [10.0, 20.0, NAN], [4.0, 6.0, 8.0], [(-1.0, 0.0), (-3.0,), ()])
    metrics = summarize(rollouts, turns, SETTINGS, seconds=12.5).metrics
    expected = {
        "eval/turns/mean": 1.5,
        "eval/turns/min": 1,
        "eval/turns/max": 2,
        "eval/tokens/prompt_mean": 15.0,  # the unknown one is left out
        "eval/tokens/response_mean": 6.0,
        "eval/tokens/response_min": 4.0,
        "eval/tokens/response_max": 8.0,
        "eval/tokens/response_std": np.sqrt(8 / 3),  # (4 + 0 + 4) / 3
        "eval/logprob/nz_mean": -2.0,
        "eval/logprob/nz_min": -3.0,
        "eval/logprob/nz_max": -1.0,
        "eval/logprob/nz_std": 1.0,
        "eval/logprob/zero_count": 1,
        "eval/logprob/zero_frac": 1 / 3,
        "eval/logprob/zero_per_group": 0.5,
        "timing_s/eval": 12.5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_unknown_tokens_and_logprobs_are_absent_and_not_zero() -> None:
    turns = turn_table([0, 1], [NAN, NAN], [NAN, NAN], [()] * 2)
    summary = summarize(rollout_table([[1.0], [0.0]]), turns, SETTINGS, seconds=None)
    assert not [name for name in summary.metrics if name.startswith(("eval/tokens", "eval/logprob", "timing"))]
    assert summary.notes["eval/tokens/response_mean"] == "the policy gave no token counts"
    assert summary.notes["eval/logprob/nz_mean"] == "the policy gave no log-probabilities"


def test_agent_metrics_become_columns_of_their_own() -> None:
    values: FloatArray = np.array([1.0, NAN, 0.5, 0.0])
    table = rollout_table([[1.0, 1.0], [0.0, 0.0]])
    summary = summarize(table, None, SETTINGS, agent_metrics={"completed": values}, seconds=None)
    assert summary.metrics["agent/completed"] == 0.5  # (1 + 0.5 + 0) / 3
    assert "agent/completed" in summary.intervals
    assert summary.notes["agent/completed"] == "from the 3 of 4 rollouts that gave one"


def test_missing_rollouts_are_known_only_when_the_plan_is() -> None:
    table = rollout_table([[1.0, 1.0], [0.0]])
    assert summarize(table, None, SETTINGS, seconds=None, expected_rollouts=4).missing == 1
    assert summarize(table, None, SETTINGS, seconds=None).missing is None


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(MetricError, match=r"columns of TurnTable differ in length: rollout_row 2, prompt_tokens 1"):
        turn_table([0, 1], [5.0], [5.0, 5.0], [(), ()])
    with pytest.raises(MetricError, match=r"columns of RolloutTable differ in length: prompt_index 2, .* reward 1"):
        RolloutTable(np.array([0, 1]), np.array([0, 0]), np.array([True, True]), np.array([1.0]), np.array([1, 1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pass_k_values": (0,), "success_threshold": 1.0},
            "pass_k_values has 0; every k must be an integer from 1 up",
        ),
        ({"pass_k_values": (1,), "success_threshold": NAN}, "success_threshold is nan; it must be a finite number"),
        ({"pass_k_values": (1,), "success_threshold": 1.0, "confidence": 95}, "confidence is 95; it must lie between"),
        ({"pass_k_values": (1,), "success_threshold": 1.0, "confidence": 0}, "confidence is 0; it must lie between"),
        (
            {"pass_k_values": (1,), "success_threshold": 1.0, "failed_rollouts": "none"},
            "failed_rollouts is 'none'; it must be 'zero' or 'exclude'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        MetricSettings(**settings)  # type: ignore[arg-type]
