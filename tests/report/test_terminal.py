"""The terminal: results, slices, rescorings and trajectories, at any width, whatever a model wrote."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import RenderableType

from heldout.errors import RunError
from heldout.metrics.summary import summarize
from heldout.report.console import plain_console
from heldout.report.findings import find
from heldout.report.numbers import interval_text, number, percent, signed
from heldout.report.rescoring_table import rescored
from heldout.report.rollout_rows import RolloutRows
from heldout.report.sanitizing import one_line, visible
from heldout.report.slices import slices
from heldout.report.terminal import results, slice_table
from heldout.report.trajectory import trajectory
from heldout.rescoring.rescoring import rescore
from heldout.runs.recordings import open_recordings
from heldout.runs.results import summarize_run
from heldout.runs.run import Run
from tests.support.jobs import played, rows
from tests.support.report_runs import Play, call, written_run

GOOD = Play(1.0, ("one", "two"))
BAD = Play(0.0, ("three", "four"))


def printed(what: RenderableType, width: int = 100) -> str:
    console = plain_console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(run: Run, width: int = 100) -> str:
    findings = find(run.folder, run.document.hyperparameters)
    return printed(results(summarize_run(run), findings, title="t", where=run.folder, is_partial=False), width)


def printed_trajectory(run: Run, trajectory_id: str) -> str:
    with open_recordings(run) as recordings:
        return printed(trajectory(recordings.read([trajectory_id])[0]))


def first_id(run: Run) -> str:
    rows = RolloutRows.read(run.folder)
    return rows.ids(rows.turns >= 0, 1)[0]


@pytest.mark.parametrize("width", [80, 120])
def test_results_fit_the_terminal(tmp_path: Path, width: int) -> None:
    text = shown(written_run(tmp_path / "run", [[GOOD, Play(0.0, ("look",) * 4, metrics={"found": 1})]] * 8), width)
    assert max(map(len, text.splitlines())) <= width
    assert re.search(r"pass@1 +│ +0\.500 │ +\[0\.\d+, 0\.\d+\]", text)
    assert "pass^1" not in text


def test_a_warning_has_an_observation_a_remedy_and_a_trajectory(tmp_path: Path) -> None:
    text = " ".join(shown(written_run(tmp_path / "run", [[GOOD, Play(0.0, ("look",) * 4)]] * 8)).split())
    assert "- 8 of 16 rollouts repeat themselves (3 or more replies in a row are alike) and do not succeed" in text
    assert "penalize repetition; open 0.1" in text


def test_all_doubts_are_shown_and_as_many_patterns_as_fit(tmp_path: Path) -> None:
    odd = Play(
        0.0, ("", "look", "look", call("x", "{"), "look", "look", "look"), metrics={"completed": 1, "invalid": 1}
    )
    text = shown(written_run(tmp_path / "run", [[GOOD, odd, odd]] * 12))
    assert re.search(r"and \d more, in report\.html", text)


def test_an_evaluation_without_a_single_rollout_can_be_shown(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[GOOD]])
    nothing = RolloutRows.read(run.folder).rollout_table(RolloutRows.read(run.folder).is_failed)
    summary = summarize(nothing, None, run.metric_settings, seconds=None)
    assert "prompts" in printed(results(summary, [], title="t", where="s3://bucket/run", is_partial=True))


def test_slices_are_a_table(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[GOOD, GOOD], [GOOD, BAD]], columns=[{"level": "easy"}, {"level": "hard"}])
    found = slices(run.prompts_path, RolloutRows.read(run.folder), "level", run.metric_settings)
    assert re.search(r"easy +1 +2 +0 +1\.00", printed(slice_table(found, "level"), 80))


def test_a_rescoring_says_how_far_to_trust_the_reward(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[GOOD, BAD]] * 4)
    (tmp_path / "judge.py").write_text(
        "def score(t):\n    if t.prompt_index == 3: raise ValueError('no gold')\n    return t.prompt_index > 0 and t.reward\n"
    )
    text = printed(rescored(rescore(run, f"{tmp_path / 'judge.py'}:score")))
    assert "reward and score agree on 83% of rollouts" in text
    assert "both succeed 2, only the reward 1, only the score 0, neither 3" in text
    assert "2 × ValueError: no gold (judge.py:2)" in text


def test_a_trajectory_is_shown_turn_by_turn(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "It is Lima", "reasoning_content": "Peru, then"}
    play = Play(
        0.5,
        (call("search", {"q": "Peru"}), thought),
        hears="found it",
        output="bye\n",
        metrics={"n": 2},
        finish="length",
    )
    run = written_run(tmp_path / "run", [[play]], prompts=["Capital?"], columns=[{"gold": "Lima"}])
    text = printed_trajectory(run, first_id(run))
    parts = [
        "reward 0.5, no success",
        "n 2",
        '{"gold":"Lima"}',
        "turn 0",
        "Capital?",
        '→ search {"q": "Peru"}',
        "turn 1",
    ]
    parts += ["finished by length", "found it", "Peru, then", "It is Lima", "printed by the agent", "bye"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_failed_attempt_is_shown_with_its_reason(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[Play(None, (), failure="ValueError: no number", output="Traceback")]])
    text = printed_trajectory(run, first_id(run))
    assert "failed (raised): ValueError: no number" in text
    assert "the model was never called" in text
    assert "Traceback" in text


def test_an_unknown_trajectory_is_named_with_the_nearest(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[GOOD]])
    with pytest.raises(RunError, match=r"no trajectory '0-0-1-abcdef' in this run\. Did you mean '0-0-1-abcdefabcdef"):
        printed_trajectory(run, "0-0-1-abcdef")


def test_nothing_a_model_writes_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[bold red]not markup[/]\x9b31m\x00\r\b\u202e"
    play = Play(0.0, (evil, call(evil, evil)), hears=evil, output=evil, finish=evil, metrics={evil: 1.0})
    run = written_run(
        tmp_path / "run", [[play, Play(None, (evil,), failure=evil)]], prompts=[evil], columns=[{evil: evil}]
    )
    rows = RolloutRows.read(run.folder)
    told = [printed_trajectory(run, i) for i in rows.ids(rows.turns > 0, 2)] + [shown(run)]
    for text in told:
        assert not re.search(r"\x1b\]|\x1b\[2J|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "[bold red]not markup[/]" in told[0].replace("\n", "")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\tb\r\nc", "a\tb\nc"),
        ("\x1b[31m", "␛[31m"),
        ("\u200bx\u202e", "⟨U+200B⟩x⟨U+202E⟩"),
        ("سلام 👩‍🚀 é", "سلام 👩‍🚀 é"),
    ],
)
def test_invisible_characters_become_visible_and_others_stay(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_a_line_is_cut_where_it_is_too_long() -> None:
    assert one_line("a\n b   c", 10) == "a b c"
    assert one_line("abcdefghij", 5) == "abcd…"
    assert len(one_line("x" * 10**6, 50)) == 50


def test_numbers_have_as_many_digits_as_they_need() -> None:
    assert [number(v) for v in (0.12345, 5.188, 35.91, 1234.5, -0.5)] == ["0.123", "5.19", "35.9", "1,234", "-0.500"]
    assert [percent(v) for v in (0.0, 0.004, 0.35, 0.995, 1.0)] == ["0%", "0.4%", "35%", "99.5%", "100%"]
    assert [signed(0.25), signed(-1.5), interval_text((0, 1)), interval_text(None)] == [
        "+0.250",
        "-1.50",
        "[0.000, 1.00]",
        "",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(1e308, "1e+308"), (-2.5e15, "-2.5e+15"), (1_234_567.0, "1,234,567"), (0.25, "0.250")]
)
def test_a_number_is_short_however_large_it_is(value: float, text: str) -> None:
    assert number(value) == text


async def test_an_agents_metric_cannot_be_mistaken_for_one_of_heldouts_and_one_without_a_name_is_dropped(
    tmp_path: Path,
) -> None:
    metrics = {"turns": 7, "reward": 0.5, "": 3, " ": 4}
    run = await played(tmp_path, [f"return {json.dumps({'reward': 1, 'metrics': metrics})}"])
    assert rows(run)[0]["metrics"] == {"reward": 0.5, "turns": 7.0}
    assert "metric_dropped" in rows(run)[0]["flags"]
    lines = [[cell.strip() for cell in line.split("│")] for line in shown(run, 140).splitlines()]
    named = {cells[1]: cells[2] for cells in lines if len(cells) > 2}
    assert (named["turns"], named["agent: turns"], named["agent: reward"]) == ("0.000", "7.00", "0.500")
