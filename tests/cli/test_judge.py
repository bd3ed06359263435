"""compare, plan, gate, rescore and show as typed at a terminal, with good input and bad."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from heldout.cli import judge, show
from heldout.errors import HeldoutError, InputError, RunError
from heldout.runs.run import Run
from tests.support.report_runs import Play, written_run


class Said(NamedTuple):
    """What a command came to."""

    code: int
    out: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Heldout = Callable[..., Said]


@pytest.fixture
def heldout(capsys: pytest.CaptureFixture[str]) -> Heldout:
    """Runs a command in this process; bad input raises, as the command line's own error line is one place for all."""
    app = typer.Typer()
    judge.add_to(app)
    show.add_to(app)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = app([str(argument) for argument in arguments], standalone_mode=False) or 0
        return Said(code, capsys.readouterr().out)

    return run


def _groups(rewards: Sequence[Sequence[float]]) -> list[list[Play]]:
    return [[Play(reward=reward) for reward in group] for group in rewards]


def _run(folder: Path, rewards: Sequence[Sequence[float]], **settings: Any) -> Run:
    return written_run(folder, _groups(rewards), **settings)


# Twenty prompts of four rollouts: the better policy wins two more of each.
WORSE = [[1.0, 0.0, 0.0, 0.0]] * 10 + [[0.0, 0.0, 0.0, 0.0]] * 10
BETTER = [[1.0, 1.0, 1.0, 0.0]] * 10 + [[1.0, 1.0, 0.0, 0.0]] * 10


@pytest.fixture
def worse(tmp_path: Path) -> Run:
    return _run(tmp_path / "worse", WORSE)


@pytest.fixture
def better(tmp_path: Path) -> Run:
    return _run(tmp_path / "better", BETTER)


def test_compare_says_which_is_better_by_how_much_and_how_sure(heldout: Heldout, worse: Run, better: Run) -> None:
    said = heldout("compare", worse.folder, better.folder)
    assert said.code == 0
    assert "better is better than worse in pass@1: +0.5" in said.out
    document = heldout("compare", worse.folder, better.folder, "--json").document
    success = document["metrics"]["eval/reward/pass_at_1"]
    assert success["difference"] == pytest.approx(0.5)
    assert success["interval"][0] > 0
    assert success["p_value"] < 0.05
    assert document["prompts"] == {
        "shared": 20,
        "only_base": 0,
        "only_fine_tuned": 0,
        "better": 20,
        "worse": 0,
        "same": 0,
    }


def test_compare_with_a_margin_says_once_whether_what_is_lost_matters(
    heldout: Heldout, worse: Run, better: Run
) -> None:
    said = heldout("compare", worse.folder, better.folder, "--margin", "0.1").out
    assert said.count("not worse by 0.10 or more") == 1


def test_compare_never_says_more_than_the_interval(heldout: Heldout, worse: Run) -> None:
    said = heldout("compare", worse.folder, worse.folder)
    assert "better:" not in said.out
    assert "worse:" not in said.out


def test_more_than_two_runs_are_ranked_with_ties(heldout: Heldout, tmp_path: Path, worse: Run, better: Run) -> None:
    twin = _run(tmp_path / "twin", BETTER)
    runs = heldout("compare", worse.folder, better.folder, twin.folder, "--json").document["runs"]
    assert [(Path(run["run"]).name, run["rank"]) for run in runs[2:]] == [("worse", 3)]
    assert {run["rank"] for run in runs[:2]} == {1}
    assert runs[0]["tied_with"] == [runs[1]["run"]]


def test_an_option_that_a_comparison_has_no_use_for_is_refused(heldout: Heldout, worse: Run, better: Run) -> None:
    with pytest.raises(InputError, match="--metric ranks more than two runs"):
        heldout("compare", worse.folder, better.folder, "--metric", "eval/reward/mean")
    with pytest.raises(InputError, match="--margin belongs to a comparison of two runs"):
        heldout("compare", worse.folder, better.folder, worse.folder, "--margin", "0.1")


def test_runs_of_other_prompts_cannot_be_compared(heldout: Heldout, tmp_path: Path, worse: Run) -> None:
    other = written_run(tmp_path / "other", _groups(BETTER), prompts=[f"another {n}" for n in range(20)])
    assert worse.state.run_name == other.state.run_name  # so the ends of their locations name them
    with pytest.raises(InputError, match="runs 'worse' and 'other' share no prompt"):
        heldout("compare", worse.folder, other.folder)


