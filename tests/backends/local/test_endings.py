"""Every way in which a rollout can end, each played by a real agent in a real worker process."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply
from heldout.runs.recordings import open_recordings
from heldout.runs.run import Run
from tests.support.jobs import by_prompt, new_run, played, played_with, rows

PROMPTS = [
    "turns 3",
    "per-turn 0.25,0.5,0.25",
    "report-and-return 0.5,0.5",
    "report-and-return 0.5,0.9",
    "report-twice 0.5,0.9",
    "report-failed gave up",
    "fail-first 1",
    "raise no such move",
    "no-model-call 0.5",
    "nan nan",
    "nan inf",
    'return {"score": 1}',
    "return 1.0",
    'return {"reward": "high"}',
    'return {"reward": []}',
    'return {"reward": [1e308, 1e308]}',
    'return {"reward": true}',
    'return {"errorType": "ValidationError", "errorMessage": "no board"}',
]
Rows = Mapping[str, dict[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("endings")
    return await played(folder, PROMPTS, rollout_max_retries=1, success_threshold=0.5)


@pytest.fixture(scope="module")
def ended(run: Run) -> Rows:
    return by_prompt(run, PROMPTS)


def test_every_prompt_ends_exactly_once(run: Run) -> None:
    assert sorted(row["prompt_index"] for row in rows(run)) == list(range(len(PROMPTS)))
    assert sum(row["is_final"] for row in rows(run, "attempts")) == len(PROMPTS)


def test_a_returned_reward_scores_the_rollout_and_its_turns_are_kept(ended: Rows) -> None:
    row = ended["turns 3"]
    assert (row["status"], row["reward"], row["success"], row["turns"], row["attempts"]) == ("scored", 1.0, True, 3, 1)
    assert row["prompt_tokens"] > 0
    assert row["response_tokens"] > 0


def test_a_returned_reward_may_be_what_a_comparison_gave(ended: Rows) -> None:
    assert ended['return {"reward": true}']["reward"] == 1.0


def test_named_metrics_become_columns(ended: Rows) -> None:
    assert ended["turns 3"]["metrics"] == {"turns_played": 3.0, "half": 0.5, "seen": None}


def test_rewards_for_each_turn_are_kept_and_summed(ended: Rows) -> None:
    row = ended["per-turn 0.25,0.5,0.25"]
    assert (row["rewards"], row["reward"], row["flags"]) == ([0.25, 0.5, 0.25], 1.0, [])


def test_a_reward_both_reported_and_returned_counts_once(ended: Rows) -> None:
    row = ended["report-and-return 0.5,0.5"]
    assert (row["reward"], row["rewards"], row["flags"]) == (0.5, [0.5], [])
    assert row["metrics"]["seen"] == 1.0


def test_when_they_differ_the_reported_reward_counts_and_the_rollout_is_flagged(ended: Rows) -> None:
    row = ended["report-and-return 0.5,0.9"]
    assert (row["reward"], row["flags"]) == (0.5, ["reward_mismatch"])


def test_a_second_report_with_another_reward_is_a_conflict(run: Run, ended: Rows) -> None:
    assert ended["report-twice 0.5,0.9"]["reward"] == 0.5
    assert "statuses 200 409" in by_prompt(run, PROMPTS, "attempts")["report-twice 0.5,0.9"]["output"]


@pytest.mark.parametrize(
    ("prompt", "boundary", "kind", "words"),
    [
        ("report-failed gave up", "agent", "reported_failed", "failed"),
        ("raise no such move", "agent", "raised", "no such move"),
        ("nan nan", "reward", "bad_reward", "nan"),
        ("nan inf", "reward", "bad_reward", "inf"),
        ('return {"score": 1}', "agent", "no_reward", "score"),
        ("return 1.0", "agent", "no_reward", "must return {'reward': NUMBER}"),
        ('return {"reward": "high"}', "reward", "bad_reward", "high"),
        ('return {"reward": []}', "reward", "bad_reward", "[]"),
        ('return {"reward": [1e308, 1e308]}', "reward", "bad_reward", "1e+308"),
        (
            'return {"errorType": "ValidationError", "errorMessage": "no board"}',
            "agent",
            "reported_failed",
            "no board",
        ),
    ],
)
def test_an_attempt_that_fails_is_tried_again_and_then_failed_for_good_with_its_reason(
    ended: Rows, prompt: str, boundary: str, kind: str, words: str
) -> None:
    row = ended[prompt]
    assert (row["status"], row["reward"], row["success"], row["attempts"]) == ("failed", None, False, 2)
    assert (row["error_boundary"], row["error_kind"]) == (boundary, kind)
    assert words in row["error"]


def test_an_attempt_that_failed_first_keeps_what_it_printed(run: Run, ended: Rows) -> None:
    row = ended["fail-first 1"]
    assert (row["status"], row["reward"], row["attempts"]) == ("scored", 1.0, 2)
    first = next(
        r for r in rows(run, "attempts") if r["prompt_index"] == PROMPTS.index("fail-first 1") and r["attempt"] == 1
    )
    assert "attempt 1 gives up" in first["output"]


async def test_a_metric_whose_name_is_no_text_is_dropped_and_the_job_goes_on(tmp_path: Path) -> None:
    run = await played(tmp_path, [r'return {"reward": 1, "metrics": {"\ud800": 1, "fine": 2}}', "1"])
    first, second = rows(run)
    assert (first["status"], first["metrics"], second["status"]) == ("scored", {"fine": 2.0}, "scored")
    assert "metric_dropped" in first["flags"]


async def test_a_crash_costs_only_the_attempt_that_crashed(tmp_path: Path) -> None:
    prompts = ["crash 9", "1", "crash 9", "1", "1", "crash 9", "1"]
    run = await played(tmp_path, prompts, rollout_max_retries=1)
    ended = {row["prompt_index"]: (row["status"], row["error_kind"], row["attempts"]) for row in rows(run)}
    guilty = ("failed", "crashed", 2)
    assert ended == {n: guilty if prompt == "crash 9" else ("scored", None, 1) for n, prompt in enumerate(prompts)}
    crashed = [row for row in rows(run, "attempts") if row["error_kind"] == "crashed"]
    assert len(crashed) == 6
    assert all("about to crash" in row["output"] for row in crashed)


async def test_a_crash_after_the_report_does_not_undo_the_reward(tmp_path: Path) -> None:
    run = await played(tmp_path, ["report-then-crash 0.75"])
    (row,) = rows(run)
    assert (row["status"], row["reward"], row["attempts"]) == ("scored", 0.75, 1)
    assert row["flags"] == ["failed_after_reward"]


def test_a_rollout_without_a_model_call_is_scored_and_flagged(ended: Rows) -> None:
    row = ended["no-model-call 0.5"]
    assert (row["reward"], row["turns"], row["flags"]) == (0.5, 0, ["no_model_call"])


async def test_a_report_after_the_timeout_is_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("HELDOUT_TEST_LOG", str(log))
    run = await played(
        tmp_path / "job", ["report-late 1.5", "hang", "no-model-call 1"], rollout_timeout=1, rollout_max_retries=0
    )
    kinds = {row["error_kind"] for row in rows(run)}
    assert kinds == {"timeout", None}
    # A sync agent runs on in its thread until its worker is ended: if it got to report, it was refused.
    assert not log.exists() or set(log.read_text().split()) == {"409"}


async def test_a_call_that_failed_and_was_made_again_is_one_turn(tmp_path: Path) -> None:
    answers = iter([Reply("out of memory", status=500)])
    async with ScriptedServer(lambda _: next(answers, Reply())) as server:
        run = new_run(tmp_path, server.url, ["insist"])
        await played_with(run)
    [row], calls = rows(run), rows(run, "trajectories")
    assert (row["turns"], row["flags"]) == (1, [])
    assert [call["status"] for call in calls] == [500, 200]
    assert _metrics(run)["eval/turns/mean"] == 1.0
    with open_recordings(run) as recordings:
        [recorded] = recordings.stream()
    assert recorded.counted_turns == "1 turn, 1 failed call"


async def test_a_timeout_says_when_the_model_was_waited_for(tmp_path: Path) -> None:
    async with ScriptedServer(lambda _: Reply(seconds=300.0)) as server:
        run = new_run(
            tmp_path,
            server.url,
            ["turns 1", "hang", "no-model-call 1"],
            rollout_timeout=2,
            rollout_max_retries=0,
            rollout_max_concurrency=1,
        )
        await played_with(run)
    waiting, hanging, _ = rows(run)
    assert (waiting["error_kind"], hanging["error_kind"]) == ("timeout", "timeout")
    assert waiting["error"] == "no answer within 2 s; its last model call was still waiting for the model"
    assert "model call" not in hanging["error"]


def test_failed_rollouts_count_as_reward_zero(run: Run, ended: Rows) -> None:
    scored = [row["reward"] for row in ended.values() if row["status"] == "scored"]
    metrics = _metrics(run)
    assert metrics["eval/reward/failed_rollouts"] == len(PROMPTS) - len(scored)
    assert math.isclose(metrics["eval/reward/mean"], sum(scored) / len(PROMPTS))


def _metrics(run: Run) -> dict[str, float]:
    return dict(orjson.loads(run.metrics_path.read_bytes())["metrics"])
