"""Jobs whose model server answers with status 200 and no completion."""

from pathlib import Path

from heldout.backends.local.job import play_rollouts
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, ScriptedCall
from heldout.report.run_analysis import analyze
from heldout.rollouts.context import PlayContext
from tests.support.agents_support import AGENTS
from tests.support.jobs import new_run, rows

OPENAI = f"{AGENTS / 'openai_agent.py'}:solve"


async def test_an_agent_that_fails_over_a_bad_reply_is_not_blamed_for_it(tmp_path: Path) -> None:
    def script(call: ScriptedCall) -> Reply:
        return Reply(raw=b'{"choices": []}') if "lost" in str(call.body["messages"]) else Reply()

    async with ScriptedServer(script) as server:
        run = new_run(tmp_path, server.url, ["1", "turns 1", "say lost ok"], agent=OPENAI, rollout_max_retries=0)
        await play_rollouts(run, PlayContext())
    lost = rows(run)[2]
    assert (lost["status"], lost["turns"]) == ("failed", 0)
    assert (lost["error_boundary"], lost["error_kind"]) == ("policy", "bad_reply")
    assert "not a completion" in lost["error"]


async def test_a_scored_rollout_with_an_empty_stream_is_flagged_and_found(tmp_path: Path) -> None:
    def script(call: ScriptedCall) -> Reply:
        return Reply(raw=b"data: [DONE]\n\n") if call.number == 0 else Reply()

    source = (
        "from openai import APIError, OpenAI\n"
        "def play(payload):\n"
        "    client = OpenAI(base_url=payload['metadata']['baseUrl'], api_key='x')\n"
        "    messages = [{'role': 'user', 'content': payload['prompt']}]\n"
        "    try:\n"
        "        list(client.chat.completions.create(model='m', messages=messages, stream=True))\n"
        "    except APIError:\n"
        "        pass\n"
        "    return {'reward': 1}\n"
    )
    (tmp_path / "agent.py").write_text(source)
    async with ScriptedServer(script) as server:
        run = new_run(tmp_path, server.url, ["p"], agent=f"{tmp_path / 'agent.py'}:play")
        await play_rollouts(run, PlayContext())
    (row,) = rows(run)
    assert (row["status"], row["turns"], row["flags"]) == ("scored", 0, ["bad_reply", "sampling_differs"])
    found = {finding.kind: finding for finding in analyze(run).findings}
    assert "1 of 1 rollouts" in found["bad_reply"].seen


async def test_a_refused_field_is_noted_where_the_user_sees_it(tmp_path: Path) -> None:
    def script(call: ScriptedCall) -> Reply:
        return Reply("unknown field seed", status=422) if "seed" in call.body else Reply()

    notes: list[str] = []
    async with ScriptedServer(script) as server:
        run = new_run(tmp_path, server.url, ["1", "1", "1"])
        await play_rollouts(run, PlayContext(note=notes.append))
    assert [row["status"] for row in rows(run)] == ["scored"] * 3
    assert len(notes) == 1
    assert "refuses seed" in notes[0]
