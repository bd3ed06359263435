"""Runs whose output is in S3: played here, kept there, resumed by a machine that has nothing of them."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from heldout.backends.local.job import play_job
from heldout.errors import RunError, StorageError
from heldout.job.document import JobConfigDocument, OutputDataConfig
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import StopSwitch
from heldout.runs.journal import read
from heldout.runs.remote_mirror import folder_for, new_folder, open_run
from heldout.runs.run import JobStatus, Run
from heldout.storage.claim import RemoteTimes
from tests.support.agents_support import AGENTS
from tests.support.faulty_s3 import FaultyService, faulty_service
from tests.support.jobs import PLAYERS, new_run, rows, write_prompts
from tests.support.model_servers import model_server
from tests.support.s3_service import BUCKET, s3_client, s3_service, use_service
from tests.support.terminal import heldout

OUTPUT = f"s3://{BUCKET}/evaluations"
LOCATION = f"{OUTPUT}/test/base-model-eval"
KEY = "evaluations/test/base-model-eval"


TIMES = RemoteTimes(
    watch_seconds=0.1,
    look_every_seconds=0.01,
    refusal_waits_seconds=(0.01, 0.01),
    seal_every_seconds=0.02,
    finish_waits_seconds=(0.0, 0.0),
)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of the S3 service that the environment names."""
    with s3_service() as url:
        use_service(monkeypatch, url)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        yield s3_client(url)


