"""Two runs, prompt by prompt: what is paired, what is said, and that p-value, interval and words agree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heldout.errors import MetricError
from heldout.metrics.comparison import Comparison, Side, compare
from heldout.metrics.failures import FailureReason
from heldout.metrics.gates import check_no_regression
from heldout.metrics.multiplicity import holm
from heldout.metrics.planning import smallest_difference, spread_from_rates
from heldout.metrics.ranking import rank
from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import FloatArray, RolloutTable

SETTINGS = MetricSettings(pass_k_values=(1, 2), success_threshold=1.0)
Groups = Mapping[str, Sequence[float | None]]


def side(name: str, groups: Groups, *, is_partial: bool = False, **agent_metrics: Sequence[float]) -> Side:
    """One entry for each prompt, under its key; a key with a `#` part is the same prompt listed again."""
    rewards = [reward for group in groups.values() for reward in group]
    sizes = [len(group) for group in groups.values()]
    table = RolloutTable(
        prompt_index=np.repeat(np.arange(len(groups)), sizes),
        rollout_index=np.array([j for size in sizes for j in range(size)], dtype=np.int64),
        is_scored=np.array([reward is not None for reward in rewards], dtype=np.bool_),
        reward=np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float64),
        turns=np.ones(len(rewards), dtype=np.int64),
    )
    metrics = {metric: np.array(values) for metric, values in agent_metrics.items()}
    return Side(name, table, {i: key.split("#")[0] for i, key in enumerate(groups)}, metrics, is_partial)


def with_metrics(name: str, groups: Groups, metrics: Mapping[str, FloatArray]) -> Side:
    """metrics: the agent's, shape (num_rollouts,) each."""
    return replace(side(name, groups), agent_metrics=metrics)


def compared(base: Groups, tuned: Groups, *, margin: float | None = None) -> Comparison:
    return compare(side("base", base), side("tuned", tuned), SETTINGS, margin=margin)


def all_same(reward: float, prompts: int = 8, rollouts: int = 2) -> dict[str, list[float]]:
    return {f"p{i}": [reward] * rollouts for i in range(prompts)}


def test_prompts_are_paired_by_content_and_not_by_position() -> None:
    found = compared({"a": [1.0, 1.0], "b": [0.0, 0.0]}, {"b": [0.0, 0.0], "a": [1.0, 1.0]})
    assert found.metrics["eval/reward/mean"].difference == 0
    assert (found.wins, found.losses, found.ties) == (0, 0, 2)


def test_what_only_one_side_has_is_named_and_left_out() -> None:
    found = compared({"a": [1.0], "b": [0.0]}, {"a": [1.0], "c": [1.0]})
    assert (found.only_base, found.only_fine_tuned, found.num_prompts) == (("b",), ("c",), 1)
    assert found.metrics["eval/reward/mean"].fine_tuned == 1.0
    assert "1 of 2 prompts are only in base and are left out" in found.notes


def test_the_same_prompt_listed_twice_is_one_group() -> None:
    twice = compared({"a": [1.0], "a#again": [0.0], "b": [1.0, 1.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.0]})
    once = compared({"a": [1.0, 0.0], "b": [1.0, 1.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.0]})
    assert twice.metrics == once.metrics
    assert twice.num_prompts == 2


def test_a_clear_gain_is_called_better_with_its_numbers() -> None:
    found = compared(all_same(0.0, prompts=20), all_same(1.0, prompts=20))
    # Either rate is bounded by 1 - 0.025 ** (1 / 20) = 0.168 away from its end: 1 - 0.168 * sqrt(2).
    assert found.verdict == "tuned is better than base in pass@1: +1.00 [0.76, 1.00]"
    assert found.metrics["eval/reward/pass_at_1"].p_value < 0.001


def test_a_clear_loss_is_called_worse() -> None:
    found = compared(all_same(1.0, prompts=20), all_same(0.0, prompts=20))
    assert found.verdict.startswith("tuned is worse than base in pass@1: -1.00")
    assert found.metrics["eval/reward/pass_at_1"].p_value == pytest.approx(1e-4)  # none of 9,999 subsets does as much
    assert found.primary == "eval/reward/pass_at_1"  # it succeeded once: that is what the verdict is about


