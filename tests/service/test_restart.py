"""`heldout serve` as a process: start, shutdown, kill and restart."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from heldout.cli.main import main
from heldout.service.sagemaker.jobs import JobRecord
from heldout.service.supervisor import SupervisedJob, Supervisor, Work
from heldout.storage.lock import holder_of
from tests.support.jobs import rows
from tests.support.live_service import KEYS, REGION, client, served
from tests.support.service_jobs import (
    DEADLINE_SECONDS,
    REGISTRY_FILE,
    SLOW_AGENT,
    create,
    describe,
    document,
    ended,
    registry,
    run_of,
    until,
)


class Started(NamedTuple):
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    line: str
    """The line that it printed when it was ready."""

    @property
    def client(self) -> Any:
        return client(self.line.split()[2], "sagemaker")


def environment(folder: Path) -> dict[str, str]:
    """The environment with a key pair and without the developer's AWS settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HELDOUT_"))}
    return kept | {
        "AWS_ACCESS_KEY_ID": KEYS.access_key,
        "AWS_SECRET_ACCESS_KEY": KEYS.secret_key,
        "AWS_REGION": REGION,
        "XDG_STATE_HOME": str(folder / "xdg"),
    }


def arguments(folder: Path) -> list[str]:
    """Arguments of the command line."""
    return ["serve", "--port", "0", "--registry", str(folder / REGISTRY_FILE), "--state", str(folder / "state")]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Started]:
    """Runs a server in a process of its own, which is killed at the end of the block."""
    command = [sys.executable, "-c", "from heldout.cli.main import main; main()", *arguments(folder)]
    process = subprocess.Popen(command, env=environment(folder), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Started(process, process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def kill(server: Started) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


def run_folder(folder: Path, name: str) -> Path:
    return folder / "bucket" / "output" / name / "base-model-eval"


def wait_for_rollouts(folder: Path, name: str) -> None:
    progress = run_folder(folder, name) / "progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_bytes())["finished"], lambda finished: finished > 1)


def kill_holder(folder: Path, name: str) -> None:
    pid = holder_of(run_folder(folder, name))
    assert pid
    os.kill(pid, signal.SIGKILL)


def test_jobs_outlive_a_killed_server_and_its_next_start_resumes_those_that_died(tmp_path: Path) -> None:
    given = document(tmp_path, ["0.1"] * 40, agent=SLOW_AGENT, rollout_max_concurrency=3)
    with registry(tmp_path):
        with started(tmp_path) as server:
            create(server.client, "died", given)
            create(server.client, "lived", given)
            wait_for_rollouts(tmp_path, "died")
            wait_for_rollouts(tmp_path, "lived")
            kill(server)
            kill_holder(tmp_path, "died")
        with started(tmp_path) as server:
            assert ended(server.client, "died")["JobStatus"] == "Completed"
            assert ended(server.client, "lived")["JobStatus"] == "Completed"
    for name in ("died", "lived"):
        played = rows(run_of(tmp_path, name), "attempts")
        assert len(played) == len({row["prompt_index"] for row in played}) == 40


@pytest.mark.slow
def test_a_shutdown_interrupts_jobs_and_the_next_start_resumes_them(tmp_path: Path) -> None:
    """A shutdown sends SIGTERM to every process, including the server, without a stop request for the job."""
    given = document(tmp_path, ["0.1"] * 60, agent=SLOW_AGENT, rollout_max_concurrency=3)
    with registry(tmp_path):
        with started(tmp_path) as server:
            create(server.client, "shut", given)
            wait_for_rollouts(tmp_path, "shut")
            pid = holder_of(run_folder(tmp_path, "shut"))
            assert pid
            server.process.send_signal(signal.SIGTERM)
            os.kill(pid, signal.SIGTERM)
            server.process.wait(timeout=60)
            until(lambda: holder_of(run_folder(tmp_path, "shut")), lambda holder: holder is None)
            assert run_of(tmp_path, "shut").state.is_interrupted
        with started(tmp_path) as server:
            assert ended(server.client, "shut")["JobStatus"] == "Completed"
    played = rows(run_of(tmp_path, "shut"), "attempts")
    assert len(played) == len({row["prompt_index"] for row in played}) == 60


@pytest.mark.slow
def test_a_job_asked_to_stop_is_not_resumed(tmp_path: Path) -> None:
    with registry(tmp_path):
        with started(tmp_path) as server:
            given = document(tmp_path, ["30"] * 4, agent=SLOW_AGENT, rollout_max_concurrency=2)
            create(server.client, "stopped", given)
            until(lambda: holder_of(run_folder(tmp_path, "stopped")), bool)
            server.client.stop_job(JobName="stopped", JobCategory="AgentRFTEvaluation")
            assert describe(server.client, "stopped")["JobStatus"] == "Stopping"
            kill(server)
            kill_holder(tmp_path, "stopped")
        with started(tmp_path) as server:
            job = ended(server.client, "stopped")
            assert (job["JobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")


@pytest.mark.slow
def test_a_job_recorded_but_not_started_before_a_kill_is_started(tmp_path: Path) -> None:
    with registry(tmp_path) as names:
        with served(tmp_path / "state", names) as server:
            create(server.client("sagemaker"), "told", document(tmp_path, ["1"]))
            assert ended(server.client("sagemaker"), "told")["JobStatus"] == "Completed"
            record = server.context.store.find(JobRecord, "told")
            assert record is not None
            # The state between the two steps: the record is durable, the folder is missing.
            server.context.store.put(record.model_copy(update={"is_made": False}))
            shutil.rmtree(record.folder)
        with served(tmp_path / "state", names) as server:
            assert ended(server.client("sagemaker"), "told")["JobStatus"] == "Completed"
    assert [row["reward"] for row in rows(run_of(tmp_path, "told"))] == [1.0]


def test_a_server_answers_while_it_resumes_jobs_and_a_job_stopped_then_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_resume, supervise = threading.Event(), Supervisor.supervise

    def delayed(self: Supervisor, record: SupervisedJob, work: Work) -> None:
        assert may_resume.wait(DEADLINE_SECONDS)
        supervise(self, record, work)

    with registry(tmp_path) as names:
        monkeypatch.setattr(Supervisor, "supervise", lambda *_: None)
        with served(tmp_path / "state", names) as server:  # it ends before the job's process starts
            create(server.client("sagemaker"), "left", document(tmp_path, ["30"], agent=SLOW_AGENT))
        monkeypatch.setattr(Supervisor, "supervise", delayed)
        with served(tmp_path / "state", names) as server:
            asked = server.client("sagemaker")
            assert describe(asked, "left")["JobStatus"] == "InProgress"
            asked.stop_job(JobName="left", JobCategory="AgentRFTEvaluation")
            may_resume.set()
            assert ended(asked, "left")["JobStatus"] == "Stopped"


KEPT = "print('running', flush=True); import threading; threading.Event().wait()"
KEEPING = f"""
import subprocess, sys, threading
command = [sys.executable, "-m", "heldout.service.mlflow.watchdog", sys.executable, "-c", {KEPT!r}]
keeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
threading.Event().wait()
"""


def test_the_watchdog_ends_its_command_when_the_server_is_killed() -> None:
    server = subprocess.Popen([sys.executable, "-c", KEEPING], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "running\n"
    server.kill()
    # All three processes write to the pipe: it closes when the last one ends.
    assert server.communicate(timeout=DEADLINE_SECONDS)[0] == ""


@pytest.mark.slow
def test_mlflows_server_ends_with_a_killed_server_and_starts_with_the_next(tmp_path: Path) -> None:
    (tmp_path / REGISTRY_FILE).write_text("")

    def running() -> list[str]:
        listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if "mlflow server" in line and str(tmp_path) in line]

    for _ in range(2):
        with started(tmp_path) as server:
            [app] = server.client.list_mlflow_apps()["Summaries"]
            url = server.client.create_presigned_mlflow_app_url(Arn=app["Arn"])["AuthorizedUrl"]
            with requests.Session() as browser:
                assert "<title>MLflow</title>" in browser.get(url, headers={"Accept": "text/html"}).text
            assert running()
            kill(server)
        until(running, lambda found: not found)


def test_a_server_prints_one_line_when_ready_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / REGISTRY_FILE).write_text("")
    with started(tmp_path) as server:
        assert server.line.startswith("serving on http://127.0.0.1:")
        assert f"region {REGION}, verified signatures, state in {tmp_path / 'state'}" in server.line
        assert server.client.list_pipelines()["PipelineSummaries"] == []
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=60) == 0


def test_a_server_that_cannot_start_gives_the_reason_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / REGISTRY_FILE).write_text("")
    monkeypatch.setattr(sys, "argv", ["heldout", *arguments(tmp_path), "--no-auth", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as ended_with:
        main()
    assert ended_with.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("heldout: --no-auth would admit everyone who can reach '0.0.0.0'")
    assert told.err.count("\n") == 1
