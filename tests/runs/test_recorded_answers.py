"""What an agent returns and what a dataset holds is in the run's files as it was, whatever a file format can carry."""

import asyncio
import textwrap
import tracemalloc
from pathlib import Path

import orjson
import pytest

from heldout.job.records import Attempt, Turn, turn_json
from heldout.policies.scripted import ScriptedServer
from heldout.report.page import write_report
from heldout.runs.journal import Journal
from heldout.runs.journal_index import JournalIndex
from heldout.runs.recordings import open_recordings
from heldout.runs.results import write_results
from heldout.runs.run import Run
from heldout.runs.tables import read_tables, write_tables
from tests.support.jobs import new_run, played, played_with, rows


def agent_file(folder: Path, source: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agent.py").write_text(textwrap.dedent(source))
    return f"{folder}/agent.py:play"


async def test_all_that_an_agent_returns_is_kept_with_its_rollout(tmp_path: Path) -> None:
    agent = agent_file(
        tmp_path,
        """
        def play(payload):
            return {
                "reward": 0.5,
                "metrics": {"moves": 3, "won": True, "opening": "e4", "path": [1, 2], "none": None, "bad": float("nan")},
                "summary": {"board": "x..", "big": 2**70},
                "note": "a draw",
            }
        """,
    )
    run = await played(tmp_path, ["p"], agent=agent)
    [row] = rows(run)
    assert row["metrics"] == {"moves": 3.0, "won": 1.0}
    assert orjson.loads(row["labels"]) == {"opening": "e4", "path": [1, 2]}
    assert "metric_dropped" in row["flags"]
    with open_recordings(run) as recordings:
        [trajectory] = recordings.stream()
    assert trajectory.labels == {"opening": "e4", "path": [1, 2]}
    assert trajectory.returned == {"summary": {"board": "x..", "big": 2**70}, "note": "a draw"}


@pytest.mark.parametrize(
    "reward",
    ["np.float32(0.5)", "np.array([0.25, 0.25])", "np.array(0.5)", "Decimal('0.5')", "Fraction(1, 2)", "np.True_ / 2"],
)
async def test_a_number_of_another_library_is_a_reward(tmp_path: Path, reward: str) -> None:
    agent = agent_file(
        tmp_path,
        f"""
        from decimal import Decimal
        from fractions import Fraction
        import numpy as np

        def play(payload):
            return {{"reward": {reward}, "metrics": {{"counted": np.int64(3), "exact": Decimal("0.1"), "is_on": np.True_}}}}
        """,
    )
    [row] = rows(await played(tmp_path, ["p"], agent=agent))
    assert (row["status"], row["reward"]) == ("scored", 0.5)
    assert row["metrics"] == {"counted": 3.0, "exact": 0.1, "is_on": 1.0}


async def test_an_answer_with_more_than_the_record_holds_is_scored_and_flagged(tmp_path: Path) -> None:
    agent = agent_file(
        tmp_path, "def play(payload): return {'reward': 1, 'short': 'a', 'long': 'x' * 70_000, 'last': 'z'}\n"
    )
    [row] = rows(await played(tmp_path, ["p"], agent=agent))
    assert row["reward"] == 1
    assert "answer_cut" in row["flags"]
    assert orjson.loads(row["returned"]) == {"short": "a", "last": "z"}


async def test_a_reported_metric_that_utf8_cannot_carry_costs_the_report_and_not_the_job(tmp_path: Path) -> None:
    agent = agent_file(
        tmp_path,
        """
        import json, urllib.error, urllib.request

        def play(payload):
            metadata = payload["metadata"]
            body = {"TrajectoryId": metadata["rolloutId"], "Rewards": [1.0], "Metrics": {"bad \\ud800": 1}}
            url = metadata["baseUrl"].removesuffix("/v1") + "/update-reward"
            try:
                urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                return {"reward": 0.25, "status_of_report": error.code}
        """,
    )
    [row] = rows(await played(tmp_path, ["p"], agent=agent))
    assert (row["reward"], orjson.loads(row["returned"])) == (0.25, {"status_of_report": 400})


async def test_numbers_of_any_size_in_a_dataset_pass_through_the_whole_job(tmp_path: Path) -> None:
    agent = agent_file(tmp_path, "def play(payload): return {'reward': 1, 'seen': payload['metadata']['columns']}\n")
    async with ScriptedServer() as server:
        run = new_run(tmp_path, server.url, ["p"], agent=agent, eval_group_size=2)
        lines = [
            f'{{"prompt": "p{i}", "level": {level}, "id": {2**64 + i}, "deep": {{"n": [-1e999, {-(2**80)}]}}}}\n'
            for i, level in enumerate(["1e400", "-1e400", *range(10)])
        ]
        (tmp_path / "prompts.jsonl").write_text("".join(lines))
        await played_with(run)
    write_report(run)
    with open_recordings(run) as recordings:
        trajectories = {one.prompt_index: one for one in recordings.stream()}
    first = {"level": float("inf"), "id": 2**64, "deep": {"n": [float("-inf"), -(2**80)]}}
    assert trajectories[0].columns == first
    assert trajectories[0].returned == {"seen": first}
    assert trajectories[1].columns["level"] == float("-inf")


def turn(**fields: object) -> Turn:
    given: dict[str, object] = {
        "index": 0,
        "parent": None,
        "shared_messages": 0,
        "messages": turn_json([{"role": "user", "content": "hi", "n": 2**70}]),
        "request": turn_json({"x": float("inf")}),
        "reply": turn_json([{"role": "assistant", "content": "a", "p": float("-inf")}]),
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "response_tokens": 1,
        "logprobs": (-0.5, float("-inf"), float("nan")),
        "started_at": 1.0,
        "seconds": 1.0,
        "status": 200,
        "error": None,
    }
    return Turn(**(given | fields))  # type: ignore[arg-type]


def attempt(prompt_index: int, *, turns: tuple[Turn, ...] = (), **metrics: float) -> Attempt:
    return Attempt(
        prompt_index=prompt_index,
        rollout_index=0,
        number=1,
        trajectory_id=f"t{prompt_index}",
        is_final=True,
        failure=None,
        rewards=(1.0,),
        metrics=tuple(metrics.items()),
        flags=(),
        turns=turns,
        output="",
        started_at=1.0,
        seconds=1.0,
    )


async def written(folder: Path, attempts: list[Attempt]) -> Run:
    """A run whose journal holds these attempts, with its tables."""
    run = new_run(folder, "http://127.0.0.1:1/v1", ["p"])
    journal = Journal(run.journal_folder)
    journal.open()
    await asyncio.gather(*(journal.append(one) for one in attempts))
    await journal.close()
    return run


async def test_a_turn_comes_back_from_journal_and_tables_as_it_was(tmp_path: Path) -> None:
    run = await written(tmp_path, [attempt(0, turns=(turn(),))])
    Journal(run.journal_folder).open()  # looks for a torn line
    write_results(run, is_partial=True)
    [row] = rows(run, "trajectories")
    assert row["messages"] == f'[{{"role":"user","content":"hi","n":{2**70}}}]'
    assert row["request"] == '{"x":1e999}'
    assert row["reply"] == '[{"role":"assistant","content":"a","p":-1e999}]'
    assert row["logprobs"][:2] == [-0.5, float("-inf")]
    assert read_tables(run.folder, 1).turns.logprob_nz_count.tolist() == [1]


async def test_many_attempts_without_turns_are_written_in_little_memory(tmp_path: Path) -> None:
    run = await written(tmp_path, [attempt(number) for number in range(12_000)])
    index = JournalIndex.of(run.journal_folder, 1)
    tracemalloc.start()
    write_tables(run, index, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # 25 MB as one batch


async def test_a_metric_of_a_new_name_in_each_rollout_is_dropped_from_the_thousandth_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = agent_file(
        tmp_path,
        "def play(payload):\n"
        "    number = int(payload['prompt'])\n"
        "    return {'reward': 1, 'metrics': {f'm{number}_{i}': 1 for i in range(400)}}\n",
    )
    run = await played(tmp_path, ["0", "1", "2"], agent=agent, rollout_max_concurrency=1)
    flags = ["metric_dropped" in row["flags"] for row in rows(run)]
    assert sum(flags) == 1
    assert len(read_tables(run.folder, 1).agent_metrics) == 1000
    warnings = [record.getMessage() for record in caplog.records if "names of metrics" in record.getMessage()]
    assert len(warnings) == 1