def test_no_shown_difference_says_what_could_have_been_seen() -> None:
    base = {f"p{i}": [float(i % 2), 0.0] for i in range(40)}
    tuned = {f"p{i}": [float(i % 3 == 0), 0.0] for i in range(40)}
    found = compared(base, tuned)
    detectable = found.metrics["eval/reward/pass_at_1"].detectable
    assert detectable is not None
    assert found.verdict == (
        "no difference in pass@1 between tuned and base could be shown; "
        f"this evaluation could have seen {detectable:.2f} or more"
    )


def test_what_an_evaluation_could_have_seen_is_what_a_plan_of_its_size_sees() -> None:
    rng = np.random.default_rng(4)
    base, tuned = (
        {f"p{i}": (rng.random(4) < rate).astype(float).tolist() for i, rate in enumerate(rng.beta(0.7, 6.3, 40))}
        for _ in range(2)
    )
    found = compared(base, tuned).metrics["eval/reward/pass_at_1"]
    assert found.detectable is not None
    assert found.interval is not None
    planned = smallest_difference(spread_from_rates(0.1, 0.0, correlation=1 / 8, likeness=0.0), 40, 4)
    assert found.detectable == pytest.approx(planned, rel=0.35)
    assert found.detectable > max(found.difference - found.interval[0], found.interval[1] - found.difference)


def test_too_few_prompts_give_no_verdict() -> None:
    found = compared(all_same(0.0, prompts=6), all_same(1.0, prompts=6))
    assert found.metrics["eval/reward/pass_at_1"].interval is None
    assert found.metrics["eval/reward/pass_at_1"].p_value == 1.0
    assert found.verdict == (
        "no verdict on pass@1 of tuned against base: 6 shared prompts, and fewer than 7 cannot show any difference"
    )


def test_seven_prompts_that_all_move_are_enough() -> None:
    found = compared(all_same(0.0, prompts=7), all_same(1.0, prompts=7))
    # Of all 2**7 sign flips only the data themselves do as much: a half, on either side.
    assert found.metrics["eval/reward/pass_at_1"].p_value == pytest.approx(2 * 0.5 / 2**7)
    interval, detectable = (
        found.metrics["eval/reward/pass_at_1"].interval,
        found.metrics["eval/reward/pass_at_1"].detectable,
    )
    assert interval is not None
    assert detectable == pytest.approx(1 - interval[0])  # they do not scatter: the limits of both runs alone decide
    assert found.verdict.startswith("tuned is better")


def test_rewards_that_cannot_be_added_up_are_not_compared_and_the_successes_are() -> None:
    base = {f"p{i}": [0.0, 1e308] for i in range(8)}
    tuned = {f"p{i}": [1e308, 1e308] for i in range(8)}
    found = compared(base, tuned)  # warnings are errors here
    assert found.primary == "eval/reward/pass_at_1"
    assert "eval/reward/mean" not in found.metrics
    assert "eval/reward/mean is not compared: added up or squared, the values are beyond" in found.notes[-1]


def test_identical_runs_have_an_interval_as_wide_as_unseen_changes_allow() -> None:
    found = compared(all_same(1.0, prompts=30), all_same(1.0, prompts=30)).metrics["eval/reward/pass_at_1"]
    bound = 1 - 0.025 ** (1 / 30)  # more prompts than this share would have shown at least one change
    assert found.interval == pytest.approx((-bound, bound))
    assert found.p_value == 1.0
    # 5 that move the same way are the fewest that show a difference; of 30, each moving with this probability:
    assert stats.binom.sf(4, 30, found.detectable) == pytest.approx(0.8)


def test_rewards_that_are_the_same_in_both_runs_bound_no_change() -> None:
    same = {f"p{i}": [0.1 * i] for i in range(7)}
    found = compared(same, same).metrics["eval/reward/mean"]
    assert found.interval is None
    assert found.detectable is None
    assert found.verdict == (
        "no prompt differs in mean reward between tuned and base, and nothing bounds how far one could"
    )


