"""Agents written for the published packages, unmodified, played as whole jobs: their own clients, tokens and reports."""

from pathlib import Path
from typing import Any

import pytest

from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, ScriptedCall, ToolCall
from heldout.runs.run import Run
from tests.support.jobs import new_run, played_with, rows

AGENTS = Path(__file__).parents[1] / "support" / "agents"


def _echo(call: ScriptedCall) -> Reply:
    """Repeats the last message; calls the tool first if there is one to call and it has not been called."""
    messages: Any = call.body["messages"]
    if call.body.get("tools") and messages[-1]["role"] != "tool":
        return Reply(tool_calls=(ToolCall("look", '{"place": "doormat"}'),))
    content = messages[-1]["content"]
    return Reply(content if isinstance(content, str) else str(content))


async def _played(folder: Path, agent: str, prompts: list[str], **settings: object) -> Run:
    async with ScriptedServer(_echo) as server:
        run = new_run(folder, server.url, prompts, agent=f"{AGENTS / agent}", rollout_max_retries=0, **settings)
        await played_with(run)
    return run


async def test_the_published_handler_signs_with_the_jobs_own_keys_and_reports_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = await _played(tmp_path, "rft_handler_agent.py:invoke", ["say cheese", "raise", "error"])
    good, raised, error = sorted(rows(run), key=lambda row: row["prompt_index"])
    assert (good["status"], good["reward"], good["turns"], good["flags"]) == ("scored", 1.0, 1, ["sampling_differs"])
    assert good["metrics"] == {"letters": float(len("say cheese"))}
    for row in (raised, error):
        assert (row["status"], row["error_boundary"], row["error_kind"]) == ("failed", "agent", "reported_failed")


async def test_the_published_app_plays_unmodified(tmp_path: Path) -> None:
    run = await _played(tmp_path, "agentcore_app.py:app", ["say cheese", "raise"])
    good, raised = sorted(rows(run), key=lambda row: row["prompt_index"])
    assert (good["status"], good["reward"], good["turns"]) == ("scored", 1.0, 1)
    assert (raised["status"], raised["error_kind"]) == ("failed", "raised")


async def test_an_agent_that_knows_only_a_base_url_plays_streaming_or_not(tmp_path: Path) -> None:
    run = await _played(tmp_path, "openai_agent.py:solve", ["say cheese", "stream cheese"])
    assert [row["turns"] for row in rows(run)] == [2, 2]
    turns = rows(run, "trajectories")
    assert [turn["shared_messages"] for turn in turns if turn["turn"] == 1] == [2, 2]


@pytest.mark.slow
async def test_a_strands_agent_behind_the_published_wrapper_has_its_tool_calls_recorded(tmp_path: Path) -> None:
    run = await _played(tmp_path, "strands_agent.py:invoke", ["where is the doormat"], rollout_timeout=120)
    (row,) = rows(run)
    assert (row["status"], row["reward"], row["turns"]) == ("scored", 1.0, 2)
    first, second = sorted(rows(run, "trajectories"), key=lambda turn: turn["turn"])
    assert '"look"' in first["reply"]
    assert "There is a key under the doormat" in second["messages"]
