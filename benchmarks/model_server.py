"""The model of every benchmark: the scripted server with one fixed reply, which counts its calls.

`python -m benchmarks.model_server` prints its port. A chat whose last message is `REPORT` is not counted; its reply is
a Report, and the counts start again.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import orjson
import uvloop

from benchmarks.measuring import ROOT
from benchmarks.workload import MODEL, REPLY
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, ScriptedCall

REPORT = "benchmark: report and start again"


class Report(NamedTuple):
    """Counts since the last report. Times are of the machine's monotonic clock, seconds."""

    calls: int
    first_call_at: float | None
    last_call_at: float | None
    cpu_seconds: float


class Server:
    """A model server in a process of its own, started; it can be killed and started again at the same address."""

    def __init__(self, latency_ms: float = 0.0) -> None:
        self._latency_ms = latency_ms
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its OpenAI base URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Starts it and waits until it serves."""
        command = [sys.executable, "-m", "benchmarks.model_server", "--latency-ms", str(self._latency_ms)]
        command += ["--port", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Ends it at once, also during replies."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def report(self) -> Report:
        """Returns the counts since the last report."""
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": REPORT}]}).encode()
        request = urllib.request.Request(f"{self.url}/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return Report(**json.loads(reply.read()))


@contextmanager
def model_server(latency_ms: float = 0.0) -> Iterator[Server]:
    """A model server that waits `latency_ms` before each reply."""
    server = Server(latency_ms)
    try:
        yield server
    finally:
        server.kill()


class _Script:
    def __init__(self) -> None:
        self._reply = Reply(content=REPLY)
        self._calls = 0
        self._first_call_at: float | None = None
        self._last_call_at: float | None = None
        self._cpu_before = time.process_time()

    def __call__(self, call: ScriptedCall) -> Reply:
        if call.last_message == REPORT:
            return Reply(raw=orjson.dumps(self._reported()._asdict()))
        self._last_call_at = time.monotonic()
        if self._first_call_at is None:
            self._first_call_at = self._last_call_at
        self._calls += 1
        return self._reply

    def _reported(self) -> Report:
        cpu = time.process_time()
        report = Report(self._calls, self._first_call_at, self._last_call_at, cpu - self._cpu_before)
        self._calls, self._first_call_at, self._last_call_at, self._cpu_before = 0, None, None, cpu
        return report


async def _serve(latency_ms: float, port: int) -> None:
    server = ScriptedServer(_Script(), models=[MODEL], latency_seconds=latency_ms / 1000, port=port, kept_calls=0)
    async with server:
        print(server.port, flush=True)
        started_by = os.getppid()
        while os.getppid() == started_by:
            await asyncio.sleep(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(_serve(options.latency_ms, options.port))
