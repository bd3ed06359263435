"""Rescoring: a user's scorer over recorded trajectories, its agreement with the reward, and its failures."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from heldout.errors import InputError, ReferenceProblem, RunError
from heldout.rescoring.rescoring import rescore
from heldout.rescoring.scorer import parsed_score
from heldout.rescoring.scores import Rescored
from heldout.runs.recordings import open_recordings
from heldout.runs.run import JobStatus, Run
from tests.support.report_runs import Play, call, written_run

GROUPS = [
    [Play(1.0, ("right",)), Play(0.0, ("wrong", "wrong again"))],
    [Play(1.0, ("cheated",)), Play(None, ("broken",))],
]


def scored(run: Run, folder: Path, body: str, **settings: Any) -> Rescored:
    (folder / "judge.py").write_text(body)
    return rescore(run, f"{folder / 'judge.py'}:score", **settings)


def table(rescored: Rescored) -> list[dict[str, Any]]:
    return pq.read_table(rescored.scores_path).to_pylist()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return written_run(tmp_path / "run", GROUPS, columns=[{"gold": 4}, {"gold": 5}], prompts=["2 + 2", "2 + 3"])


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_a_scorer_gives_a_number_for_every_rollout_with_a_reward(run: Run, tmp_path: Path, keyword: str) -> None:
    rescored = scored(run, tmp_path, f"{keyword} score(t):\n    return t.messages[-1]['content'] == 'right'\n")
    assert [(row["trajectory_id"][:3], row["reward"], row["score"]) for row in table(rescored)] == [
        ("0-0", 1.0, 1.0),
        ("0-1", 0.0, 0.0),
        ("1-0", 1.0, 0.0),
        ("1-1", None, None),
    ]
    assert (rescored.scored, rescored.failed, rescored.skipped) == (3, 0, 1)


def test_the_rollout_whose_reward_was_gamed_disagrees_most(run: Run, tmp_path: Path) -> None:
    rescored = scored(run, tmp_path, "def score(t):\n    return t.messages[-1]['content'] == 'right'\n")
    document = json.loads(rescored.agreement_path.read_text())
    assert document["confusion"] == {"both_succeed": 1, "only_reward": 1, "only_score": 0, "neither": 1}
    assert document["agreement"] == pytest.approx(2 / 3)
    assert document["disagreements"][0]["trajectory_id"].startswith("1-0-")
    assert document["score"]["mean"] == pytest.approx(1 / 3)


def test_a_scorer_gets_the_whole_recording(run: Run, tmp_path: Path) -> None:
    body = """
def score(t):
    assert t.prompt in ("2 + 2", "2 + 3") and t.columns["gold"] in (4, 5)
    assert [m["role"] for m in t.messages] == ["user", "assistant"] * len(t.turns)
    assert t.turns[0].messages == [{"role": "user", "content": t.prompt}]
    assert t.turns[-1].reply == t.messages[-1]
    assert t.conversation(0) == t.messages[:2]
    return t.reward, {"turns": len(t.turns), "gold": t.columns["gold"]}
"""
    rescored = scored(run, tmp_path, body)
    assert rescored.errors == {}
    assert [row["metrics"] for row in table(rescored)] == [
        {"turns": 1.0, "gold": 4.0},
        {"turns": 2.0, "gold": 4.0},
        {"turns": 1.0, "gold": 5.0},
        {"turns": None, "gold": None},
    ]


def test_an_exception_of_a_scorer_has_its_line_and_stops_nothing(run: Run, tmp_path: Path) -> None:
    body = """
def score(t):
    if t.reward == 0:
        return {}["missing"]
    if t.prompt_index == 1:
        raise SystemExit(3)
    return 1
"""
    rescored = scored(run, tmp_path, body)
    assert [row["error"] for row in table(rescored)] == [
        None,
        "KeyError: 'missing' (judge.py:4)",
        "SystemExit: 3 (judge.py:6)",
        None,
    ]
    assert (rescored.scored, rescored.failed) == (1, 2)


def test_a_scorer_that_never_gives_a_score_leaves_nothing_to_compare(run: Run, tmp_path: Path) -> None:
    rescored = scored(run, tmp_path, "def score(t):\n    return 'good'\n")
    assert rescored.agreement is None
    assert rescored.errors == {"it returned 'good', but a score is a finite number, alone or with metrics": 3}
    assert json.loads(rescored.agreement_path.read_text())["confusion"] is None


@pytest.mark.parametrize(
    "given", [0.5, (0.5, {"a": 1}), {"score": 0.5, "metrics": {"a": True}}, {"score": 0.5}, (0.5, None)]
)
def test_a_score_comes_in_these_shapes(given: object) -> None:
    score = parsed_score(given)
    assert score.value == 0.5
    assert score.error is None
    assert dict(score.metrics) in ({"a": 1.0}, {})


@pytest.mark.parametrize(
    "given", [None, "1", float("nan"), float("inf"), [], {"value": 1}, 10**400, (1, 2, 3), [0.1, 0.9]]
)
def test_a_value_that_is_not_a_score_is_named(given: object) -> None:
    assert "but a score is a finite number" in str(parsed_score(given).error)


def test_a_metric_of_the_scorer_named_score_leaves_the_score_alone(run: Run, tmp_path: Path) -> None:
    rescored = scored(run, tmp_path, "def score(t):\n    return 0.25, {'score': 9, 'error': 1}\n")
    [first, *_] = table(rescored)
    assert (first["score"], first["error"], first["metrics"]) == (0.25, None, {"score": 9.0, "error": 1.0})
    assert rescored.score_mean == 0.25


def test_a_scorer_that_awaits_a_cancelled_task_has_an_error_for_each_rollout(run: Run, tmp_path: Path) -> None:
    body = """
