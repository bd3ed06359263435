"""Evaluations logged over the network: to MLflow's own server, and to one named by a SageMaker ARN."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from heldout import MultiTurnRLEvaluator
from heldout.cli.main import main
from tests.support.model_servers import model_server

AGENT = Path(__file__).parents[1] / "support" / "agents" / "agreeing.py"
APP = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-ABCDEFGHIJKL"
DEADLINE_SECONDS = 300.0


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(8)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(tmp_path_factory.mktemp("models"), "yes") as address:
        yield address


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server`, whose clients write artifacts to their place themselves, as they do for SageMaker's."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--no-serve-artifacts", "--default-artifact-root", folder.as_uri()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _await_answer(f"{address}/health")
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def sagemaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What SageMaker was asked for presigned links, which it grants."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = json.dumps({"AuthorizedUrl": "https://app.test/auth?authToken=once"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        Thread(target=service.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", f"http://127.0.0.1:{service.server_port}")
        yield asked
        service.shutdown()


def _await_answer(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            with urlopen(url):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


def _logged(model: str, tracking: str) -> str:
    """The link to a run that was evaluated and logged."""
    made = MultiTurnRLEvaluator(
        model=model,
        agent_config=f"{AGENT}:play",
        dataset="prompts.jsonl",
        s3_output_path="out",
        mlflow_resource_arn=tracking,
        mlflow_experiment_name="over the network",
    )
    execution = made.evaluate()
    execution.wait(poll=0.1, timeout=DEADLINE_SECONDS)
    link = execution.mlflow_url
    assert link is not None, (Path(execution.path) / "runner.log").read_text()
    return link


def _stored_run(server: str, link: str) -> dict[str, Any]:
    """What the server has under the run id that a link ends in."""
    run_id = link.rpartition("/")[2]
    with urlopen(f"{server}/api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
        found: dict[str, Any] = json.load(answer)["run"]
    assert f"/experiments/{found['info']['experiment_id']}/runs/{run_id}" in link
    return found


@pytest.mark.slow
def test_the_link_opens_the_run_at_the_server_it_was_logged_to(model: str, server: str) -> None:
    link = _logged(model, server)
    assert link.startswith(f"{server}/#/experiments/")
    found = _stored_run(server, link)
    assert found["info"]["status"] == "FINISHED"
    assert "eval/reward/mean" in {metric["key"] for metric in found["data"]["metrics"]}
    with urlopen(link) as page:
        assert page.status == 200
        assert b"<title>MLflow" in page.read()


@pytest.mark.slow
def test_a_sagemaker_arn_is_logged_to_through_its_plugin_and_opens_by_a_presigned_link(
    model: str, server: str, sagemaker: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", server)  # the plugin's own way to another place
    link = _logged(model, APP)
    assert asked_for(sagemaker) == {APP}
    assert urlsplit(link).netloc == "app.test"
    assert _stored_run(server, link)["info"]["status"] == "FINISHED"


def asked_for(requests: list[Any]) -> set[str]:
    return {request["Arn"] for request in requests}


@pytest.mark.parametrize("package", ["sagemaker_mlflow", "mlflow"])
def test_a_store_that_needs_a_missing_package_is_reported_before_the_job_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    given = ["--model", "http://127.0.0.1:1/v1#m", "--agent", f"{AGENT}:play", "--dataset", "prompts.jsonl"]
    monkeypatch.setattr(sys, "argv", ["heldout", "evaluate", *given, "--output", "out", "--mlflow", APP])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert package.replace("_", "-") in said
    assert "pip install" in said
    assert "\n" not in said
    assert not Path("out").exists()
