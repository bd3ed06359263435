"""The public Python API: `heldout.load`, and the same judgements as in the terminal."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pytest
import typer

import heldout
from heldout.backends.local.evaluation_index import remember
from heldout.cli import judge, show
from heldout.errors import InputError, MetricError, ReferenceProblem, RunError
from heldout.runs.recordings import RecordedTrajectory
from heldout.runs.run import Run
from tests.support.evaluations import finished_evaluation
from tests.support.report_runs import Play, written_run

# Twenty prompts of four rollouts: the better policy wins two more of each.
WORSE = [[1.0, 0.0, 0.0, 0.0]] * 10 + [[0.0, 0.0, 0.0, 0.0]] * 10
BETTER = [[1.0, 1.0, 1.0, 0.0]] * 10 + [[1.0, 1.0, 0.0, 0.0]] * 10
COLUMNS: list[dict[str, object]] = [{"level": "easy", "size": 3, "reward": [1, 2]}, {"level": "hard", "size": "large"}]
FIRST_ID = "0-0-1-abcdefabcdefabcdefabcdefabcdef"


def _run(folder: Path, rewards: Sequence[Sequence[float]], **settings: Any) -> Run:
    return written_run(folder, [[Play(reward=reward) for reward in group] for group in rewards], **settings)


@pytest.fixture
def worse(tmp_path: Path) -> str:
    return str(_run(tmp_path / "worse", WORSE).folder)


@pytest.fixture
def better(tmp_path: Path) -> str:
    return str(_run(tmp_path / "better", BETTER).folder)


@pytest.fixture
def played(tmp_path: Path) -> heldout.RunResults:
    """Two prompts of two rollouts; the first rollout took two turns, the last one failed."""
    groups = [[Play(1.0, says=("first guess", "second guess")), Play(0.0)], [Play(1.0), Play(failure="boom")]]
    return heldout.load_run(written_run(tmp_path / "run", groups, columns=COLUMNS).folder)


@pytest.fixture
def printed_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command of the terminal in this process and returns the JSON that it prints."""
    app = typer.Typer()
    judge.add_to(app)
    show.add_to(app)

    def run(*arguments: object) -> Any:
        app([*map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return run


def _json(value: object) -> Any:
    return json.loads(json.dumps(value, default=str))


def test_a_run_gives_its_metrics_with_intervals_and_the_reasons_for_those_it_lacks(played: heldout.RunResults) -> None:
    success = played.metric("pass@1")
    assert success == played.metrics["eval/reward/pass_at_1"]
    assert success.value == pytest.approx(0.5)  # (1/2 + 1/2) / 2
    assert success.interval is not None
    assert success.interval[0] < 0.5 < success.interval[1]
    assert "[" in str(success)
    assert "eval/reward/pass_at_4" not in played.metrics
    with pytest.raises(MetricError, match="k = 4 needs 4 rollouts of a prompt"):
        played.metric("eval/reward/pass_at_4")
    with pytest.raises(MetricError, match="Did you mean 'pass_at_1'"):
        played.metric("pas_at_1")
    assert (played.summary.scored, played.summary.failed, played.is_partial) == (3, 1, False)


def test_tables_have_the_requested_frame_type(played: heldout.RunResults) -> None:
    frame = played.rollouts()
    assert frame["reward"].tolist()[:3] == [1.0, 0.0, 1.0]
    assert isinstance(played.rollouts("polars"), polars.DataFrame)
    table = played.trajectories("arrow")
    assert isinstance(table, pa.Table)
    assert table["turn"].to_pylist() == [0, 1, 0, 0, 0]
    assert played.attempts("arrow")["error"].to_pylist() == [None, None, None, "boom"]
    with pytest.raises(InputError, match="frame is 'numpy'; it must be 'arrow', 'pandas' or 'polars'"):
        played.rollouts("numpy")  # type: ignore[arg-type]


def test_columns_of_the_dataset_are_joined_without_hiding_those_of_the_table(played: heldout.RunResults) -> None:
    assert played.columns == ("level", "size", "reward")
    table = played.rollouts("arrow", columns=["prompt", "level", "reward"])
    assert table["prompt"].to_pylist() == ["prompt 0", "prompt 0", "prompt 1", "prompt 1"]
    assert table["dataset.level"].to_pylist() == ["easy", "easy", "hard", "hard"]
    assert table["dataset.reward"].to_pylist() == [[1, 2], [1, 2], None, None]
    assert table["reward"].to_pylist() == [1.0, 0.0, 1.0, None]
    with pytest.raises(InputError, match=r"no column 'levle' in the dataset\. Did you mean 'level'"):
        played.trajectories(columns=["levle"])


def test_prompts_have_every_column_and_values_of_mixed_types_as_json(played: heldout.RunResults) -> None:
    table = played.prompts("arrow")
    assert table.column_names == ["run", "prompt_index", "prompt", "dataset.level", "dataset.size", "dataset.reward"]
    assert table["dataset.size"].to_pylist() == ["3", '"large"']


def test_a_large_table_is_read_in_batches(played: heldout.RunResults) -> None:
    batches = list(played.batches("trajectories", columns=["level"]))
    ids = [str(i) for batch in batches for i in batch.column("trajectory_id").to_pylist()]
    assert sorted(ids) == sorted(map(str, played.trajectories("arrow")["trajectory_id"].to_pylist()))
    assert {level for batch in batches for level in batch.column("dataset.level").to_pylist()} == {"easy", "hard"}


def test_a_conversation_is_rebuilt_as_chat_messages(played: heldout.RunResults) -> None:
    first = [{"role": "user", "content": "prompt 0"}, {"role": "assistant", "content": "first guess"}]
    rest = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "second guess"}]
    assert played.conversation(FIRST_ID) == [*first, *rest]
    assert played.conversation(FIRST_ID, turn=0) == first
    with pytest.raises(InputError, match=r"turn is 2; trajectory .* has 2, counted from 0"):
        played.conversation(FIRST_ID, turn=2)
    with pytest.raises(RunError, match="Did you mean"):
        played.conversation(FIRST_ID[:-1])