import asyncio

async def score(t):
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task
"""
    rescored = scored(run, tmp_path, body)
    assert (rescored.scored, rescored.failed) == (0, 3)
    assert next(iter(rescored.errors)).startswith("asyncio.exceptions.CancelledError")


def test_an_error_or_a_metric_that_utf8_cannot_carry_costs_that_score_only(run: Run, tmp_path: Path) -> None:
    body = """
def score(t):
    if t.messages[-1]["content"] == "right":
        raise ValueError("half \\ud800")
    return 0.5, {"half \\ud800": 1}
"""
    rescored = scored(run, tmp_path, body)
    assert (rescored.scored, rescored.failed) == (0, 3)
    assert any("has a name that cannot be kept" in error for error in rescored.errors)


def test_a_metric_that_is_no_number_is_named() -> None:
    assert parsed_score((1, {"length": "long"})).error == "its metric 'length' is 'long', which is no finite number"


def test_async_scorers_work_side_by_side_up_to_the_limit(run: Run, tmp_path: Path) -> None:
    body = """
import asyncio
now = most = 0
async def score(t):
    global now, most
    now += 1
    most = max(most, now)
    for _ in range(20):
        await asyncio.sleep(0)
    now -= 1
    return most
"""
    assert max(row["score"] or 0 for row in table(scored(run, tmp_path, body, concurrency=2))) == 2


def test_progress_is_reported_after_each_rollout(run: Run, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    scored(run, tmp_path, "def score(t):\n    return 1\n", on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_scorers_own_threshold_decides_its_successes(run: Run, tmp_path: Path) -> None:
    rescored = scored(run, tmp_path, "def score(t):\n    return 3 if t.reward else 2\n", threshold=2.5)
    assert rescored.agreement is not None
    assert rescored.agreement.confusion.agreement == 1.0


def test_the_finished_rollouts_of_an_unfinished_run_are_rescored(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", GROUPS, is_done=False)
    rescored = scored(run, tmp_path, "def score(t):\n    return t.reward\n")
    assert rescored.scored == 3
    assert not run.rollouts_path.exists()


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            "judge.py:socre",
            r"scorer '.*judge\.py:socre' not found: .* has no function 'socre'\. Did you mean 'score'\?",
        ),
        ("jugde.py:score", r"scorer '.*jugde\.py:score' not found: there is no file .*Did you mean .*judge\.py"),
        (
            "judge.py:pair",
            r"scorer '.*judge\.py:pair' takes \(t, other\); it is called with one argument, the trajectory",
        ),
        ("judge.py", r"is not an entry point; expected file\.py:function"),
        ("broken.py:score", r"scorer '.*' cannot be imported: ZeroDivisionError: division by zero \(broken\.py:1\)"),
    ],
)
def test_a_scorer_that_cannot_be_loaded_is_one_line(run: Run, tmp_path: Path, scorer: str, message: str) -> None:
    (tmp_path / "judge.py").write_text("def score(t):\n    return 1\ndef pair(t, other):\n    return 1\n")
    (tmp_path / "broken.py").write_text("1 / 0\ndef score(t):\n    return 1\n")
    with pytest.raises(ReferenceProblem, match=message):
        rescore(run, str(tmp_path / scorer))
    assert not list(run.folder.glob("scores-*"))


def test_a_concurrency_of_zero_and_a_threshold_that_is_not_finite_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threshold is nan; it must be a finite number"):
        scored(run, tmp_path, "def score(t):\n    return 1\n", threshold=float("nan"))
    with pytest.raises(InputError, match="concurrency is 0"):
        scored(run, tmp_path, "def score(t):\n    return 1\n", concurrency=0)


def test_a_run_without_a_finished_rollout_names_the_command_to_resume(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", GROUPS)
    run.rollouts_path.unlink()
    run.update(status=JobStatus.STOPPED)
    with pytest.raises(RunError, match="holds no finished rollout; continue with: heldout resume"):
        scored(run, tmp_path, "def score(t):\n    return 1\n")


def test_a_trajectory_is_read_back_whole(tmp_path: Path) -> None:
    said = (call("look", {"at": "map"}), "north")
    run = written_run(tmp_path / "run", [[Play(0.5, said, output="printed\n", metrics={"steps": 2})]])
    with open_recordings(run) as recordings:
        streamed = list(recordings.stream())
        (read,) = recordings.read([streamed[0].trajectory_id])
    assert [turn.reply for turn in read.turns] == [said[0], {"role": "assistant", "content": "north"}]
    assert (read.reward, read.metrics, read.output) == (0.5, {"steps": 2.0}, "printed\n")
    assert streamed[0].messages == read.messages


def test_an_unknown_id_is_named_with_the_nearest(run: Run) -> None:
    with (
        open_recordings(run) as recordings,
        pytest.raises(RunError, match=r"no trajectory '0-1'.*Did you mean '0-1-1-"),
    ):
        recordings.read(["0-1"])
