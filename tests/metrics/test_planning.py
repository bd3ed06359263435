"""What an evaluation needs to see a difference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from benchmarks.calibration.comparisons import power_of_plan
from heldout.errors import MetricError
from heldout.metrics.planned_rates import PlannedRates
from heldout.metrics.planning import (
    Spread,
    next_rollouts,
    plan,
    power_of,
    smallest_difference,
    spread_from_pair,
    spread_from_rates,
    spread_from_run,
)
from heldout.metrics.sample import Sample
from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import FloatArray, RolloutTable


def sample(rewards_PG: FloatArray) -> Sample:
    prompts, size = rewards_PG.shape
    table = RolloutTable(
        prompt_index=np.repeat(np.arange(prompts), size),
        rollout_index=np.tile(np.arange(size), prompts),
        is_scored=np.ones(prompts * size, dtype=np.bool_),
        reward=rewards_PG.ravel(),
        turns=np.ones(prompts * size, dtype=np.int64),
    )
    return Sample.of(table, MetricSettings((1,), 1.0))


def test_the_spread_of_assumed_rates_by_hand() -> None:
    # before 0.5 * 0.5 = 0.25, after 0.6 * 0.4 = 0.24; 0.2 * (0.49 - 2 * 0.5 * sqrt(0.06)) and 0.8 * 0.49
    spread = spread_from_rates(0.5, 0.1, correlation=0.2, likeness=0.5)
    assert spread.between == pytest.approx(0.2 * (0.49 - np.sqrt(0.06)))
    assert spread.within == pytest.approx(0.392)


def test_the_textbook_number_of_prompts() -> None:
    # Variance 1 for a difference of 0.5 at power 0.8: (1.96 + 0.84)**2 / 0.25 = 31.4, and 34 by the t distribution.
    option = plan(Spread(between=1.0, within=0.0), 0.5, power=0.8, group_sizes=[1]).options[0]
    assert option.num_prompts == 34
    assert option.power >= 0.8


@settings(deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(10, 500), st.sampled_from([1, 4, 16]), st.floats(0.05, 0.5))
def test_power_grows_with_prompts_rollouts_and_the_difference(
    between: float, within: float, prompts: int, size: int, difference: float
) -> None:
    spread = Spread(between, within)
    power = power_of(spread, prompts, size, difference)
    assert 0 <= power <= 1
    assert power_of(spread, prompts + 10, size, difference) >= power - 1e-9
    assert power_of(spread, prompts, 2 * size, difference) >= power - 1e-9
    assert power_of(spread, prompts, size, difference + 0.1) >= power - 1e-9


@settings(deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(10, 2000), st.floats(0.5, 0.95))
def test_the_smallest_difference_is_seen_with_exactly_the_power_asked_for(
    between: float, within: float, prompts: int, power: float
) -> None:
    spread = Spread(between, within)
    difference = smallest_difference(spread, prompts, 4, power=power)
    assert difference is not None
    assert power_of(spread, prompts, 4, difference) == pytest.approx(power, abs=1e-6)


def test_no_difference_can_be_planned_with_five_prompts() -> None:
    assert smallest_difference(Spread(0.1, 0.1), 5, 4) is None
    assert power_of(Spread(0.1, 0.1), 5, 4, 1.0) == 0.0
    assert smallest_difference(Spread(0.1, 0.1), 7, 4) is not None


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_policy_that_always_or_never_succeeds_can_be_planned_for(rate: float) -> None:
    # The other one's rates are then the differences; nothing is alike or unlike about them.
    gain = 0.5 - rate
    planned = [plan(spread_from_rates(rate, gain, correlation=0.3, likeness=one), gain) for one in (0.0, 1.0)]
    assert planned[0] == planned[1]


def test_a_policy_that_always_succeeds_differs_from_one_that_never_does() -> None:
    found = plan(spread_from_rates(0.0, 1.0, correlation=0.3), 1.0)
    assert found.recommended is not None
    assert (found.recommended.num_prompts, found.recommended.power) == (20, 1.0)


def test_a_likeness_above_the_highest_there_is_makes_differences_no_more_lopsided() -> None:
    # Rates of 0.1 and 0.5 that go in the same order over prompts have a correlation of 0.78.
    third = [spread_from_rates(0.1, 0.4, correlation=0.3, likeness=one).third for one in (0.7, 0.9, 1.0)]
    assert third[0] != third[1] == third[2]


def test_a_plan_says_how_much_hangs_on_the_likeness_that_was_assumed() -> None:
    assumed, least, most = (spread_from_rates(0.5, 0.1, correlation=0.3, likeness=one) for one in (0.5, 0.0, 1.0))
    found = plan(assumed, 0.1, group_sizes=[4], extremes=[least, most])
    prompts = [plan(spread, 0.1, group_sizes=[4]).options[0].num_prompts for spread in (most, least)]
    assert found.advice.endswith(f"; {prompts[0]} to {prompts[1]} prompts if likeness is not as assumed")


def test_fewer_prompts_than_plans_are_made_for_are_said_to_be_too_few() -> None:
    found = plan(Spread(between=0.01, within=0.1), 0.5, max_prompts=15)
    assert found.recommended is None
    assert found.advice.startswith("plans are made for 20 prompts or more: with 15")


def test_lopsided_differences_are_seen_more_often_when_the_tail_is_on_the_side_of_the_effect() -> None:
    even = Spread(between=0.04, within=0.0)
    with_it, against_it = (Spread(0.04, 0.0, (sign * 0.04**1.5, 0.0, 0.0)) for sign in (1, -1))
    assert with_it.skewness(4) == pytest.approx(1.0)
    powers = [power_of(spread, 30, 4, 0.1) for spread in (against_it, even, with_it)]
    assert powers == sorted(powers)
    assert powers[2] - powers[0] > 0.05


@pytest.mark.parametrize(("prompts", "skewness", "difference"), [(20, 1.0, 0.7), (30, 1.0, 0.5), (20, 2.0, 0.6)])
def test_the_power_for_lopsided_differences_is_how_often_drawn_ones_are_seen(
    prompts: int, skewness: float, difference: float
) -> None:
    shape = 4 / skewness**2
    drawn = np.random.default_rng(6).gamma(shape, 1 / np.sqrt(shape), (20_000, prompts)) - np.sqrt(shape) + difference
    t = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1) * np.sqrt(prompts)
    seen = float((np.abs(t) > special.stdtrit(prompts - 1, 0.975)).mean())
    # The gamma distribution is what the formula takes; three standard errors of 20,000 draws are 0.008.
    assert power_of(Spread(1.0, 0.0, (skewness, 0.0, 0.0)), prompts, 1, difference) == pytest.approx(seen, abs=0.015)


@pytest.mark.parametrize("likeness", [0.0, 1.0])
def test_the_third_moment_of_assumed_rates_is_that_of_drawn_differences(likeness: float) -> None:
    spread = spread_from_rates(0.1, 0.1, correlation=0.3, likeness=likeness)
    rng = np.random.default_rng(9)
    places = rng.random((2, 400_000))
    before, after = (
        special.betaincinv(rate / 0.3 * 0.7, (1 - rate) / 0.3 * 0.7, place)
        for rate, place in ((0.1, places[0]), (0.2, places[0 if likeness == 1 else 1]))
    )
    drawn = (rng.binomial(4, after) - rng.binomial(4, before)) / 4
    third = float(np.mean((drawn - drawn.mean()) ** 3))
    assert sum(part / 4**power for power, part in enumerate(spread.third)) == pytest.approx(third, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "difference", "size", "likeness"),
    [(0.1, 0.1, 16, 1.0), (0.8, 0.1, 4, 1.0), (0.97, 0.02, 16, 1.0), (0.9, 0.08, 4, 1.0), (0.5, 0.1, 4, 0.8)],
)
def test_a_plan_promises_the_power_that_the_comparison_has(
    rate: float, difference: float, size: int, likeness: float
) -> None:
    found = power_of_plan(rate, difference, size, 0.3, likeness, 400, np.random.default_rng(11))
    # Two standard errors of 400 comparisons are 0.04.
    assert found.promised - found.found < 0.07


def test_a_difference_up_from_0_is_planned_like_its_mirror_image_down_from_1() -> None:
    up, down = (
        plan(spread_from_rates(rate, gain, correlation=0.3), gain, group_sizes=[4])
        for rate, gain in ((0.0, 0.2), (1.0, -0.2))
    )
    assert up.options == down.options


def test_success_rates_near_0_need_more_prompts_than_their_variance_says() -> None:
    spread = spread_from_rates(0.02, 0.03, correlation=0.3, likeness=0.9)
    by_variance = Spread(spread.between, spread.within, spread.third)
    rates, others = (plan(one, 0.03, group_sizes=[4]).options[0].num_prompts for one in (spread, by_variance))
    assert rates > 1.1 * others


def test_the_smallest_difference_of_success_rates_is_seen_with_the_power_asked_for() -> None:
    spread = spread_from_rates(0.1, 0.1, correlation=0.3)
    difference = smallest_difference(spread, 40, 4)
    assert difference is not None
    assert power_of(spread, 40, 4, difference) == pytest.approx(0.8, abs=0.005)


def test_out_of_prompts_the_plan_turns_to_bigger_groups() -> None:
    found = plan(Spread(between=0.01, within=0.5), 0.1, max_prompts=40)
    assert found.recommended is not None
    assert found.recommended.num_prompts <= 40
    assert found.recommended.group_size > 1


def test_out_of_reach_says_what_could_be_seen() -> None:
    found = plan(Spread(between=0.5, within=0.5), 0.05, max_prompts=30)
    assert found.recommended is None
    assert "30 prompts cannot show a difference of 0.05 however large the groups" in found.advice
    assert "the smallest difference they could show is 0.37;" in found.advice  # (2.05 + 0.85) sqrt(0.5 / 30)


def test_without_a_limit_more_prompts_beat_bigger_groups() -> None:
    found = plan(spread_from_rates(0.5, 0.1, correlation=0.3), 0.1)
    assert found.recommended is not None
    assert found.recommended.group_size == 1


def test_a_pilot_tells_prompts_from_rollouts() -> None:
    rng = np.random.default_rng(7)
    rates = rng.beta(2, 2, size=4000)  # variance 1/20 between prompts; mean of p (1 - p) is 1/4 - 1/20 within
    pilot = sample((rng.random((4000, 8)) < rates[:, None]).astype(np.float64))
    spread = spread_from_run(pilot, of_success=True, likeness=0.0)
    assert spread.between == pytest.approx(2 / 20, rel=0.06)
    assert spread.within == pytest.approx(2 * (1 / 4 - 1 / 20), rel=0.06)


def test_a_pair_of_pilots_on_the_same_hard_prompts_has_no_spread_between() -> None:
    rng = np.random.default_rng(8)
    rates = rng.beta(2, 2, size=4000)[:, None]
    pilots = [sample((rng.random((4000, 4)) < rates).astype(np.float64)) for _ in range(2)]
    spread = spread_from_pair(*pilots, of_success=True)
    assert spread.between < 0.01
    assert spread.within == pytest.approx(2 * (1 / 4 - 1 / 20), rel=0.06)


def test_where_the_next_rollout_helps() -> None:
    found = next_rollouts(Spread(between=0.3, within=0.4), num_prompts=100, group_size=4)
    assert found.error == pytest.approx(np.sqrt(0.4 / 100))  # 0.3 + 0.4 / 4
    assert found.prompt_share == pytest.approx(0.75)
    assert found.error_with_twice_the_prompts < found.error_with_twice_the_group < found.error


@pytest.mark.parametrize(
    ("rate", "difference", "correlation", "message"),
    [
        (1.2, 0.1, 0.2, r"rate is 1\.2; it must be between 0 and 1"),
        (0.95, 0.1, 0.2, r"rate \+ difference is 1\.05"),
        (0.5, 0.1, 2.0, r"correlation is 2\.0"),
    ],
)
def test_rates_that_cannot_be_are_refused(rate: float, difference: float, correlation: float, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        spread_from_rates(rate, difference, correlation=correlation)


def test_a_pilot_without_a_group_of_two_cannot_be_planned_from() -> None:
    with pytest.raises(MetricError, match="the pilot has 3 prompts, 0 of them with two rollouts or more"):
        spread_from_run(sample(np.ones((3, 1))), of_success=True)


def test_one_of_two_pilots_may_show_no_spread() -> None:
    # A base that never succeeds still shows how the other spreads.
    never, now_and_then = np.zeros((4, 2)), np.array([[1.0, 0.0]] * 4)
    assert spread_from_pair(sample(never), sample(now_and_then), of_success=True).within > 0


def test_a_difference_of_zero_cannot_be_planned_for() -> None:
    with pytest.raises(MetricError, match="plan for a difference that is not 0"):
        plan(Spread(0.1, 0.1), 0.0)


@pytest.mark.parametrize("sizes", [[], [4, 0]])
def test_groups_without_a_rollout_cannot_be_planned_for(sizes: list[int]) -> None:
    with pytest.raises(MetricError, match="each must be an integer from 1 up"):
        plan(Spread(0.1, 0.1), 0.1, group_sizes=sizes)


def test_a_pilot_whose_rollouts_agree_within_each_prompt_is_planned_from() -> None:
    agreeing = sample(np.array([[1.0, 1.0], [0.0, 0.0]] * 10))
    for likeness in (0.0, 0.5, 1.0):
        spread = spread_from_run(agreeing, of_success=True, likeness=likeness)
        assert spread.within == 0
        assert spread.between == pytest.approx(2 * (1 - likeness) * 5 / 19)  # 20 * 0.25 / 19
        assert plan(spread, 0.1).recommended is not None


def test_a_pair_of_pilots_that_agree_in_everything_is_not_called_all_equal() -> None:
    agreeing = sample(np.array([[1.0, 1.0], [0.0, 0.0]] * 10))
    with pytest.raises(
        MetricError, match="the two pilots differ by 0 on every prompt, and their rollouts agree"
    ) as caught:
        spread_from_pair(agreeing, agreeing, of_success=True)
    assert "all equal" not in str(caught.value)


@pytest.mark.parametrize(("of_success", "words"), [(True, "all rollouts of the pilot succeed"), (False, "same reward")])
def test_a_pilot_without_any_spread_says_in_what_its_rollouts_agree(of_success: bool, words: str) -> None:
    with pytest.raises(MetricError, match=words):
        spread_from_run(sample(np.ones((4, 2))), of_success=of_success)


def test_a_plan_says_how_far_its_pilot_may_be_off() -> None:
    rng = np.random.default_rng(3)
    rates = rng.beta(0.7, 0.7, 1000)[:, None]
    found = {}
    for prompts in (20, 1000):
        pilot = sample((rng.random((prompts, 4)) < rates[:prompts]).astype(np.float64))
        found[prompts] = plan(spread_from_run(pilot, of_success=True), 0.1, group_sizes=[4])
    for planned in found.values():
        known, recommended = planned.uncertainty, planned.recommended
        assert known is not None
        assert recommended is not None
        fewest, most = known.num_prompts
        assert most is not None
        assert fewest < recommended.num_prompts < most
        assert known.power[0] < 0.8 < known.power[1]
        assert f"{fewest:,} to {most:,} prompts may be needed" in planned.advice
    small, large = found[20].uncertainty, found[1000].uncertainty
    assert small is not None
    assert large is not None
    assert small.power[1] - small.power[0] > 4 * (large.power[1] - large.power[0])


def test_an_assumed_rate_has_no_pilot_to_be_unsure_of() -> None:
    assert plan(spread_from_rates(0.5, 0.1, correlation=0.3), 0.1).uncertainty is None


@pytest.mark.parametrize("pilots", [1, 2])
def test_the_range_of_a_plan_holds_the_prompts_that_are_truly_needed(pilots: int) -> None:
    """Beta(0.7, 0.7) has variance 5/48; the two policies share the rates of half of the prompts."""
    rng = np.random.default_rng(5)
    between = 0.25 / 2.4
    rates = PlannedRates(0.5, (1 / 2.4, 1 / 2.4), likeness=0.5)
    truth = Spread(between, 2 * (0.25 - between), rates=rates)
    needed = plan(truth, 0.15, group_sizes=[2]).options[0].num_prompts
    held = 0
    for _ in range(100):
        one, other = rng.beta(0.7, 0.7, (2, 25, 1))
        other = np.where(rng.random((25, 1)) < 0.5, one, other)
        drawn = [sample((rng.random((25, 4)) < p).astype(np.float64)) for p in (one, other)]
        spread = (
            spread_from_run(drawn[0], of_success=True) if pilots == 1 else spread_from_pair(*drawn, of_success=True)
        )
        known = plan(spread, 0.15, group_sizes=[2]).uncertainty
        assert known is not None
        held += known.num_prompts[0] <= needed <= (known.num_prompts[1] or needed)
    assert held >= 88  # of 100, for 95%: binomial, with probability 0.998


@pytest.mark.parametrize("pass_k", [2, 5, 8, 100])
def test_a_plan_recommends_groups_that_can_give_the_pass_k_asked_for(pass_k: int) -> None:
    found = plan(spread_from_rates(0.5, 0.1, correlation=0.3), 0.1, pass_k=pass_k)
    assert found.recommended is not None
    assert found.recommended.group_size == pass_k
    assert all(option.group_size >= pass_k for option in found.options)
    assert f"smaller groups cannot give pass^{pass_k}" in found.advice


def test_a_pass_k_of_no_rollouts_cannot_be_planned_for() -> None:
    with pytest.raises(MetricError, match="pass_k is 0"):
        plan(Spread(0.1, 0.1), 0.1, pass_k=0)