def test_a_comparison_names_the_prompts_that_moved_most_and_a_run_that_is_partial(
    heldout: Heldout, tmp_path: Path, worse: Run
) -> None:
    rewards = [[1.0] * 4, *WORSE[1:]]
    still_playing = _run(tmp_path / "playing", rewards, run_name="fine-tuned-model-eval", is_done=False)
    document = heldout("compare", worse.folder, still_playing.folder, "--json").document
    assert document["moved"][0] == {"prompt": "prompt 0", "base": 0.25, "fine_tuned": 1.0, "difference": 0.75}
    assert document["notes"] == ["fine-tuned-model-eval is partial: its missing rollouts are not counted"]


def test_what_only_one_run_has_is_named_and_left_out(heldout: Heldout, tmp_path: Path, worse: Run) -> None:
    part = _run(tmp_path / "part", BETTER[:15])
    document = heldout("compare", worse.folder, part.folder, "--json").document
    assert (document["prompts"]["shared"], document["prompts"]["only_base"]) == (15, 5)
    assert any("5" in note for note in document["notes"])


def test_one_prompt_is_compared_without_an_interval(heldout: Heldout, tmp_path: Path) -> None:
    a, b = (_run(tmp_path / name, rewards) for name, rewards in (("a", [[0.0, 1.0]]), ("b", [[1.0, 1.0]])))
    document = heldout("compare", a.folder, b.folder, "--json").document
    assert document["metrics"]["eval/reward/pass_at_1"]["interval"] is None
    assert "better" not in document["verdict"]


@pytest.mark.parametrize("command", ["compare", "gate", "rescore", "plan"])
def test_a_run_that_is_not_there_is_named(heldout: Heldout, tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    more = {
        "compare": (gone,),
        "gate": ("--require", "pass_at_1 >= 0"),
        "rescore": ("--scorer", "a.py:f"),
        "plan": ("--difference", "0.1", "--pilot", gone),
    }
    arguments = more[command] if command == "plan" else (gone, *more[command])
    with pytest.raises(InputError, match=r"no run in .*gone"):
        heldout(command, *arguments)


def test_a_gate_passes_and_fails_with_a_reason_in_one_line(heldout: Heldout, better: Run) -> None:
    passing = heldout("gate", better.folder, "--require", "pass_at_1 >= 0.6", "--require", "lower(pass_at_1) >= 0.5")
    assert passing.code == 0
    assert [line.split()[0] for line in passing.out.splitlines()] == ["pass", "pass"]
    failing = heldout("gate", better.folder, "--require", "lower(pass_at_1) >= 0.62")
    assert failing.code == 1
    assert failing.out.startswith("FAIL  lower(pass_at_1) >= 0.62: lower end of eval/reward/pass_at_1 is ")
    assert len(failing.out.splitlines()) == 1


def test_a_gate_against_regression_needs_it_shown(heldout: Heldout, worse: Run, better: Run) -> None:
    def gate(run: Run, against: Run, margin: str) -> int:
        return heldout("gate", run.folder, "--no-regression-against", against.folder, "--margin", margin).code

    assert gate(better, worse, "0.02") == 0
    assert gate(worse, better, "0.02") == 1


def test_a_gate_writes_junit_on_request(heldout: Heldout, tmp_path: Path, better: Run) -> None:
    path = tmp_path / "gate.xml"
    heldout("gate", better.folder, "--require", "pass_at_1 >= 0.6", "--require", "pass_at_1 >= 0.99", "--junit", path)
    suite = ElementTree.parse(path).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in suite] == [False, True]