@pytest.fixture
def faulty(service: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyService]:
    """A proxy in front of the service, for all that reach it from now on."""
    with faulty_service(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


def _remote_run(folder: Path, model_url: str, prompts: list[str], **settings: Any) -> Run:
    local = new_run(folder, model_url, prompts, **settings)
    document: JobConfigDocument = local.document.model_copy(update={"output_data_config": OutputDataConfig.at(OUTPUT)})
    return Run.create(
        new_folder(LOCATION), name="test", run_name="base-model-eval", region="us-west-2", document=document
    )


async def _played(run: Run, switch: StopSwitch | None = None) -> None:
    """Plays a run as the command line does, from its files to its place."""
    await play_job(Run.open(run.folder), PlayContext(switch=switch or StopSwitch(), note=pytest.fail, times=TIMES))


def _names(service: Any) -> set[str]:
    listed = service.list_objects_v2(Bucket=BUCKET, Prefix="evaluations/").get("Contents", [])
    return {str(item["Key"]).removeprefix(f"{KEY}/") for item in listed}


def _copied_journal(service: Any) -> bytes:
    names = sorted(name for name in _names(service) if name.startswith("journal/"))
    copies = [service.get_object(Bucket=BUCKET, Key=f"{KEY}/{name}") for name in names]
    return b"".join(copy["Body"].read() for copy in copies)


async def test_results_are_in_the_bucket_when_the_job_is_done(tmp_path: Path, service: Any) -> None:
    async with ScriptedServer() as server:
        run = _remote_run(tmp_path, server.url, ["1", "0.5"])
        await _played(run)
    assert {
        "job.json",
        "metrics.json",
        "report.html",
        "rollouts.parquet",
        "trajectories.parquet",
        "attempts.parquet",
    } <= _names(service)
    assert not any(name.startswith("journal/") for name in _names(service))
    body = service.get_object(Bucket=BUCKET, Key=f"{KEY}/job.json")["Body"].read()
    assert orjson.loads(body)["status"] == "Completed"
    assert open_run(LOCATION).location == LOCATION


async def test_another_machine_goes_on_with_what_is_in_the_bucket(tmp_path: Path, service: Any) -> None:
    async with ScriptedServer() as server:
        run = _remote_run(
            tmp_path, server.url, ["0.2"] * 6, agent=f"{PLAYERS}:slow", rollout_max_concurrency=2, success_threshold=0.1
        )
        switch = StopSwitch()
        playing = asyncio.create_task(_played(run, switch))
        async with asyncio.timeout(60):
            while server.num_calls < 2:
                await asyncio.sleep(0.01)
        switch.stop()
        await playing
        assert any(name.startswith("journal/") for name in _names(service))
        played = server.num_calls

        shutil.rmtree(folder_for(LOCATION))
        fetched = open_run(LOCATION)
        assert sum(line.attempt.is_final for line in read(fetched.journal_folder)) == played < 6
        await _played(fetched)
        assert server.num_calls == 6
    assert sorted(row["prompt_index"] for row in rows(fetched)) == list(range(6))


async def test_what_was_finished_is_in_the_bucket_while_the_rest_is_played(
    tmp_path: Path, service: Any, faulty: FaultyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.refuse("PUT", ".jsonl", times=1)
    async with ScriptedServer() as server:
        run = _remote_run(tmp_path, server.url, ["0", "300", "0.3"], agent=f"{PLAYERS}:slow")
        switch = StopSwitch()
        playing = asyncio.create_task(_played(run, switch))
        async with asyncio.timeout(60):
            while _copied_journal(service).count(b"\n") < 2:
                await asyncio.sleep(0.01)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
        fetched = open_run(LOCATION)
        assert sorted(line.attempt.prompt_index for line in read(fetched.journal_folder)) == [0, 2]
        switch.stop()
        switch.stop()
        await playing


async def test_a_run_completed_elsewhere_is_fetched_rather_than_played_again(tmp_path: Path, service: Any) -> None:
    async with ScriptedServer() as server:
        run = _remote_run(tmp_path, server.url, ["1"])
        interrupted = tmp_path / "interrupted"
        shutil.copytree(run.folder, interrupted)
        await _played(run)
    shutil.rmtree(run.folder)
    shutil.copytree(interrupted, run.folder)
    with Run.open(run.folder).locked():  # by who is playing it here: nothing is fetched over that
        assert open_run(LOCATION).state.status is JobStatus.IN_PROGRESS
    assert open_run(LOCATION).state.status is JobStatus.COMPLETED


def test_a_fetch_that_was_cut_short_is_made_again(tmp_path: Path, service: Any, faulty: FaultyService) -> None:
    run = _remote_run(tmp_path, "http://127.0.0.1:9/v1", ["1"])
    service.put_object(Bucket=BUCKET, Key=f"{KEY}/job.json", Body=(run.folder / "job.json").read_bytes())
    service.put_object(Bucket=BUCKET, Key=f"{KEY}/prompts.parquet", Body=b"the prompts")
    shutil.rmtree(run.folder)
    faulty.refuse("GET", "prompts.parquet", times=1)
    with pytest.raises(StorageError):
        open_run(LOCATION)
    assert open_run(LOCATION).prompts_path.read_bytes() == b"the prompts"


def test_what_is_left_here_of_a_run_that_was_removed_from_the_bucket_is_no_part_of_a_new_one(
    tmp_path: Path, service: Any
) -> None:
    assert _remote_run(tmp_path, "http://127.0.0.1:9/v1", ["1"]).folder.exists()
    assert not new_folder(LOCATION).exists()


async def test_what_is_in_the_bucket_is_listed_without_being_fetched(
    tmp_path: Path, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with ScriptedServer() as server:
        await _played(_remote_run(tmp_path, server.url, ["1"]))
    service.put_object(Bucket=BUCKET, Key="evaluations/broken/execution.json", Body=b"{}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    assert heldout(monkeypatch, "list", f"{OUTPUT}/") == 0
    said = capsys.readouterr()
    assert said.out.split()[2:4] == ["Completed", LOCATION]
    assert "pass@1 1.00" in said.out
    assert said.err.startswith(f"! {OUTPUT}/broken: its execution.json cannot be read: ")
    assert not (tmp_path / "another machine").exists()


def test_a_run_that_is_in_the_bucket_is_never_overwritten(tmp_path: Path, service: Any) -> None:
    service.put_object(Bucket=BUCKET, Key=f"{KEY}/job.json", Body=b"{}")
    with pytest.raises(RunError, match=r"there is a run at s3://.* already"):
        new_folder(LOCATION)


def test_an_evaluation_that_cannot_begin_leaves_nothing_in_the_bucket(
    tmp_path: Path, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1"}\n')
    given = ["--model", "http://127.0.0.1:9/v1#m", "--agent", f"{PLAYERS}:play", "--dataset", str(prompts)]
    given += ["--output", OUTPUT, "--name", "test", "--mlflow", "off"]
    assert heldout(monkeypatch, "evaluate", *given) == 2
    assert "no model server at" in capsys.readouterr().err
    assert _names(service) == set()
    assert not folder_for(f"{OUTPUT}/test").exists()


def test_the_two_runs_of_an_evaluation_in_the_bucket_are_compared(
    tmp_path: Path, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with model_server(tmp_path, "no", "base") as base, model_server(tmp_path, "yes", "tuned") as tuned:
        given = [
            "--model",
            tuned,
            "--compare-with",
            base,
            "--agent",
            f"{AGENTS / 'agreeing.py'}:play",
            "--mlflow",
            "off",
        ]
        given += ["--dataset", str(write_prompts(tmp_path, "abcdefgh")), "--output", OUTPUT, "--name", "test"]
        assert heldout(monkeypatch, "evaluate", *given) == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    capsys.readouterr()
    assert heldout(monkeypatch, "compare", f"{OUTPUT}/test", "--json") == 0
    document = orjson.loads(capsys.readouterr().out)
    assert document["prompts"]["shared"] == 8
    assert document["metrics"]["eval/reward/mean"]["difference"] == 1.0
    assert heldout(monkeypatch, "compare", f"{OUTPUT}/nothing") == 2
    assert "no evaluation at" in capsys.readouterr().err


def test_a_run_that_is_in_no_bucket_is_named(service: Any) -> None:
    with pytest.raises(RunError, match=r"no run at 's3://.*nothing'"):
        open_run(f"{OUTPUT}/nothing")


async def test_results_are_copied_again_when_the_place_was_away_for_a_moment(
    tmp_path: Path, service: Any, faulty: FaultyService
) -> None:
    faulty.refuse("PUT", "metrics.json", times=2)
    async with ScriptedServer() as server:
        await _played(_remote_run(tmp_path, server.url, ["1"]))
    assert "metrics.json" in _names(service)


def test_an_evaluation_whose_bucket_was_emptied_is_resumed_from_this_machines_folder(
    tmp_path: Path, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with model_server(tmp_path, "yes", "model") as model:
        given = ["--model", model, "--agent", f"{AGENTS / 'agreeing.py'}:play", "--mlflow", "off"]
        given += ["--dataset", str(write_prompts(tmp_path, "ab")), "--output", OUTPUT, "--name", "test"]
        assert heldout(monkeypatch, "evaluate", *given) == 0
    for item in service.list_objects_v2(Bucket=BUCKET)["Contents"]:
        service.delete_object(Bucket=BUCKET, Key=item["Key"])
    assert heldout(monkeypatch, "resume", f"{OUTPUT}/test") == 0, capsys.readouterr().err  # without the model server
    names = {item["Key"].rpartition("/")[2] for item in service.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert {"metrics.json", "rollouts.parquet", "job.json"} <= names
