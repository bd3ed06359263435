"""Agents of the registry, invoked by their AWS names with boto3 as agents in Bedrock AgentCore and behind Lambda are."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from heldout.agents.worker_protocol import SESSION_HEADER
from tests.support.live_service import Served, served
from tests.support.service_registry import FUNCTION, RUNTIME, registry_of

SESSION = "a-session-that-is-at-least-33-characters"
AGENT = """
import os

def play(payload, context):
    match payload["ask"]:
        case "session":
            return {"session": context.session_id}
        case "process":
            return {"pid": os.getpid(), "endpoint": os.environ["RFT_RUNTIME_ENDPOINT"]}
        case "write":
            open(payload["path"], "w").write("played")
            return {}
        case "raise":
            raise LookupError("no such move")
        case "exit":
            os._exit(3)
        case _:
            return {"echo": payload}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("agents")
    (folder / "agent.py").write_text(AGENT)
    with served(folder / "state", registry_of(folder, agent="agent.py:play")) as running:
        yield running


@pytest.fixture(scope="module")
def runtimes(server: Served) -> Any:
    return server.client("bedrock-agentcore")


@pytest.fixture(scope="module")
def functions(server: Served) -> Any:
    return server.client("lambda")


def invoked(runtimes: Any, ask: str, **settings: Any) -> Any:
    reply = runtimes.invoke_agent_runtime(
        agentRuntimeArn=RUNTIME, payload=json.dumps({"ask": ask}).encode(), **settings
    )
    assert (reply["statusCode"], reply["contentType"]) == (200, "application/json")
    return json.loads(reply["response"].read())


def called(functions: Any, event: dict[str, Any], name: str = "forward", **settings: Any) -> Any:
    reply = functions.invoke(FunctionName=name, Payload=json.dumps(event), **settings)
    return reply, json.loads(reply["Payload"].read() or b"null")


def test_an_agent_gets_the_payload_and_session_and_its_answer_is_returned(runtimes: Any) -> None:
    assert invoked(runtimes, "anything") == {"echo": {"ask": "anything"}}
    assert invoked(runtimes, "session", runtimeSessionId=SESSION, qualifier="PROD") == {"session": SESSION}
    assert len(invoked(runtimes, "session")["session"]) >= 33


def test_an_agent_reaches_the_job_runtime_at_the_servers_address(server: Served, runtimes: Any) -> None:
    assert invoked(runtimes, "process")["endpoint"] == server.url


def test_an_exception_of_an_agent_is_a_runtime_client_error(runtimes: Any) -> None:
    with pytest.raises(runtimes.exceptions.RuntimeClientError, match="LookupError: no such move") as error:
        invoked(runtimes, "raise")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424


def test_an_agent_whose_process_ended_is_restarted_for_the_next_invocation(runtimes: Any) -> None:
    with pytest.raises(runtimes.exceptions.RuntimeClientError):
        invoked(runtimes, "exit")
    assert invoked(runtimes, "still there?") == {"echo": {"ask": "still there?"}}


def test_invocations_of_one_session_run_one_at_a_time_and_all_are_answered(runtimes: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: invoked(runtimes, "session", runtimeSessionId=SESSION), range(8)))
    assert answers == [{"session": SESSION}] * 8


def test_an_unmapped_runtime_is_not_found(runtimes: Any) -> None:
    with pytest.raises(runtimes.exceptions.ResourceNotFoundException, match="Did you mean") as error:
        runtimes.invoke_agent_runtime(agentRuntimeArn=f"{RUNTIME[:-1]}6", payload=b"{}")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


def test_a_session_id_too_short_is_refused_as_the_service_does(runtimes: Any) -> None:
    with pytest.raises(runtimes.exceptions.ValidationException, match="length greater than or equal to 33"):
        invoked(runtimes, "session", runtimeSessionId="short")