def test_metrics_of_the_agent_are_compared_where_both_runs_have_them() -> None:
    base = side("base", all_same(0.0, 9, 2), steps=[4.0, np.nan] * 8 + [np.nan] * 2, speed=[1.0] * 18)
    tuned = side("tuned", all_same(0.0, 9, 2), steps=[np.nan] * 2 + [1.0, 2.0] * 8, tries=[1.0] * 18)
    found = compare(base, tuned, SETTINGS)
    assert list(found.metrics) == [
        *("eval/reward/pass_at_1", "eval/reward/pass_at_2", "eval/reward/pass_power_2"),
        *("eval/reward/mean", "eval/turns/mean", "agent/steps"),
    ]
    steps = found.metrics["agent/steps"]
    assert (steps.base, steps.fine_tuned, steps.num_prompts) == (
        4.0,
        1.5,
        7,
    )  # the first and the last prompt have one side
    assert steps.interval is None
    assert steps.verdict == (  # the catalog says that neither direction is better
        "tuned is lower than base in agent: steps: -2.50"
        " (all 7 prompts differ by the same amount: no interval, since none of it varies)"
    )


def test_the_primary_metric_stays_what_it_was_when_nothing_succeeds_and_the_verdict_names_the_other() -> None:
    base, tuned = (side(name, all_same(reward, prompts=10)) for name, reward in (("base", 0.1), ("tuned", 0.4)))
    found = compare(base, tuned, SETTINGS)
    assert found.primary == "eval/reward/pass_at_1"
    assert found.verdict.startswith("no difference in pass@1 between tuned and base could be shown")
    assert found.verdict.endswith("; but better in mean reward: +0.30")
    assert any("-H primary_metric='mean reward'" in note for note in found.notes)
    by_reward = compare(base, tuned, replace(SETTINGS, primary_metric="mean reward"))
    assert by_reward.primary == "eval/reward/mean"
    assert by_reward.verdict == (
        "tuned is better than base in mean reward: +0.30"
        " (all 10 prompts differ by the same amount: no interval, since none of it varies)"
    )


def test_small_samples_use_every_sign_flip() -> None:
    # By hand, all 2**8 sign flips of the differences: those with a higher sum, and half of those with the same.
    differences = [0.5, 1.0, -0.5, 1.0, 0.5, 1.0, 0.0, 0.5]
    base: Groups = {f"p{i}": [0.0, 1.0] if d < 0 else [0.0, 0.0] for i, d in enumerate(differences)}
    tuned: Groups = {
        f"p{i}": [0.0, 0.0] if d <= 0 else [1.0, 0.0 if d == 0.5 else 1.0] for i, d in enumerate(differences)
    }
    sums = [float(np.dot(flip, differences)) for flip in product((1, -1), repeat=8)]
    higher, equal = sum(s > sum(differences) for s in sums), sum(s == sum(differences) for s in sums)
    found = compared(base, tuned).metrics["eval/reward/pass_at_1"]
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.p_value == pytest.approx(2 * (higher + equal / 2) / 2**8)


def test_one_rollout_a_prompt_is_mcnemars_test_with_mid_p() -> None:
    # 6 prompts got better, 1 worse, 20 stayed: binomial(7, 1/2), P(0) + P(1) / 2 = (1 + 3.5) / 128, twice.
    base = {f"p{i}": [1.0 if i in (6, *range(7, 17)) else 0.0] for i in range(27)}
    tuned = {f"p{i}": [1.0 if i < 6 or 7 <= i < 17 else 0.0] for i in range(27)}
    assert compared(base, tuned).metrics["eval/reward/pass_at_1"].p_value == pytest.approx(9 / 128, abs=0.01)


