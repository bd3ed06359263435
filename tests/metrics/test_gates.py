"""Gates read a condition, hold it against a run, and give one line of reason."""

import numpy as np
import pytest

from heldout.errors import InputError
from heldout.metrics.comparison import Comparison, Side, compare
from heldout.metrics.gates import GateResult, check_no_regression, check_requirement, parse_requirement
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import Summary, summarize
from heldout.metrics.table import RolloutTable

SETTINGS = MetricSettings(pass_k_values=(1, 2, 8), success_threshold=1.0)


def table(rates: list[float], rollouts: int = 4) -> RolloutTable:
    """`rollouts` rollouts of each prompt, the given share of them successes."""
    rewards = np.array([float(j < rate * rollouts) for rate in rates for j in range(rollouts)])
    return RolloutTable(
        prompt_index=np.repeat(np.arange(len(rates)), rollouts),
        rollout_index=np.tile(np.arange(rollouts), len(rates)),
        is_scored=np.ones(len(rewards), dtype=np.bool_),
        reward=rewards,
        turns=np.full(len(rewards), 3),
    )


def run(rates: list[float]) -> Summary:
    completed = np.ones(4 * len(rates))
    return summarize(table(rates), None, SETTINGS, agent_metrics={"completed": completed}, seconds=None)


def gate(text: str, rates: list[float]) -> GateResult:
    return check_requirement(parse_requirement(text), run(rates))


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("pass_at_1 >= 0.5", True),
        ("eval/reward/pass_at_1>=0.5", True),
        ("pass_at_1 > 0.5", False),
        ("pass_at_1 <= 5e-1", True),
        ("lower(pass_at_1) >= 0.5", False),
        ("upper( pass_at_1 ) >= .5", True),
        ("turns/mean < 4", True),
        ("completed >= 1", True),
        ("mean >= -1", True),
        ("pass@1 >= 0.5", True),
        ("lower(pass@1) >= 0.5", False),
        ("mean reward > 0.6", False),
        ("upper(success rate (pass@1)) >= 0.5", True),
        ("turns <= 3", True),
        ("turns a rollout <= 2.5", False),
        ("agent: completed >= 1", True),
        ("pass^2 > 0.9", False),
        ("pass_at_1 >= 0.5000004", True),
        ("pass_at_1 >= 0.5000006", False),
        ("pass_at_1 <= 0.4999996", True),
        ("pass_at_1 > 0.4999996", False),
        ("pass_at_1 < 0.5000004", False),
    ],
)
def test_a_requirement_holds_or_does_not(text: str, passed: bool) -> None:
    assert gate(text, [0.5, 0.25, 0.75]).passed is passed


def test_the_reason_has_the_number_and_the_limit() -> None:
    assert gate("pass_at_1 >= 0.6", [0.5, 0.5]).reason == "eval/reward/pass_at_1 is 0.5, which misses >= 0.6"


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"metric 'pas_at_1' is not one of this run's\. Did you mean 'pass_at_1'\?"):
        gate("pas_at_1 >= 0.6", [0.5, 0.5])
    with pytest.raises(
        InputError, match=r"metric 'mean rewrd' is not one of this run's\. Did you mean 'mean reward'\?"
    ):
        gate("lower(mean rewrd) >= 0.6", [0.5, 0.5])


@pytest.mark.parametrize(
    "text",
    [
        "pass_at_1",
        "pass_at_1 == 0.5",
        "lower(pass_at_1 >= 0.5",
        "  lower(pass_at_1 >= 0.5",
        "lower( ) >= 0.5",
        ">= 0.5",
        "pass_at_1 >= high",
        "",
    ],
)
def test_what_is_no_requirement_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read; write METRIC >= NUMBER"):
        parse_requirement(text)


def test_a_number_the_run_cannot_give_does_not_pass_and_says_why() -> None:
    result = gate("pass_at_8 >= 0.1", [0.5, 0.5])
    assert not result.passed
    assert "k = 8 needs 8 rollouts of a prompt; the largest group has 4" in result.reason


def test_an_interval_the_run_cannot_give_does_not_pass_and_says_why() -> None:
    result = gate("lower(pass_at_1) >= 0.1", [0.5])
    assert not result.passed
    assert "has no bounds: one prompt: no interval" in result.reason


def versus(reference: list[float], rates: list[float]) -> Comparison:
    keys = {i: f"p{i}" for i in range(len(rates))}
    return compare(Side("reference", table(reference), keys), Side("run", table(rates), keys), SETTINGS)