def test_the_registrys_runtimes_are_listed_and_described(server: Served) -> None:
    control = server.client("bedrock-agentcore-control")
    (runtime,) = control.list_agent_runtimes()["agentRuntimes"]
    assert (runtime["agentRuntimeArn"], runtime["agentRuntimeName"], runtime["status"]) == (RUNTIME, "players", "READY")
    described = control.get_agent_runtime(agentRuntimeId=runtime["agentRuntimeId"])
    assert described["agentRuntimeArn"] == RUNTIME
    with pytest.raises(control.exceptions.ResourceNotFoundException):
        control.get_agent_runtime(agentRuntimeId="someone-a1b2c3d4e5")


@pytest.mark.parametrize(
    "name", [FUNCTION, "forward", "123456789012:function:forward", f"{FUNCTION}:PROD", "forward:1"]
)
def test_a_function_is_found_by_any_of_its_names(functions: Any, name: str) -> None:
    reply, answer = called(functions, {"ask": "anything"}, name)
    assert (reply["StatusCode"], reply["ExecutedVersion"]) == (200, "$LATEST")
    assert answer == {"echo": {"ask": "anything"}}


def test_an_exception_of_a_function_is_a_function_error(functions: Any) -> None:
    reply, answer = called(functions, {"ask": "raise"})
    assert (reply["StatusCode"], reply["FunctionError"]) == (200, "Unhandled")
    assert answer["errorType"] == "LookupError"
    assert answer["errorMessage"].startswith("no such move")


def test_the_end_of_a_functions_process_is_a_function_error(functions: Any) -> None:
    _, answer = called(functions, {"ask": "exit"})
    assert answer["errorType"] == "Runtime.ExitError"


def test_an_event_is_accepted_at_once_and_runs_later(functions: Any, tmp_path: Path) -> None:
    reply, _ = called(functions, {"ask": "write", "path": str(tmp_path / "played")}, InvocationType="Event")
    assert reply["StatusCode"] == 202
    deadline = time.monotonic() + 60
    while not (tmp_path / "played").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_dry_run_invokes_no_agent(functions: Any, tmp_path: Path) -> None:
    reply, _ = called(functions, {"ask": "write", "path": str(tmp_path / "played")}, InvocationType="DryRun")
    assert reply["StatusCode"] == 204
    called(functions, {"ask": "anything"})
    assert not (tmp_path / "played").exists()


def test_an_unmapped_function_is_not_found_and_a_payload_must_be_json(functions: Any) -> None:
    with pytest.raises(functions.exceptions.ResourceNotFoundException):
        called(functions, {}, "forwards")
    with pytest.raises(functions.exceptions.InvalidRequestContentException):
        functions.invoke(FunctionName="forward", Payload=b"{")


def test_an_agent_that_fails_to_load_gives_the_reason_and_is_retried(tmp_path: Path) -> None:
    with served(tmp_path / "state", registry_of(tmp_path, agent="agent.py:play")) as server:
        runtimes = server.client("bedrock-agentcore")
        with pytest.raises(ClientError, match=r"agent\.py"):
            invoked(runtimes, "anything")
        (tmp_path / "agent.py").write_text(AGENT)
        assert invoked(runtimes, "anything") == {"echo": {"ask": "anything"}}


def test_an_agent_container_is_invoked_at_its_url(tmp_path: Path) -> None:
    with container() as url, served(tmp_path / "state", registry_of(tmp_path, agent=url)) as server:
        assert invoked(server.client("bedrock-agentcore"), "anything", runtimeSessionId=SESSION) == {
            "path": "/invocations",
            "session": SESSION,
            "payload": {"ask": "anything"},
        }


@contextmanager
def container() -> Iterator[str]:
    """The address of an AgentCore container that answers with what it was sent."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Container) as listening:
        serving = threading.Thread(target=listening.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            serving.join()


class _Container(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"status": "Healthy"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"path": self.path, "session": self.headers[SESSION_HEADER], "payload": body})

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
