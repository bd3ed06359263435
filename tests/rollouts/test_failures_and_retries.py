"""Jobs whose rollouts fail: when a run has no number, when its numbers are incomplete, and what retries hide."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from heldout.backends.local.job import play_rollouts
from heldout.errors import JobFailed, NothingScored
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, ScriptedCall
from heldout.report.run_analysis import analyze
from heldout.rollouts.context import PlayContext
from heldout.runs.run import JobStatus, Run
from tests.support.agents_support import AGENTS
from tests.support.jobs import new_run, played, played_with, rows, write_prompts
from tests.support.model_servers import model_server
from tests.support.scripted_agents import __file__ as agents_file
from tests.support.terminal import heldout

OPENAI = f"{AGENTS / 'openai_agent.py'}:solve"
SUCCESS, FIRST = "eval/reward/pass_at_1", "eval/reward/first_attempt_pass_at_1"


def numbers(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run.metrics_path.read_bytes())
    return document


@pytest.mark.parametrize("failed_rollouts", ["zero", "exclude"])
async def test_a_run_in_which_nothing_was_scored_has_no_score_and_has_failed(
    tmp_path: Path, failed_rollouts: str
) -> None:
    async with ScriptedServer() as server:
        prompts = ["raise no board"] * 8 + ["crash 9"] * 2
        run = new_run(tmp_path, server.url, prompts, rollout_max_retries=0, failed_rollouts=failed_rollouts)
        said = r"none of the 10 rollouts .* was scored: agent: raised \(8\), all .*no board.*; agent: crashed \(2\)"
        with pytest.raises(JobFailed, match=said):
            await play_rollouts(run, PlayContext())
        found = numbers(run)
        assert not {SUCCESS, "eval/reward/mean", "eval/reward/zero_frac"} & (
            set(found["metrics"]) | set(found["intervals"])
        )
        assert found["rollouts"] == {"prompts": 10, "scored": 0, "failed": 10, "missing": 0}
        state = Run.open(run.folder).state
        assert (state.status, str(state.failure_reason)[:7]) == (JobStatus.FAILED, "none of")
        with pytest.raises(JobFailed, match="none of the 10"):  # resumed, it says the same again
            await played_with(run)


def test_the_command_says_why_nothing_was_scored_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_prompts(tmp_path, ["raise no board"] * 3)
    with model_server(tmp_path) as model:
        arguments = ("--model", model, "--agent", f"{agents_file}:play", "--dataset", str(dataset), "--mlflow", "off")
        code = heldout(
            monkeypatch,
            "evaluate",
            *arguments,
            "--output",
            str(tmp_path / "runs"),
            "--name",
            "t",
            "-H",
            "rollout_max_retries=0",
        )
    printed = capsys.readouterr()
    assert code == 1
    assert "none of the 3 rollouts" in printed.err
    assert "no board" in printed.err
    assert "pass@1" not in printed.out
    assert "resume repeats none" in printed.err
    assert "continue with" not in printed.err
    assert heldout(monkeypatch, "gate", str(tmp_path / "runs" / "t"), "--require", "pass_at_1 >= 0.5") == 1
    gate_lines = capsys.readouterr().out
    assert "pass_at_1 is not known: no rollout to count: all 3 failed" in gate_lines


async def test_failures_of_the_model_server_alone_can_be_played_again(tmp_path: Path) -> None:
    async with ScriptedServer(lambda call: Reply(raw=b"data: [DONE]\n\n")) as server:
        run = new_run(tmp_path, server.url, ["1", "1"], agent=OPENAI, rollout_max_retries=0)
        with pytest.raises(NothingScored) as caught:
            await play_rollouts(run, PlayContext())
    assert caught.value.retryable == 2
    assert pickle.loads(pickle.dumps(caught.value)).retryable == 2


@pytest.mark.parametrize(
    ("failing", "share", "incomplete"), [(1, 0.1, False), (2, 0.1, True), (2, 0.2, False), (1, 0, True), (0, 0, False)]
)
async def test_numbers_are_incomplete_above_the_share_of_failures_that_the_user_allows(
    tmp_path: Path, failing: int, share: float, incomplete: bool
) -> None:
    prompts = ["raise x"] * failing + ["no-model-call 1"] * (10 - failing)
    run = await played(tmp_path, prompts, rollout_max_retries=0, max_failed_share=share)
    assert numbers(run)["incomplete"] is incomplete
    assert Run.open(run.folder).state.incomplete is incomplete


async def test_second_chances_are_found_and_the_first_attempts_have_a_number_of_their_own(tmp_path: Path) -> None:
    prompts = ["fail-first 1"] * 5 + ["1"] * 4 + ["raise x"]
    run = await played(tmp_path, prompts, rollout_max_retries=1)
    metrics = numbers(run)["metrics"]
    assert (metrics[SUCCESS], metrics[FIRST]) == (0.9, 0.4)
    found = {finding.kind: finding for finding in analyze(run).findings}["played_again"]
    assert found.num_rollouts == 6
    assert "6 of 10 rollouts were played again" in found.seen
    assert "agent: raised (6)" in found.seen
    assert "90.0% of all rollouts succeed, on first attempts 40.0%" in found.seen


async def test_without_retries_of_agent_failures_the_first_attempt_decides(tmp_path: Path) -> None:
    prompts = ["fail-first 1"] * 2 + ["1"] * 2 + ["nan nan", "report-failed gave up", "return 1.0"]
    run = await played(tmp_path, prompts, retry_agent_failures=False)
    assert [row["attempts"] for row in rows(run)] == [1] * 7
    assert [row["status"] for row in rows(run)] == ["failed"] * 2 + ["scored"] * 2 + ["failed"] * 3
    assert FIRST not in numbers(run)["metrics"]


async def test_a_failure_of_the_model_server_is_played_again_and_no_second_chance(tmp_path: Path) -> None:
    def script(call: ScriptedCall) -> Reply:
        return Reply("out of memory", status=500) if call.number == 0 else Reply()

    async with ScriptedServer(script) as server:
        run = new_run(tmp_path, server.url, ["1"], retry_agent_failures=False)
        await play_rollouts(run, PlayContext())
    (row,) = rows(run)
    assert (row["status"], row["attempts"]) == ("scored", 2)
    assert FIRST not in numbers(run)["metrics"]
    assert "played_again" not in {finding.kind for finding in analyze(run).findings}


def test_failures_of_the_model_server_are_played_again_when_asked_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_prompts(tmp_path, ["1", "no-model-call 1", "raise x", "turns 2"])
    with model_server(tmp_path, error="out of memory") as broken:
        port = int(broken.partition(":")[2].partition("/v1")[0].rpartition(":")[2])
        arguments = ("--model", broken, "--agent", f"{agents_file}:play", "--dataset", str(dataset), "--mlflow", "off")
        place = ("--output", str(tmp_path / "runs"), "--name", "t", "-H", "rollout_max_retries=0")
        assert heldout(monkeypatch, "evaluate", *arguments, *place) == 0
    (state,) = (tmp_path / "runs/t").glob("*/job.json")
    run = Run.open(state.parent)
    assert [row["error_boundary"] for row in rows(run)] == ["policy", None, "agent", "policy"]
    assert (run.state.status, run.state.retryable, run.state.incomplete) == (JobStatus.COMPLETED, 2, True)
    with model_server(tmp_path, port=port):
        assert heldout(monkeypatch, "resume", str(tmp_path / "runs/t"), "--retry-failed") == 0
        run = Run.open(run.folder)
        assert [row["status"] for row in rows(run)] == ["scored", "scored", "failed", "scored"]
        assert [row["attempts"] for row in rows(run)] == [2, 1, 1, 2]
        finals = [row["is_final"] for row in rows(run, "attempts")]
        assert (len(finals), sum(finals)) == (6, 4)
        assert numbers(run)["rollouts"] == {"prompts": 4, "scored": 3, "failed": 1, "missing": 0}
        assert (run.state.retryable, run.has_journal) == (0, False)
        assert heldout(monkeypatch, "resume", str(tmp_path / "runs/t"), "--retry-failed") == 0  # nothing is left