def test_no_regression_passes_when_a_loss_beyond_the_margin_is_ruled_out() -> None:
    result = check_no_regression(versus([0.5] * 30, [0.75] * 30), 0.02)
    assert result.passed
    assert "a loss of more than 0.02 is ruled out" in result.reason


def test_no_regression_fails_when_too_few_prompts_can_rule_it_out() -> None:
    mixed = [0.25, 0.5, 0.75, 1.0] * 3
    result = check_no_regression(versus(mixed, mixed[::-1]), 0.02)
    assert not result.passed
    assert "cannot be ruled out" in result.reason


def test_no_regression_fails_on_a_shown_loss() -> None:
    result = check_no_regression(versus([0.75] * 30, [0.25] * 30), 0.02, metric="pass_at_1")
    assert not result.passed
    assert result.reason.endswith("a loss of more than 0.02")


def test_a_margin_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"margin is -0\.1; it must be at least 0"):
        check_no_regression(versus([0.5] * 8, [0.5] * 8), -0.1)


def test_a_metric_that_was_not_compared_is_refused() -> None:
    with pytest.raises(InputError, match=r"metric 'pass_at_3' was not compared\. Did you mean 'pass_at_"):
        check_no_regression(versus([0.5] * 8, [0.5] * 8), 0.1, metric="pass_at_3")


def test_one_success_more_in_eight_prompts_does_not_rule_out_a_loss() -> None:
    nothing, one = [0.0] * 8, [1.0] + [0.0] * 7
    base, tuned = (
        Side(name, table(rates, rollouts=1), {i: f"p{i}" for i in range(8)})
        for name, rates in (("base", nothing), ("tuned", one))
    )
    comparison = compare(base, tuned, SETTINGS)
    for metric in ("pass_at_1", "mean reward"):
        result = check_no_regression(comparison, 0.0, metric)
        assert not result.passed
        assert "a loss of more than 0 cannot be ruled out" in result.reason


HALF_EASY = [1.0, 0.0] * 20


def test_a_fixed_benchmark_is_held_to_the_interval_on_its_very_prompts() -> None:
    requirement = parse_requirement("lower(pass@1) >= 0.45")
    assert not check_requirement(requirement, run(HALF_EASY)).passed
    fixed = check_requirement(requirement, run(HALF_EASY), fixed_prompts=True)
    assert fixed.passed
    assert "lower end of eval/reward/pass_at_1 on these very prompts is 0.4" in fixed.reason


def test_bounds_on_these_very_prompts_that_groups_do_not_show_are_missed_with_the_reason() -> None:
    result = check_requirement(parse_requirement("lower(pass@8) >= 0"), eights(), fixed_prompts=True)
    assert not result.passed
    assert "has no bounds on these very prompts: only rewards and success rates are known" in result.reason


def eights() -> Summary:
    return summarize(table([0.5] * 10, 8), None, SETTINGS, seconds=None)


def test_a_verdict_says_how_likely_a_rerun_changes_it() -> None:
    sure, unsure = gate("pass@1 >= 0.1", [0.5] * 40), gate("pass@1 >= 0.49", [0.5] * 40)
    assert sure.flip_chance is not None
    assert unsure.flip_chance is not None
    assert sure.flip_chance < 0.001
    assert 0.4 < unsure.flip_chance < 0.5
    assert sure.explanation.endswith("chance that a rerun of the same prompts changes this verdict: below 1%")


def test_a_number_that_rollouts_do_not_show_has_no_chance_of_another_verdict() -> None:
    result = gate("failed_rollouts <= 1", [0.5] * 4)
    assert result.flip_chance is None
    assert result.explanation == result.reason


def test_a_regression_on_a_fixed_benchmark_is_judged_on_its_very_prompts() -> None:
    before, after = run(HALF_EASY), run([0.0, 1.0] * 20)
    comparison = versus(HALF_EASY, [0.0, 1.0] * 20)  # prompts move, the mean does not
    assert not check_no_regression(comparison, 0.1, run=after).passed
    fixed = check_no_regression(comparison, 0.1, reference=before, run=after, fixed_prompts=True)
    assert fixed.passed
    assert "on these very 40 prompts" in fixed.reason
    assert fixed.flip_chance is not None
    unknown = check_no_regression(comparison, 0.1, run=after, fixed_prompts=True)
    assert "both runs need the same prompts" in unknown.reason