def test_trajectories_are_streamed_with_their_prompt_columns_and_reward(played: heldout.RunResults) -> None:
    seen = [(one.prompt, one.columns["level"], one.reward) for one in played.iter_trajectories()]
    assert seen == [
        ("prompt 0", "easy", 1.0),
        ("prompt 0", "easy", 0.0),
        ("prompt 1", "hard", 1.0),
        ("prompt 1", "hard", None),
    ]


def test_findings_name_the_training_prompts_among_the_held_out_ones(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run", BETTER).folder
    training = tmp_path / "training.jsonl"
    training.write_text('{"prompt": "prompt 3"}\n')
    assert "training_prompts" not in {finding.kind for finding in heldout.load_run(folder).findings}
    found = heldout.load_run(folder, training=str(training)).findings
    assert [one.num_rollouts for one in found if "training" in one.kind] == [4]


def test_a_run_that_still_plays_gives_its_numbers_so_far(tmp_path: Path) -> None:
    run = heldout.load_run(_run(tmp_path / "playing", BETTER, is_done=False).folder)
    assert run.is_partial
    assert run.rollouts("arrow").num_rows == 80
    assert run.metric("eval/reward/pass_at_1").value == pytest.approx(0.625)
    assert not heldout.gate(run, "pass_at_1 >= 0")


def test_the_terminal_and_python_give_equal_numbers(
    printed_json: Callable[..., Any], tmp_path: Path, worse: str, better: str
) -> None:
    twin = str(_run(tmp_path / "twin", BETTER).folder)
    columns = [{"level": "easy"}, {"level": "hard"}] * 10
    sliced = heldout.load_run(_run(tmp_path / "sliced", BETTER, columns=columns).folder)
    assert printed_json("show", better) == _json(heldout.load(better).to_dict())
    assert printed_json("show", better, "--trajectory", FIRST_ID) == _json(
        heldout.load_run(better).trajectory(FIRST_ID).to_dict()
    )
    assert printed_json("show", sliced.location, "--slice", "level") == _json(
        sliced.slices("level").to_dict()["slices"]
    )
    assert printed_json("compare", worse, better, "--margin", "0.1") == _json(
        heldout.compare(worse, better, margin=0.1).to_dict()
    )
    assert printed_json("compare", worse, better, twin) == _json(heldout.rank([worse, better, twin]).to_dict())
    gate = heldout.gate(better, "pass_at_1 >= 0.6", no_regression_against=worse, margin=0.02)
    assert gate
    assert printed_json(
        "gate", better, "--require", "pass_at_1 >= 0.6", "--no-regression-against", worse, "--margin", "0.02"
    ) == _json(gate.to_dict()["conditions"])
    assert printed_json("plan", "--difference", "0.1", "--rate", "0.4") == _json(heldout.plan(0.1, rate=0.4).to_dict())
    assert printed_json("plan", "--difference", "0.1", "--pilot", worse, "--pilot", better) == _json(
        heldout.plan(0.1, pilot=[worse, better]).to_dict()
    )


def test_results_print_as_the_tables_of_the_terminal(
    capsys: pytest.CaptureFixture[str], played: heldout.RunResults, worse: str, better: str
) -> None:
    app = typer.Typer()
    judge.add_to(app)
    show.add_to(app)
    for arguments, result in (
        (("show", played.location), played),
        (("show", played.location, "--trajectory", FIRST_ID), played.trajectory(FIRST_ID)),
        (("show", played.location, "--slice", "level"), played.slices("level")),
        (("compare", worse, better), heldout.compare(worse, better)),
        (("gate", better, "--require", "pass_at_1 >= 0.6"), heldout.gate(better, "pass_at_1 >= 0.6")),
        (("plan", "--difference", "0.1", "--pilot", better), heldout.plan(0.1, pilot=better)),
    ):
        app(list(arguments), standalone_mode=False)
        assert str(result) == capsys.readouterr().out.rstrip("\n")


def test_reading_and_judging_print_nothing(
    capfd: pytest.CaptureFixture[str], played: heldout.RunResults, worse: str, better: str
) -> None:
    heldout.load(better).to_dict()
    played.rollouts()
    heldout.compare(worse, better)
    heldout.rank([worse, better])
    heldout.gate(worse, "pass_at_1 >= 0.9")
    heldout.plan(0.1, pilot=worse)
    heldout.rescore(played, lambda trajectory: 1.0)
    assert capfd.readouterr() == ("", "")


def judge_length(trajectory: RecordedTrajectory) -> tuple[float, dict[str, float]]:
    """A scorer: 1 for a trajectory of two turns."""
    return float(len(trajectory.turns) == 2), {"turns": len(trajectory.turns)}


async def slow_judge(trajectory: RecordedTrajectory) -> float:
    return float(trajectory.reward or 0)


def test_a_run_is_rescored_by_a_function_of_the_program(played: heldout.RunResults) -> None:
    seen: list[tuple[int, int]] = []
    result = heldout.rescore(played, judge_length, on_progress=lambda done, total: seen.append((done, total)))
    assert (result.scorer, result.scored, result.skipped) == ("test_results-judge_length", 3, 1)
    assert result.score_mean == pytest.approx(1 / 3)
    assert result.scores_path.exists()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert "agree" in str(result)
    with pytest.raises(ReferenceProblem, match="scorer 7 is not a function"):
        heldout.rescore(played, 7)  # type: ignore[arg-type]


async def test_a_run_is_rescored_where_an_event_loop_runs_already(played: heldout.RunResults) -> None:
    assert heldout.rescore(played, slow_judge).score_mean == pytest.approx(2 / 3)


def test_an_evaluation_gives_its_runs_and_their_comparison(tmp_path: Path, printed_json: Callable[..., Any]) -> None:
    folder = tmp_path / "test"
    base = _run(folder / "base-model-eval", WORSE)
    tuned = _run(folder / "fine-tuned-model-eval", BETTER, run_name="fine-tuned-model-eval")
    place = finished_evaluation(folder, base, tuned).location
    found = heldout.load(place)
    assert isinstance(found, heldout.EvaluationResults)
    assert (found.status, list(found.runs)) == ("Succeeded", ["base-model-eval", "fine-tuned-model-eval"])
    assert found.comparison is not None
    assert found.comparison.metrics["eval/reward/pass_at_1"].difference == pytest.approx(0.5)
    assert found.metrics["base-model-eval"] == found.runs["base-model-eval"].metrics
    frame = found.rollouts("polars", columns=["prompt"])
    assert frame.group_by("run").len()["len"].to_list() == [80, 80]
    assert printed_json("show", place) == _json(found.to_dict())
    assert printed_json("compare", place) == _json(heldout.compare(found).to_dict())
    assert "evaluation " in str(found)
    with pytest.raises(RunError, match=r"has 2 runs; name one: .*base-model-eval or .*fine-tuned-model-eval"):
        heldout.load_run(place)


def test_an_evaluation_is_found_by_its_arn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "test"
    base = _run(folder / "base-model-eval", WORSE)
    tuned = _run(folder / "fine-tuned-model-eval", BETTER, run_name="fine-tuned-model-eval")
    evaluation = finished_evaluation(folder, base, tuned)
    remember(evaluation)
    assert heldout.load(evaluation.state.arn).location == str(folder)


def test_a_place_that_holds_nothing_is_named(tmp_path: Path, better: str) -> None:
    with pytest.raises(RunError, match=r"no run in .*gone"):
        heldout.load(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds 1 runs; give two runs, or an evaluation that compared two"):
        heldout.compare(better)
    with pytest.raises(MetricError, match="a ranking needs at least two runs; got 1"):
        heldout.rank([better])


def test_a_home_folder_is_found_as_a_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert heldout.load(f"~/{Path(better).name}").location == better