@st.composite
def two_runs(draw: st.DrawFn) -> tuple[Groups, Groups]:
    """Two runs of the same prompts: near 0 or 1 or in the middle, alike or not, with rollouts that agree or do not."""
    prompts, rollouts = draw(st.integers(7, 30)), draw(st.sampled_from([1, 3, 4]))
    rates = [draw(st.sampled_from([0.0, 0.03, 0.4, 0.97, 1.0])) for _ in range(2)]
    partial, likeness = draw(st.sampled_from([1.0, 0.25])), draw(st.sampled_from([0.0, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    before = rng.random((prompts, rollouts))
    after = np.where(rng.random((prompts, 1)) < likeness, before, rng.random((prompts, rollouts)))
    base, tuned = before < rates[0], after < rates[1]
    return tuple(  # type: ignore[return-value]
        {
            f"p{i}": [1.0 if success and rng.random() < partial else 0.5 * success for success in row]
            for i, row in enumerate(run)
        }
        for run in (base, tuned)
    )


@settings(max_examples=40, deadline=None)
@given(two_runs())
def test_the_interval_leaves_out_zero_exactly_when_the_p_value_is_small(runs: tuple[Groups, Groups]) -> None:
    for metric in compared(*runs).metrics.values():
        if metric.interval is None:
            assert metric.no_interval
            continue
        low, high = metric.interval
        assert (low > 0 or high < 0) == (metric.p_value <= 0.05)
        assert low - 1e-12 <= metric.difference <= high + 1e-12
        assert ("better" in metric.verdict or "worse" in metric.verdict or "higher" in metric.verdict) == (
            metric.p_value <= 0.05
        )


@settings(max_examples=40, deadline=None)
@given(two_runs(), st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.7]))
def test_interval_equivalence_and_gate_agree(runs: tuple[Groups, Groups], margin: float) -> None:
    found = compared(*runs, margin=margin)
    for name, metric in found.metrics.items():
        equivalence = metric.equivalence
        assert equivalence is not None
        gate = check_no_regression(found, margin, name)
        if metric.interval is None:
            assert not equivalence.is_not_worse
            assert not gate.passed
            continue
        low, high = metric.interval
        assert equivalence.is_equivalent == (-margin < low and high < margin)
        if name == "eval/reward/pass_at_1":
            assert equivalence.is_not_worse == (low > -margin)
        assert gate.passed == (-low <= margin)


@settings(max_examples=15, deadline=None)
@given(two_runs())
def test_a_run_outranks_another_exactly_when_the_interval_leaves_out_zero(runs: tuple[Groups, Groups]) -> None:
    found = compared(*runs).metrics["eval/reward/pass_at_1"]
    ranking = rank([side("a", runs[0]), side("b", runs[1])], SETTINGS)
    assert found.interval is not None
    is_shown = found.interval[0] > 0 or found.interval[1] < 0
    assert (len({run.rank for run in ranking.runs}) == 2) == is_shown


@pytest.mark.parametrize(
    ("rates", "prompts", "rollouts"), [((0.0, 0.97), 10, 1), ((0.0, 0.97), 10, 4), ((0.99, 0.97), 30, 1)]
)
def test_the_interval_of_a_difference_covers_near_0_and_1(
    rates: tuple[float, float], prompts: int, rollouts: int
) -> None:
    rng = np.random.default_rng(5)
    only_success = replace(SETTINGS, pass_k_values=(1,))
    held = 0
    for _ in range(100):
        base, tuned = (
            side(str(rate), {f"p{i}": [float(x) for x in rng.random(rollouts) < rate] for i in range(prompts)})
            for rate in rates
        )
        interval = compare(base, tuned, only_success).metrics["eval/reward/pass_at_1"].interval
        assert interval is not None
        held += interval[0] <= rates[1] - rates[0] <= interval[1]
    assert held >= 93  # the sign-flip interval alone holds it 26, 69 and 61 times


def test_eight_failures_against_eight_successes_do_not_show_a_difference_of_exactly_one() -> None:
    for name, metric in compared(all_same(0.0), all_same(1.0)).metrics.items():
        if name != "eval/turns/mean":
            # Each rate is known to 1 - 0.025 ** (1 / 8) = 0.369.
            assert metric.interval == pytest.approx((1 - 0.3694 * 2**0.5, 1.0), abs=1e-3)


def test_moves_that_few_prompts_show_may_go_the_other_way_too() -> None:
    # A deterministic policy, as at temperature 0: one of 30 prompts moved, and up. Up to 0.116 of all could move down.
    base: Groups = {f"p{i}": [float(i % 2)] for i in range(30)}
    interval = compared(base, {**base, "p0": [1.0]}).metrics["eval/reward/pass_at_1"].interval
    assert interval is not None
    assert interval[0] < -0.07
    assert interval[1] > 0.12


def test_partial_rewards_of_which_one_prompt_differs_have_no_interval() -> None:
    base = {f"p{i}": [0.1 * i] for i in range(8)}
    found = compared(base, {**base, "p3": [0.9]}).metrics["eval/reward/mean"]
    assert found.interval is None
    assert found.no_interval == ("only one of 8 prompts differs: no interval, since nothing shows how far others could")
    assert found.verdict == "no difference in mean reward between tuned and base could be shown"


def test_a_few_large_gains_stretch_the_interval_upwards() -> None:
    rng = np.random.default_rng(1)
    base = {f"p{i}": [float(x)] for i, x in enumerate(rng.random(30))}
    tuned = {key: [1.0 + 3.0 * (i < 3)] if i < 6 else values for i, (key, values) in enumerate(base.items())}
    found = compared(base, tuned).metrics["eval/reward/mean"]
    assert found.interval is not None
    assert found.interval[1] - found.difference > 1.5 * (found.difference - found.interval[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(7, 30), st.integers(0, 10_000))
def test_swapping_the_runs_turns_every_sign(prompts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = {f"p{i}": [float(x) for x in rng.random(2) < 0.4] for i in range(prompts)}
    b = {f"p{i}": [float(x) for x in rng.random(2) < 0.6] for i in range(prompts)}
    there, back = compared(a, b), compared(b, a)
    for name, metric in there.metrics.items():
        assert metric.difference == pytest.approx(-back.metrics[name].difference)
        assert metric.p_value == pytest.approx(back.metrics[name].p_value)
    assert (there.wins, there.losses) == (back.losses, back.wins)


def test_the_same_seed_gives_the_same_numbers() -> None:
    rng = np.random.default_rng(1)
    a = {f"p{i}": [float(x) for x in rng.random(2) < 0.4] for i in range(60)}
    b = {f"p{i}": [float(x) for x in rng.random(2) < 0.6] for i in range(60)}
    assert compared(a, b) == compared(a, b)


def test_the_prompts_that_moved_most_come_first() -> None:
    found = compared({"a": [0.0], "b": [1.0], "c": [0.5]}, {"a": [0.25], "b": [0.0], "c": [0.5]})
    assert [(move.key, move.difference) for move in found.moves] == [("b", -1.0), ("a", 0.25), ("c", 0.0)]
    assert (found.wins, found.losses, found.ties) == (1, 1, 1)


def test_equivalence_is_said_only_when_the_interval_lies_within_the_margin() -> None:
    base, tuned = all_same(0.5, prompts=200), all_same(0.5, prompts=200)
    tuned["p0"], tuned["p1"] = [0.6, 0.6], [0.4, 0.4]
    same = compared(base, tuned, margin=0.05).metrics["eval/reward/mean"]
    assert same.equivalence is not None
    assert same.equivalence.is_equivalent
    assert same.verdict.endswith("; equivalent within 0.05")
    worse = compared(all_same(1.0), all_same(0.0), margin=0.05).metrics["eval/reward/pass_at_1"]
    assert worse.verdict.endswith("worse by 0.05 or more cannot be ruled out")


def test_equal_successes_are_equivalent_as_far_as_unseen_changes_allow() -> None:
    # Were a share of the prompts 0.2 worse, 30 prompts would show none of it with probability 0.8**30 = 0.0012.
    same = all_same(1.0, prompts=30)
    found = compared(same, same, margin=0.2).metrics
    equivalence = found["eval/reward/pass_at_1"].equivalence
    assert equivalence is not None
    assert equivalence.p_equivalent == pytest.approx(0.8**30, rel=0.01)  # between two tails that were worked out
    assert equivalence.is_equivalent
    assert found["eval/reward/mean"].verdict.endswith("; worse by 0.20 or more cannot be ruled out")
    assert found["eval/turns/mean"].verdict.endswith("; a difference of 0.20 or more cannot be ruled out")


def test_a_partial_run_is_flagged() -> None:
    found = compare(side("base", {"a": [1.0]}), side("tuned", {"a": [1.0]}, is_partial=True), SETTINGS)
    assert found.notes == ("tuned is partial: its missing rollouts are not counted",)


def test_runs_without_a_shared_prompt_are_refused() -> None:
    with pytest.raises(MetricError, match="runs 'base' and 'tuned' share no prompt"):
        compared({"a": [1.0]}, {"b": [1.0]})


def test_a_run_that_does_not_say_what_its_prompts_are_cannot_be_compared() -> None:
    whole = side("whole", {"a": [1.0], "b": [1.0]})
    unnamed = replace(whole, name="part", prompt_keys={0: "a"})
    with pytest.raises(MetricError, match="run 'part' has rollouts of prompt 1, but no key for it"):
        compare(whole, unnamed, SETTINGS)


def test_a_prompt_whose_rollouts_all_failed_and_are_excluded_is_not_shared() -> None:
    exclude = MetricSettings((1,), 1.0, failed_rollouts="exclude", max_failed_share=1.0)
    found = compare(side("base", {"a": [None], "b": [1.0]}), side("tuned", {"a": [1.0], "b": [1.0]}), exclude)
    assert (found.num_prompts, found.only_fine_tuned) == (1, ("a",))


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03 times 3, 2, 1: 0.03, 0.04, 0.03 -> running maximum 0.03, 0.04, 0.04.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("prompts", [2, 5, 6, 7, 10])
def test_a_corrected_p_value_is_never_smaller_than_the_p_value(prompts: int) -> None:
    found = compared(all_same(0.0, prompts=prompts), all_same(1.0, prompts=prompts))
    assert all(metric.adjusted_p_value >= metric.p_value for metric in found.metrics.values())


def test_the_primary_metric_pays_nothing_for_the_others() -> None:
    rng = np.random.default_rng(4)
    base, tuned = ({f"p{i}": [float(x) for x in rng.random(2) < rate] for i in range(40)} for rate in (0.4, 0.6))
    noise = {f"noise{n}": rng.random(80) for n in range(10)}
    alone, among = (
        compared(base, tuned),
        compare(with_metrics("base", base, noise), with_metrics("tuned", tuned, noise), SETTINGS),
    )
    primary = among.metrics[among.primary]
    assert primary.p_value == alone.metrics[alone.primary].p_value
    assert primary.adjusted_p_value == primary.p_value
    others = [metric for metric in among.metrics.values() if metric.name != among.primary]
    assert all(metric.adjusted_p_value >= primary.p_value for metric in others)


def test_constants_and_duplicates_cost_the_other_metrics_nothing() -> None:
    rng = np.random.default_rng(5)
    base, tuned = ({f"p{i}": [float(x) for x in rng.random(2) < rate] for i in range(40)} for rate in (0.3, 0.7))
    steps = rng.random(80), rng.random(80) + 0.2
    few = compare(
        with_metrics("base", base, {"steps": steps[0]}), with_metrics("tuned", tuned, {"steps": steps[1]}), SETTINGS
    )
    idle = {f"constant{n}": np.full(80, float(n)) for n in range(5)}
    copies = [{f"copy{n}": (n + 2) * values for n in range(5)} for values in steps]
    many = compare(
        with_metrics("base", base, {"steps": steps[0], **idle, **copies[0]}),
        with_metrics("tuned", tuned, {"steps": steps[1], **idle, **copies[1]}),
        SETTINGS,
    )
    for name, metric in few.metrics.items():
        assert many.metrics[name].adjusted_p_value == pytest.approx(metric.adjusted_p_value)
    # With rewards 0 and 1 the mean reward is pass@1 over again.
    reward, success = many.metrics["eval/reward/mean"], many.metrics["eval/reward/pass_at_1"]
    assert reward.adjusted_p_value == success.adjusted_p_value
    assert many.metrics["agent/constant1"].adjusted_p_value == 1.0
    assert many.metrics["agent/copy3"].adjusted_p_value == many.metrics["agent/steps"].adjusted_p_value


def test_a_verdict_that_the_mean_reward_contradicts_says_so_in_the_same_sentence() -> None:
    # Six prompts of forty succeed now; all others lose half of their partial credit.
    base = {f"p{i}": [0.8, 0.8] for i in range(40)}
    tuned = {f"p{i}": [1.0, 1.0] if i < 6 else [0.4, 0.4] for i in range(40)}
    found = compared(base, tuned)
    assert (found.wins, found.losses) == (6, 34)
    assert found.verdict.startswith("tuned is better than base in pass@1: +0.15 [")
    assert "; but worse in mean reward: -0.31 [" in found.verdict


REASONS = (FailureReason("agent", "raised", 24, "KeyError: 'answer'", 24),)


def test_a_side_whose_rollouts_failed_gets_no_verdict() -> None:
    base = side("base", all_same(1.0, prompts=12))
    crashed = replace(side("ck500", {f"p{i}": [None, None] for i in range(12)}), reasons=REASONS)
    for rule in (SETTINGS, replace(SETTINGS, failed_rollouts="exclude")):
        found = compare(base, crashed, rule)
        assert found.verdict == (
            "not comparable: 24 of 24 rollouts of ck500 failed (agent: raised (24), all KeyError: 'answer')"
        )
        assert not found.is_comparable
        assert "worse" not in " ".join(metric.verdict for metric in found.metrics.values())


def test_a_run_with_too_many_failures_is_shown_with_both_readings() -> None:
    base = side("base", {f"p{i}": [float(i % 2), 0.0, 1.0, 1.0] for i in range(80)})
    tuned = side("tuned", {f"p{i}": [1.0, 1.0, 1.0, None] for i in range(80)})
    found = compare(base, tuned, SETTINGS)
    assert found.not_comparable == "80 of 320 rollouts of tuned failed"
    as_zero, left_out = found.readings
    assert as_zero.startswith("with failed rollouts as reward 0: tuned is better than base in pass@1: +0.12")
    assert left_out.startswith("with failed rollouts left out: tuned is better than base in pass@1: +0.38")
    accepted = compare(base, tuned, replace(SETTINGS, max_failed_share=0.25))
    assert accepted.verdict.startswith("tuned is better than base in pass@1: +0.12")
    assert accepted.readings == ()


def test_failures_stand_beside_a_verdict_with_their_hint() -> None:
    tuned = side("tuned", {f"p{i}": [1.0, None if i == 3 else 1.0] for i in range(12)})
    reason = FailureReason("agent", "raised", 1, "KeyError: 'answer'", 1)
    found = compare(side("base", all_same(0.0, prompts=12)), replace(tuned, reasons=(reason,)), SETTINGS)
    assert found.is_comparable
    assert found.notes[0].startswith(
        "1 of 24 rollouts of tuned failed (agent: raised (1), KeyError: 'answer'): the agent reads"
    )


@pytest.mark.parametrize(("rule", "words"), [("zero", " failed, 0.0%"), ("exclude", " failed and were left out, 0.0%")])
def test_a_verdict_says_that_one_side_failed_more_often(rule: Literal["zero", "exclude"], words: str) -> None:
    # A policy that loses some of its failing rollouts to crashes looks better than it is when those are left out.
    base = side("base", {f"p{i}": [1.0, 1.0, 0.0, 0.0] for i in range(40)})
    tuned = side("tuned", {f"p{i}": [1.0, 1.0, 0.0, None if i < 15 else 0.0] for i in range(40)})
    found = compare(base, tuned, replace(SETTINGS, failed_rollouts=rule))
    assert f"; but 9.4% of the rollouts of tuned{words} of those of base (p " in found.verdict


def test_a_verdict_says_that_one_side_was_played_again_more_often() -> None:
    groups = {f"p{i}": [1.0, 0.0] for i in range(20)}
    base = replace(side("base", groups), is_retried=np.zeros(40, dtype=np.bool_))
    tuned = replace(side("tuned", groups), is_retried=np.tile([True, False], 20))
    found = compare(base, tuned, SETTINGS)
    assert "; but 50.0% of the rollouts of tuned were played again, 0.0% of those of base (p " in found.verdict
    same = compare(base, replace(base, name="tuned"), SETTINGS)
    assert "played again" not in same.verdict


def test_equal_failure_rates_are_called_different_in_one_comparison_of_twenty_at_most() -> None:
    rng = np.random.default_rng(8)

    def failing(name: str) -> Side:
        return side(name, {f"p{i}": [None if rng.random() < 0.08 else 1.0 for _ in range(4)] for i in range(30)})

    settings = replace(SETTINGS, max_failed_share=1.0)
    said = sum("failed" in compare(failing("base"), failing("tuned"), settings).verdict for _ in range(100))
    assert said <= 10  # 5 expected; more than 10 in 1 of 100 such tests


def test_a_verdict_that_depends_on_the_success_threshold_is_none() -> None:
    # Always 0.5, played for threshold 0.5, against 0 or 1, played for threshold 1.
    base = replace(side("base", all_same(0.5, prompts=20)), success_threshold=0.5)
    tuned = replace(side("tuned", {f"p{i}": [1.0, 0.0] for i in range(20)}), success_threshold=1.0)
    found = compare(base, tuned, SETTINGS)
    assert found.verdict.startswith("not comparable: the verdict depends on the success threshold")
    assert "at success_threshold 1: tuned is better than base in pass@1: +0.50" in found.verdict
    assert "at 0.5: tuned is worse than base in pass@1: -0.50" in found.verdict


def test_different_thresholds_that_agree_are_a_note() -> None:
    base = replace(side("base", all_same(0.0, prompts=20)), success_threshold=0.5)
    tuned = replace(side("tuned", all_same(1.0, prompts=20)), success_threshold=1.0)
    found = compare(base, tuned, SETTINGS)
    assert found.verdict == "tuned is better than base in pass@1: +1.00 [0.76, 1.00]"
    assert found.notes == (
        "the runs have success thresholds 0.5 and 1; successes of both are counted again at one of them",
    )


def test_a_run_against_itself_says_so() -> None:
    base = replace(side("base", all_same(1.0)), identity="arn 1")
    assert (
        compare(base, replace(base, name="copy"), SETTINGS).verdict == "not comparable: base and copy are the same run"
    )


def test_a_primary_metric_that_the_runs_lack_is_named_with_the_nearest() -> None:
    base, tuned = side("base", all_same(1.0)), side("tuned", all_same(1.0))
    with pytest.raises(MetricError, match=r"metric 'pas@2' is the primary metric, .*Did you mean 'pass@2'"):
        compare(base, tuned, replace(SETTINGS, primary_metric="pas@2"))
    assert compare(base, tuned, replace(SETTINGS, primary_metric="pass@2")).primary == "eval/reward/pass_at_2"


def test_a_run_with_too_many_failures_is_not_ranked() -> None:
    runs = [side("x", all_same(1.0)), side("y", all_same(0.0)), side("z", {f"p{i}": [1.0, None] for i in range(8)})]
    found = rank(runs, SETTINGS)
    assert [run.name for run in found.runs] == ["x", "y"]
    assert found.notes == ("not ranked: 8 of 16 rollouts of z failed",)
    with pytest.raises(
        MetricError, match="fewer than two runs can be ranked; not ranked: 8 of 16 rollouts of z failed"
    ):
        rank(runs[1:], SETTINGS)


def test_a_ranking_shows_ties_as_ties() -> None:
    rng = np.random.default_rng(3)
    runs = [
        side(name, {f"p{i}": [float(x) for x in rng.random(4) < rate] for i in range(60)})
        for name, rate in (("weak", 0.2), ("strong", 0.8), ("strong too", 0.8))
    ]
    found = rank(runs, SETTINGS)
    assert {run.name: run.rank for run in found.runs} == {"strong": 1, "strong too": 1, "weak": 3}
    assert {run.name: run.tied_with for run in found.runs}["strong"] == ("strong too",)


def test_a_ranking_uses_only_prompts_that_all_runs_have() -> None:
    runs = [
        side("x", {"a": [1.0], "b": [1.0]}),
        side("y", {"a": [1.0], "c": [1.0]}),
        side("z", {"a": [0.0], "b": [1.0]}),
    ]
    assert rank(runs, SETTINGS).num_prompts == 1
    assert rank(runs[:2], SETTINGS).num_prompts == 1


@pytest.mark.parametrize("names", [["x"], ["x", "x"]])
def test_a_ranking_needs_runs_that_can_be_told_apart(names: list[str]) -> None:
    with pytest.raises(MetricError, match="at least two runs with different names"):
        rank([side(name, {"a": [1.0]}) for name in names], SETTINGS)


def test_a_ranking_by_a_metric_that_one_of_the_runs_cannot_give_is_refused() -> None:
    runs = [
        side("x", {"a": [1.0, 0.0], "b": [1.0, 1.0]}),
        side("y", {"a": [1.0, 1.0], "b": [1.0, 0.0]}),
        side("z", {"a": [0.0], "b": [1.0]}),
    ]
    with pytest.raises(
        MetricError,
        match=r"'eval/reward/pass_at_2' is not one that all runs give\. Did you mean 'eval/reward/pass_at_1'",
    ):
        rank(runs, SETTINGS, metric="eval/reward/pass_at_2")


@pytest.mark.parametrize("margin", [0.0, -0.1, float("inf"), float("nan")])
def test_a_margin_that_is_no_finite_number_above_0_is_refused(margin: float) -> None:
    with pytest.raises(MetricError, match="it must be a finite number above 0"):
        compared(all_same(1.0), all_same(1.0), margin=margin)
