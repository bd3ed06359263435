"""Agents that answer at once and keep playing: an attempt lasts until they report, not until they answer."""

from datetime import timedelta
from pathlib import Path

import pytest

from heldout.backends.local.job import play_rollouts
from heldout.errors import JobFailed
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply
from heldout.rollouts.context import PlayContext
from tests.support.jobs import by_prompt, new_run, played, rows


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_reward_reported_after_the_answer_scores_the_rollout(tmp_path: Path, isolated: bool) -> None:
    prompts = ["later 0.25", "later 0.75"]
    run = await played(tmp_path, prompts, isolate_attempts=isolated, rollout_timeout=30)
    ended = dict(by_prompt(run, prompts))
    assert [(row["reward"], row["turns"], row["attempts"]) for row in ended.values()] == [(0.25, 1, 1), (0.75, 1, 1)]


async def test_output_after_the_answer_is_kept_with_the_attempt(tmp_path: Path) -> None:
    run = await played(tmp_path, ["later 1"], rollout_timeout=30)
    (attempt,) = rows(run, "attempts")
    assert "still at it" in attempt["output"]


async def test_a_crash_in_the_background_costs_only_the_attempt_that_crashed(tmp_path: Path) -> None:
    prompts = ["later crash", *[f"later 0.{number}" for number in range(1, 7)]]
    run = await played(tmp_path, prompts, rollout_timeout=60, rollout_max_retries=1)
    ended = dict(by_prompt(run, prompts))
    guilty = ended.pop("later crash")
    assert (guilty["error_kind"], guilty["attempts"]) == ("crashed", 2)
    assert {(row["status"], row["attempts"]) for row in ended.values()} == {("scored", 1)}


async def test_a_forgotten_return_is_not_waited_for(tmp_path: Path) -> None:
    run = await played(tmp_path, ["nothing", "1"], rollout_timeout=60, rollout_max_retries=0)
    (row,) = (row for row in rows(run) if row["error_kind"])
    assert row["error_kind"] == "no_reward"
    assert "answered None" in row["error"]


async def test_the_wait_for_an_isolated_process_does_not_count_as_agent_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # so many are isolated at once
    run = await played(tmp_path, ["later 1"] * 6, isolate_attempts=True, rollout_timeout=60)
    spans = [(row["started_at"], row["started_at"] + timedelta(seconds=row["seconds"])) for row in rows(run)]
    assert len(spans) == 6
    for begin, _ in spans:
        assert sum(other <= begin < end for other, end in spans) <= 2


async def test_a_model_server_that_fails_is_not_the_agents_failure(tmp_path: Path) -> None:
    async with ScriptedServer(lambda _: Reply("out of memory", status=500)) as server:
        run = new_run(tmp_path, server.url, ["turns 1"], rollout_max_retries=0)
        with pytest.raises(JobFailed, match=r"policy: unreachable \(1\), the policy answered 500: out of memory"):
            await play_rollouts(run, PlayContext())