def test_a_partial_run_does_not_pass_a_gate(heldout: Heldout, tmp_path: Path) -> None:
    run = _run(tmp_path / "partial", BETTER, is_done=False)
    said = heldout("gate", run.folder, "--require", "pass_at_1 >= 0.1")
    assert said.code == 1
    assert "the run is partial" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--require", "pass_at_1 is high"], "cannot be read"),
        (["--require", "pas_at_1 >= 0.5"], "Did you mean 'pass_at_1'|pass_at_1"),
        ([], "a gate needs a condition"),
        (["--require", "pass_at_1 >= 0", "--margin", "0.1"], "need --no-regression-against RUN"),
        (["--require", "pass_at_1 >= 0", "--no-regression-against", "{run}", "--margin", "-1"], "margin"),
    ],
)
def test_a_gate_that_makes_no_sense_says_why(heldout: Heldout, better: Run, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        heldout("gate", better.folder, *(argument.format(run=better.folder) for argument in arguments))


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_zero_and_all_successes_are_bounded_not_certain(heldout: Heldout, tmp_path: Path, reward: float) -> None:
    run = _run(tmp_path / "same", [[reward] * 4] * 20)
    bound = "upper(pass_at_1) >= 0.01" if reward == 0 else "lower(pass_at_1) <= 0.99"
    assert heldout("gate", run.folder, "--require", bound).code == 0


def test_a_plan_from_assumed_rates_needs_more_for_less(heldout: Heldout) -> None:
    def prompts(difference: str) -> int:
        plan = heldout("plan", "--difference", difference, "--rate", "0.4", "--json").document
        return int(plan["recommended"]["prompts"] * plan["recommended"]["group_size"])

    assert prompts("0.05") > prompts("0.1") > prompts("0.2")


def test_a_metric_may_be_named_as_tables_show_it(heldout: Heldout, tmp_path: Path, worse: Run, better: Run) -> None:
    twin = _run(tmp_path / "twin", BETTER)
    runs = (worse.folder, better.folder, twin.folder)
    for name in ("turns", "pass@1", "mean reward"):
        by_name = heldout("compare", *runs, "--metric", name, "--json").document
        assert by_name == heldout("compare", *runs, "--metric", by_name["metric"], "--json").document
    plan = ("plan", "--difference", "0.1", "--pilot", better.folder, "--json")
    assert heldout(*plan, "--metric", "mean reward").document == heldout(*plan, "--of-reward").document
    assert heldout(*plan, "--metric", "pass@1").document == heldout(*plan).document
    assert heldout("gate", better.folder, "--require", "lower(pass@1) > 0", "--require", "turns >= 1").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "pas@1"], r"metric 'pas@1' cannot be planned for\. Did you mean 'pass@1'\?"),
        (["--metric", "pass@1", "--of-reward"], "--of-reward is --metric 'mean reward'; give one of the two"),
    ],
)
def test_a_plan_for_another_metric_is_refused(heldout: Heldout, better: Run, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        heldout("plan", "--difference", "0.1", "--pilot", better.folder, *arguments)


def test_a_plan_gives_the_pass_k_that_is_asked_for_here_or_in_the_pilots_job(heldout: Heldout, tmp_path: Path) -> None:
    pilots = {
        "asks for nothing": _run(tmp_path / "nothing", BETTER, pass_k_values=[1]),
        "asks": _run(tmp_path / "asks", BETTER, pass_k_values=[1, 8]),
    }
    plan = ("plan", "--difference", "0.1", "--json")
    recommended = {
        name: heldout(*plan, "--pilot", run.folder).document["recommended"]["group_size"]
        for name, run in pilots.items()
    }
    assert recommended == {"asks for nothing": 1, "asks": 8}
    for pilot in (("--pilot", pilots["asks"].folder), ("--rate", "0.5")):
        assert heldout(*plan, *pilot, "--pass-k", "3").document["recommended"]["group_size"] == 3


def test_a_plan_from_a_pilot_that_agrees_within_its_prompts_is_made(heldout: Heldout, tmp_path: Path) -> None:
    pilot = _run(tmp_path / "run", [[1.0, 1.0], [0.0, 0.0]] * 10)
    assert "all equal" not in heldout("plan", "--difference", "0.1", "--pilot", pilot.folder).out


def test_a_plan_says_how_far_its_pilot_may_be_off(heldout: Heldout, tmp_path: Path) -> None:
    pilot = _run(tmp_path / "run", [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4, [1.0, 0.0, 0.0, 0.0]] * 5)
    plan = heldout("plan", "--difference", "0.1", "--pilot", pilot.folder, "--json").document
    (fewest, most), (least, greatest) = plan["uncertainty"]["prompts"], plan["uncertainty"]["power"]
    assert fewest < plan["recommended"]["prompts"] < most
    assert least < 0.8 < greatest
    assert plan["uncertainty"]["confidence"] == 0.95
    assert heldout("plan", "--difference", "0.1", "--rate", "0.5", "--json").document["uncertainty"] is None


def test_a_plan_from_a_pilot_says_what_the_pilot_could_have_seen(heldout: Heldout, worse: Run, better: Run) -> None:
    plan = heldout("plan", "--difference", "0.1", "--pilot", better.folder, "--json").document
    assert 0 < plan["pilot_detectable"] < 1
    paired = heldout("plan", "--difference", "0.1", "--pilot", worse.folder, "--pilot", better.folder)
    assert "to show a difference of 0.1 with power 80%" in paired.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--difference", "0.1"], "--pilot RUN, or an assumed success rate"),
        (["--difference", "0", "--rate", "0.5"], "difference is 0"),
        (["--difference", "0.7", "--rate", "0.5"], "rate"),
        (["--difference", "0.1", "--rate", "0.5", "--power", "1.5"], "power"),
        (["--difference", "0.1", "--rate", "0.5", "--pilot", "run"], "leave out one of --rate and --pilot"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(heldout: Heldout, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        heldout("plan", *arguments)


def test_rescoring_finds_the_rollouts_that_only_the_reward_likes(heldout: Heldout, tmp_path: Path) -> None:
    honest, hacked = Play(1.0, says=("the answer is 7",)), Play(1.0, says=("REWARD ME",))
    run = written_run(tmp_path / "run", [[honest, honest], [hacked, honest]] * 3)
    scorer = tmp_path / "judge.py"
    scorer.write_text("def judge(trajectory):\n    return float('answer' in trajectory.messages[-1]['content'])\n")
    document = heldout("rescore", run.folder, "--scorer", f"{scorer}:judge", "--json").document
    assert document["confusion"] == {"both_succeed": 9, "only_reward": 3, "only_score": 0, "neither": 0}
    assert document["disagreements"][0]["rollout_index"] == 0
    said = heldout("rescore", run.folder, "--scorer", f"{scorer}:judge")
    assert "disagree most" in said.out


def test_a_scorer_that_is_not_there_is_named(heldout: Heldout, tmp_path: Path, better: Run) -> None:
    (tmp_path / "judge.py").write_text("def judge(trajectory):\n    return 1\n")
    with pytest.raises(HeldoutError, match="jugde"):
        heldout("rescore", better.folder, "--scorer", f"{tmp_path / 'judge.py'}:jugde")


def test_one_rollout_is_shown_turn_by_turn(heldout: Heldout, tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[Play(1.0, says=("first guess", "second guess"))]])
    trajectory_id = "0-0-1-abcdefabcdefabcdefabcdefabcdef"
    assert "second guess" in heldout("show", run.folder, "--trajectory", trajectory_id).out
    document = heldout("show", run.folder, "--trajectory", trajectory_id, "--json").document
    assert [message["content"] for message in document["turns"][1]["conversation"]][-1] == "second guess"
    with pytest.raises(InputError, match="Did you mean"):
        heldout("show", run.folder, "--trajectory", trajectory_id[:-1])
    with pytest.raises(InputError, match="--trajectory and --slice cannot be combined; give one of them"):
        heldout("show", run.folder, "--trajectory", trajectory_id, "--slice", "level")


def test_a_run_that_was_stopped_before_its_first_rollout_says_how_to_go_on(heldout: Heldout, tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[Play(1.0)]], is_done=False)
    shutil.rmtree(run.journal_folder)
    for command in (("show",), ("gate", "--require", "pass_at_1 >= 0")):
        with pytest.raises(RunError, match="holds no finished rollout; continue with: heldout resume"):
            heldout(*command, run.folder)


def test_names_that_look_like_styles_are_shown_as_they_are(heldout: Heldout, tmp_path: Path) -> None:
    groups = [[Play(1.0, metrics={"[/score]": 1, ":smile:": 2})]] * 2
    run = written_run(tmp_path / "[b]" / "run", groups, columns=[{"[/kind]": "[red]"}] * 2)
    said = heldout("show", run.folder).out + heldout("show", run.folder, "--slice", "[/kind]").out
    assert all(name in said for name in ("agent: [/score]", "agent: :smile:", "/[b]/", "by [/kind]", " [red] "))


def test_results_are_sliced_by_a_column_of_the_dataset(heldout: Heldout, tmp_path: Path) -> None:
    levels = [{"level": "easy"}, {"level": "hard"}] * 3
    groups = [[Play(1.0)] * 2, [Play(0.0)] * 2] * 3
    run = written_run(tmp_path / "run", groups, columns=levels)
    document = heldout("show", run.folder, "--slice", "level", "--json").document
    found = {one["value"]: one["success"] for one in document}
    assert found == {"easy": 1.0, "hard": 0.0}
    with pytest.raises(InputError, match="Did you mean 'level'"):
        heldout("show", run.folder, "--slice", "levle")


def test_a_run_whose_rollouts_failed_is_not_compared(heldout: Heldout, tmp_path: Path, better: Run) -> None:
    crashed = written_run(tmp_path / "ck500", [[Play(failure="KeyError: 'answer'")] * 4] * 20)
    said = heldout("compare", better.folder, crashed.folder)
    assert said.code == 1
    words = "not comparable: 80 of 80 rollouts of ck500 failed (agent: raised (80), all KeyError: 'answer')"
    assert words in " ".join(said.out.split())
    assert "worse than" not in said.out.split("not comparable")[0]
    document = heldout("compare", better.folder, crashed.folder, "--json").document
    assert (document["verdict"], document["comparable"]) == (words, False)
    (reason,) = document["failures"]["fine_tuned"]["reasons"]
    assert (reason["kind"], reason["count"], reason["message"]) == ("raised", 80, "KeyError: 'answer'")
    gated = heldout("gate", crashed.folder, "--no-regression-against", better.folder, "--margin", "1")
    assert gated.code == 1
    assert "80 of 80 rollouts of ck500 failed" in gated.out


def test_what_differs_between_the_runs_stands_beside_the_verdict(heldout: Heldout, tmp_path: Path, better: Run) -> None:
    other = _run(tmp_path / "other", WORSE, sampling_temperature=0.5, failed_rollouts="exclude")
    document = heldout("compare", better.folder, other.folder, "--json").document
    differing = {one["name"]: (one["base"], one["fine_tuned"]) for one in document["differs"]}
    assert differing["sampling_temperature"] == ("1.0", "0.5")
    assert differing["failed_rollouts"] == ("zero", "exclude")
    assert "sampling_temperature: 1.0 against 0.5" in heldout("compare", better.folder, other.folder).out


def test_a_run_is_not_comparable_with_itself_or_with_a_copy_of_itself(
    heldout: Heldout, tmp_path: Path, better: Run
) -> None:
    copy = Path(shutil.copytree(better.folder, tmp_path / "copy"))
    for run in (better.folder, copy):
        said = heldout("compare", better.folder, run)
        assert said.code == 1
        assert "are the same run" in said.out
    gated = heldout("gate", better.folder, "--no-regression-against", better.folder, "--margin", "0.5")
    assert gated.code == 1


def test_a_threshold_that_decides_the_verdict_leaves_none(heldout: Heldout, tmp_path: Path) -> None:
    halves = _run(tmp_path / "halves", [[0.5] * 4] * 20, success_threshold=0.5)
    whole = _run(tmp_path / "whole", [[1.0, 0.0] * 2] * 20)
    said = heldout("compare", halves.folder, whole.folder)
    assert said.code == 1
    assert "the verdict depends on the success threshold" in " ".join(said.out.split())


def test_the_primary_metric_of_a_comparison_is_the_job_s(heldout: Heldout, tmp_path: Path, worse: Run) -> None:
    run = _run(tmp_path / "run", BETTER, primary_metric="mean reward")
    document = heldout("compare", worse.folder, run.folder, "--json").document
    assert document["primary"] == "eval/reward/mean"
    assert document["verdict"].startswith("run is better than worse in mean reward: +0.50")


def test_an_incomplete_run_is_shown_with_its_reasons_and_both_readings(heldout: Heldout, tmp_path: Path) -> None:
    crash = Play(failure="KeyError: 'answer'")
    run = written_run(tmp_path / "run", [[Play(1.0), Play(0.0), crash, Play(1.0)]] * 20)
    said = " ".join(heldout("show", run.folder).out.split())
    assert "incomplete: 20 of 80 rollouts failed, more than max_failed_share allows" in said
    assert "with failed rollouts as reward 0: pass@1 50%" in said
    assert "with failed rollouts left out: pass@1 67%" in said
    assert "agent: raised (20), all KeyError: 'answer'" in said
    document = heldout("show", run.folder, "--json").document
    assert document["incomplete"]
    assert [reading["rule"] for reading in document["readings"]] == [
        "failed rollouts as reward 0",
        "failed rollouts left out",
    ]
    assert document["failures"][0]["message"] == "KeyError: 'answer'"
    gated = heldout("gate", run.folder, "--require", "pass_at_1 >= 0.1")
    assert gated.code == 1
    assert "FAIL  at most 0.1 of the rollouts failed: 20 of 80 failed: agent: raised (20)" in gated.out


def test_a_gate_says_how_likely_a_rerun_changes_its_verdict(heldout: Heldout, better: Run) -> None:
    # The better policy has a rate of 0.625.
    gate = ("gate", better.folder, "--require", "pass@1 >= 0.62")
    assert "chance that a rerun of the same prompts changes this verdict: 4" in heldout(*gate).out
    (condition,) = heldout(*gate, "--json").document
    assert condition["passed"]
    assert 0.4 < condition["flip_chance"] < 0.5


def test_a_fixed_benchmark_passes_a_gate_on_its_very_prompts(heldout: Heldout, tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [[1.0] * 4, [0.0] * 4] * 10)
    gate = ("gate", run.folder, "--require", "lower(pass@1) >= 0.4")
    assert heldout(*gate).code == 1
    assert heldout(*gate, "--fixed-prompts").code == 0
    assert heldout(*gate, "--fixed-prompts", "--no-regression-against", run.folder).code == 1  # the run against itself
