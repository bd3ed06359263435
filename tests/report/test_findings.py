"""Diagnosis: each pattern is found where it is, told with its count and its trajectories, and not where it is not."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heldout.errors import DatasetError, InputError
from heldout.report.findings import Finding, Weight, find
from heldout.report.rollout_rows import RolloutRows
from heldout.report.slices import ABSENT, OTHERS, columns_of, slices
from heldout.report.text_findings import text_findings
from heldout.runs.run import Run
from tests.support.report_runs import Play, call, written_run

GOOD = Play(1.0, ("the first step", "and the second"))
BAD = Play(0.0, ("one way", "another way"))
MIXED = [GOOD, BAD]


def found(run: Run, training: str | None = None) -> dict[str, Finding]:
    return {f.kind: f for f in find(run.folder, run.document.hyperparameters, training=training)}


def only(tmp_path: Path, odd: Play) -> dict[str, Finding]:
    """Findings of a run that is sound but for one rollout in sixteen."""
    groups: list[list[Play]] = [[GOOD, BAD] for _ in range(8)]
    groups[3][1] = odd
    return found(written_run(tmp_path / "run", groups))


def test_a_sound_run_has_no_finding(tmp_path: Path) -> None:
    assert found(written_run(tmp_path / "run", [MIXED] * 8)) == {}


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("looping", Play(0.0, ("look at the map",) * 3)),
        (
            "looping",
            Play(0.0, tuple(f"I will now open the left door and look behind it again, try {n}" for n in range(3))),
        ),
        ("looping", Play(0.0, (call("search", {"q": "x"}),) * 3)),
        ("empty_replies", Play(0.0, ("first", "  "))),
        ("malformed_tool_calls", Play(1.0, (call("go", "{north"),))),
        ("token_limit", Play(0.0, ("a long", "story that"), finish="length")),
        ("format_failures", Play(0.0, BAD.says, metrics={"invalid_actions": 2})),
        ("format_failures", Play(0.0, BAD.says, metrics={"well_formed": 0})),
        ("format_failures", Play(None, failure="JSONDecodeError: Expecting value")),
        ("no_model_call", Play(1.0, (), flags=("no_model_call",))),
        ("failures", Play(None, failure="KeyError: 'x'")),
        ("correct_not_completed", Play(1.0, GOOD.says, metrics={"is_done": 0})),
    ],
)
def test_one_odd_rollout_is_found_counted_and_named(tmp_path: Path, kind: str, odd: Play) -> None:
    finding = only(tmp_path, odd)[kind]
    assert finding.num_rollouts == 1
    assert finding.trajectory_ids == ("3-1-1-abcdefabcdefabcdefabcdefabcdef",)
    assert finding.seen.startswith("1 of 1")
    assert finding.advice


@pytest.mark.parametrize(
    ("kind", "harmless"),
    [
        ("looping", Play(0.0, ("5", "6", "7", "8"))),
        ("looping", Play(1.0, ("look at the map",) * 3)),
        ("looping", Play(0.0, ("look", "look", "go on"))),
        ("inconsistent_turns", Play(0.0, (call("go", {}), call("go", {"to": 1}), "I am there"))),
        ("inconsistent_turns", Play(1.0, ("The answer is 4.", "Wait, the answer is 5."))),
        ("confident_and_wrong", Play(0.0, ("I might be wrong, but the answer is 7.",))),
        ("confident_and_wrong", Play(1.0, ("let me see", "The answer is definitely 7."))),
        ("empty_replies", Play(0.0, (call("stop", ""),))),
        ("malformed_tool_calls", Play(0.0, (call("stop", ""),))),
        ("format_failures", Play(0.0, BAD.says, metrics={"invalid_actions": 0})),
        ("format_failures", Play(0.0, BAD.says, metrics={"well_formed": 1})),
        ("format_failures", Play(None, failure="OSError: no information on the sparse matrix")),
        ("completed_not_correct", Play(0.0, BAD.says, metrics={"completed": 0})),
    ],
)
def test_a_chance_pattern_is_no_finding(tmp_path: Path, kind: str, harmless: Play) -> None:
    assert kind not in only(tmp_path, harmless)


def test_a_pattern_of_one_rollout_in_a_hundred_is_no_finding(tmp_path: Path) -> None:
    groups: list[list[Play]] = [[GOOD, BAD] for _ in range(60)]
    groups[1][1] = Play(0.0, ("look at the map",) * 3, metrics={"completed": 1, "invalid_actions": 2})
    groups[2][1] = Play(None, failure="KeyError: 'x'")
    groups[3][0] = BAD
    assert found(written_run(tmp_path / "run", groups)) == {}


def test_findings_of_a_large_run_name_their_sample_of_replies(tmp_path: Path) -> None:
    looping = Play(0.0, ("look at the map",) * 3)
    run = written_run(tmp_path / "run", [[looping, GOOD, looping, looping]] * 4)
    assert found(run)["looping"].seen.startswith("12 of 16 rollouts ")
    assert "sample" not in found(run)["looping"].seen
    rows = RolloutRows.read(run.folder)
    half = text_findings(run.folder, rows, sample_turns=22)  # half of the turns: every other rollout
    (sampled,) = (finding for finding in half if finding.kind == "looping")
    assert sampled.seen.startswith("8 of 8 rollouts ")
    assert sampled.seen.endswith("(in a sample of 8 of 16)")


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("inconsistent_turns", Play(0.0, (call("go", {}), "I think I shall go", call("stop", {})))),
        ("inconsistent_turns", Play(0.0, ("The answer is 4.", "Wait, the answer is 5."))),
        ("confident_and_wrong", Play(0.0, ("let me see", "The answer is definitely 7."))),
        ("completed_not_correct", Play(0.0, BAD.says, metrics={"completed": 1})),
    ],
)
def test_a_habit_is_reported_where_it_goes_with_failure(tmp_path: Path, kind: str, odd: Play) -> None:
    good, sound = Play(1.0, GOOD.says, metrics={"completed": 0}), replace(odd, reward=1.0)
    run = written_run(tmp_path / "run", [[good, good, odd]] * 12)
    assert found(run)[kind].num_rollouts == 12
    habit = written_run(tmp_path / "habit", [[good, sound, odd, replace(good, reward=0.0)]] * 12)
    assert kind not in found(habit)  # successful rollouts have it as often


def test_a_run_without_any_success_is_to_be_doubted_if_it_is_large_enough_to_show_one(tmp_path: Path) -> None:
    kinds = found(written_run(tmp_path / "run", [[BAD] * 4] * 12))
    assert kinds["complete_failure"].weight is Weight.DOUBT
    assert kinds["complete_failure"].seen == "no rollout succeeded: 0 of 48 on 12 prompts"
    assert [i[:3] for i in kinds["complete_failure"].trajectory_ids] == ["0-0", "1-0", "2-0", "3-0", "4-0"]
    assert kinds["no_variance"].seen == "all 48 scored rollouts have the reward 0"
    assert found(written_run(tmp_path / "small", [[BAD, BAD]] * 4)) == {}


def test_rewards_that_stop_short_of_the_threshold_get_a_hint_at_it(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[Play(p * 0.95 / 11, BAD.says), BAD] for p in range(12)])
    kinds = found(run)
    assert "complete_failure" not in kinds
    assert kinds["threshold_unreached"].seen == "no reward reaches success_threshold 1: the 24 rewards end at 0.95"
    assert "-H success_threshold=0.95" in kinds["threshold_unreached"].advice
    assert "threshold_unreached" not in found(written_run(tmp_path / "met", [[Play(0.95), GOOD]] * 6))


def test_prompts_that_fail_for_good_in_every_rollout_are_reported(tmp_path: Path) -> None:
    broken = Play(failure="KeyError: 'table'")
    finding = found(written_run(tmp_path / "run", [[GOOD, BAD, GOOD, BAD]] * 20 + [[broken] * 4] * 2))[
        "failing_prompts"
    ]
    assert finding.seen == "2 of 22 prompts failed for good in every rollout"
    assert finding.num_rollouts == 8
    scattered = [[broken, GOOD], [GOOD, broken]] * 6 + [[broken, broken]]
    assert "failing_prompts" not in found(written_run(tmp_path / "scattered", scattered))


def test_failures_are_reported_with_their_commonest_message_and_a_hint(tmp_path: Path) -> None:
    groups = [[GOOD, Play(failure="KeyError: 'answer'" if p % 4 else f"boom {p}")] for p in range(8)]
    finding = found(written_run(tmp_path / "run", groups))["failures"]
    assert finding.seen == "8 of 16 rollouts failed for good: agent: raised (8), 6 of them KeyError: 'answer'"
    assert finding.advice.startswith("the agent reads a field that is not there")


def test_groups_with_one_reward_are_named_where_nearly_all_are(tmp_path: Path) -> None:
    groups = [[GOOD] * 4] * 14 + [[BAD] * 4] * 6 + [[GOOD, BAD] * 2]
    finding = found(written_run(tmp_path / "run", groups))["flat_groups"]
    assert finding.seen.startswith(
        "20 of 21 prompts have the same reward in every rollout (14 always succeed, 6 do not)"
    )
    assert finding.num_rollouts == 80
    assert "flat_groups" not in found(written_run(tmp_path / "mixed", groups[3:] + [[GOOD, BAD] * 2] * 3))


def test_a_reward_that_pays_for_length_is_a_finding(tmp_path: Path) -> None:
    groups = [[Play(p / 20 + r, tokens=10 * p + 40 * r) for r in range(2)] for p in range(20)]
    finding = found(written_run(tmp_path / "run", groups))["reward_and_length"]
    assert finding.seen.startswith(
        "reward rises with response tokens among rollouts of the same prompt and as many turns: "
    )
    assert finding.trajectory_ids[0].startswith("19-1-")


def test_hard_prompts_that_take_longer_are_no_reward_for_length(tmp_path: Path) -> None:
    groups = [[Play(p / 20, tuple("abcdefgh"[: 2 + p // 4]), tokens=10 * p)] * 3 for p in range(20)]
    assert not found(written_run(tmp_path / "run", groups)).keys() & {
        "reward_and_length",
        "reward_and_turns",
        "turn_limit",
    }


def test_a_reward_that_rises_with_turns_is_reported_and_one_that_falls_is_not(tmp_path: Path) -> None:
    rising = [[Play(r / 4, tuple("abcdefgh"[: 2 + r])) for r in range(3)] for _ in range(12)]
    assert "reward_and_turns" in found(written_run(tmp_path / "rising", rising))
    falling = [[Play(1 - r / 4, tuple("abcdefgh"[: 2 + r])) for r in range(3)] for _ in range(12)]
    assert "reward_and_turns" not in found(written_run(tmp_path / "falling", falling))


def test_many_rollouts_at_the_most_turns_are_reported_as_a_limit(tmp_path: Path) -> None:
    short = Play(1.0, ("a", "b"))
    cut = Play(0.0, tuple("abcdefgh"))
    finding = found(written_run(tmp_path / "run", [[short, short, cut]] * 8))["turn_limit"]
    assert finding.seen.startswith(
        "8 of 24 rollouts have 8 turns, the most there are: it looks like a limit. 0% of them"
    )


def test_a_game_of_one_length_has_no_turn_limit(tmp_path: Path) -> None:
    assert "turn_limit" not in found(written_run(tmp_path / "run", [MIXED] * 8))


def test_turns_that_end_without_a_pile_are_no_limit(tmp_path: Path) -> None:
    plays = [Play(float(n == 2), tuple("abcdefgh"[:n])) for n in (2, 7, 8)]
    assert "turn_limit" not in found(written_run(tmp_path / "run", [plays] * 8))


def test_prompts_played_once_are_no_groups(tmp_path: Path) -> None:
    kinds = found(written_run(tmp_path / "run", [[GOOD], [BAD]] * 4, sampling_temperature=0))
    assert not kinds.keys() & {"flat_groups", "greedy_group"}


def test_greedy_groups_are_a_finding(tmp_path: Path) -> None:
    assert "greedy_group" in found(written_run(tmp_path / "run", [MIXED] * 4, sampling_temperature=0))


def test_a_repeated_prompt_is_a_finding(tmp_path: Path) -> None:
    finding = found(written_run(tmp_path / "run", [MIXED] * 4, prompts=["a", "b", "a", "c"]))["duplicate_prompts"]
    assert finding.seen == "1 of 4 prompts repeat one that is in the dataset already"
    assert finding.num_rollouts == 4


def test_held_out_prompts_among_the_training_prompts_are_a_finding(tmp_path: Path) -> None:
    training = tmp_path / "training.jsonl"
    training.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("WHAT  is 2+2?", "something else")))
    run = written_run(
        tmp_path / "run", [[GOOD, GOOD], MIXED, MIXED], prompts=["What is 2+2?", "What is 3+3?", "What is 4+4?"]
    )
    finding = found(run, str(training))["training_prompts"]
    assert finding.seen == (
        "1 of 3 held-out prompts are among the 2 training prompts; success 100% on them, 50% on the rest"
    )
    assert finding.num_rollouts == 2
    training.write_text("".join(json.dumps({"prompt": f"What is {n}+{n}?"}) + "\n" for n in (2, 3, 4)))
    everything = found(run, str(training))["training_prompts"]
    assert everything.seen == "3 of 3 held-out prompts are among the 3 training prompts"


def test_a_missing_training_file_is_named(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [MIXED])
    with pytest.raises(DatasetError, match=r"nowhere\.jsonl"):
        found(run, str(tmp_path / "nowhere.jsonl"))


def test_findings_that_cast_doubt_on_the_numbers_come_first(tmp_path: Path) -> None:
    groups = [[Play(0.0, ("a", "a", "a"), flags=("sampling_differs",)), GOOD]] * 8
    run = written_run(tmp_path / "run", groups)
    weights = [f.weight for f in find(run.folder, run.document.hyperparameters)]
    assert weights == sorted(weights)
    assert len(set(weights)) > 1


def _slices(run: Run, column: str) -> dict[str, tuple[int, float | None]]:
    settings = run.metric_settings
    rows = RolloutRows.read(run.folder)
    return {s.value: (s.num_prompts, s.success) for s in slices(run.prompts_path, rows, column, settings)}


def test_results_are_cut_by_any_column_of_the_dataset(tmp_path: Path) -> None:
    columns: Sequence[dict[str, object]] = [{"level": "easy"}, {"level": "hard"}, {"level": "hard"}, {"topic": 1}]
    run = written_run(tmp_path / "run", [[GOOD, GOOD], MIXED, [BAD, BAD], MIXED], columns=columns)
    assert columns_of(run.prompts_path) == ["level", "topic"]
    assert _slices(run, "level") == {"hard": (2, 0.25), "easy": (1, 1.0), ABSENT: (1, 0.5)}


def test_a_column_of_many_numbers_is_cut_into_quarters(tmp_path: Path) -> None:
    columns = [{"size": p} for p in range(12)]
    run = written_run(tmp_path / "run", [MIXED] * 12, columns=columns)
    assert _slices(run, "size") == dict.fromkeys(("0 to 2", "3 to 5", "6 to 8", "9 to 11"), (3, 0.5))


@pytest.mark.parametrize("step", [60, 1 / 2**20, 2**54])
def test_quarters_of_numbers_that_print_alike_are_four_slices(tmp_path: Path, step: float) -> None:
    columns = [{"created": 1_700_000_000 + step * p} for p in range(12)]
    run = written_run(tmp_path / "run", [MIXED] * 12, columns=columns)
    assert list(_slices(run, "created").values()) == [(3, 0.5)] * 4


def test_integers_beyond_the_precision_of_a_float_are_cut_into_quarters(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [MIXED] * 12, columns=[{"id": 2**62 + p} for p in range(12)])
    assert list(_slices(run, "id").values()) == [(3, 0.5)] * 4


def test_values_that_print_alike_are_slices_of_their_own(tmp_path: Path) -> None:
    columns: Sequence[dict[str, object]] = [{"v": 1}, {"v": "1"}, {"v": True}, {"v": "true"}, {"v": "(none)"}, {}]
    run = written_run(tmp_path / "run", [MIXED] * 6, columns=columns)
    assert _slices(run, "v") == dict.fromkeys(("1", '"1"', "true", '"true"', '"(none)"', ABSENT), (1, 0.5))


def test_the_rarest_of_many_values_share_a_slice(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [MIXED] * 23, columns=[{"id": f"{p:02}"} for p in range(23)])
    assert _slices(run, "id")[OTHERS] == (3, 0.5)


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [MIXED], columns=[{"level": 1}])
    with pytest.raises(InputError, match=r"no column 'levle' in the dataset\. Did you mean 'level'\?"):
        _slices(run, "levle")


def test_a_reward_unrelated_to_length_is_no_finding(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    groups = [[Play(float(rng.random()), tokens=int(rng.integers(1, 99))) for _ in range(3)] for _ in range(12)]
    assert "reward_and_length" not in found(written_run(tmp_path / "run", groups))
