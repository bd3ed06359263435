"""What does recording add to a chat completion? Compares the Job Runtime with a gateway, a bare relay, and direct calls.

Trajectories have 8 calls and use 96 connections. The Job Runtime also opens, completes and rewards each trajectory, and
stores it durably before it answers the reward. Latency is measured at full load, where it is mostly waiting, and paced.
"""

import argparse
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import peers, workload
from benchmarks.measuring import ROOT, WORK, Spread, verdict, write_results
from benchmarks.model_server import Server, model_server
from heldout.runs import journal

SEED = 7
TRAJECTORIES = {"heldout": 2500, "gateway": 96, "relay": 2500, "direct": 5000}
"""Enough for some seconds at each contender's rate."""
PACED_CALLS_PER_SECOND = 100.0
"""Below the slowest contender's rate."""
PACED_TRAJECTORIES = 96
_POLL_SECONDS = 0.2
_LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Service:
    """A service under load."""

    pid: int
    port: int
    control: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Measure:
    """One measurement of one contender under one load."""

    contender: str
    load: str
    """`full` or `paced`."""
    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    service_cpu_ms_per_call: float
    load_cpu_ms_per_call: float

    @property
    def calls_per_second(self) -> float:
        """Recorded model calls."""
        return self.calls / self.seconds


@contextmanager
def service(contender: str, server: Server) -> Iterator[Service]:
    """Starts a contender in front of the model server. `direct` starts none."""
    folder = WORK / "runtime" / contender
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = int(server.url.rpartition(":")[2].removesuffix("/v1"))
    if contender == "direct":
        yield Service(0, port, 0, folder)
        return
    with (folder / "output.log").open("wb") as log:
        start = _start_gateway if contender == "gateway" else _start_ours
        process, ports = start(contender, server, folder, log.fileno())
        try:
            yield Service(process.pid, ports["port"], ports.get("control", 0), folder)
        finally:
            process.kill()
            process.wait()


def _start_ours(contender: str, server: Server, folder: Path, log: int) -> tuple[subprocess.Popen[str], dict[str, int]]:
    module = {"heldout": "job_runtime", "relay": "relay"}[contender]
    command = [
        sys.executable,
        "-m",
        f"benchmarks.contenders.{module}",
        "--upstream",
        server.url,
        "--folder",
        str(folder),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{contender} did not start: {(folder / 'output.log').read_text()}")
    return process, json.loads(line)


def _start_gateway(_: str, server: Server, folder: Path, log: int) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Starts the gateway's own command with its SQLite store. Logging and log-probabilities are off, as for Heldout here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config.yaml"
    config.write_text("add_logprobs: false\nadd_return_token_ids: false\nlog_level: WARNING\n")
    command = [peers.python("gateway"), "-m", "rllm_model_gateway", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--config", str(config), "--worker", server.url, "--db-path", str(folder / "traces.db")]
    process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return process, {"port": port}
    sys.exit(f"the gateway did not start: {(folder / 'output.log').read_text()}")


def measure(contender: str, server: Server, connections: int, load: str, trajectories: int) -> Measure:
    """Starts a contender and measures it under one load. Exits if it did not record every call."""
    with service(contender, server) as under_load:
        _play(contender, under_load, connections, connections, 0.0)  # warm-up: connections opened, code run once
        server.report()
        before = _cpu_seconds(under_load.pid)
        rate = PACED_CALLS_PER_SECOND if load == "paced" else 0.0
        figures = _play(contender, under_load, connections, trajectories, rate)
        cpu = _cpu_seconds(under_load.pid) - before
        seen = server.report().calls
        expected = trajectories * workload.turns()
        recorded = _recorded(contender, under_load.folder) - connections * workload.turns()
        if contender == "gateway":  # it answers first and records later: the delay is part of its time
            while recorded < expected and figures["seconds"] < _LONGEST_SECONDS:
                time.sleep(_POLL_SECONDS)
                figures["seconds"] += _POLL_SECONDS
                recorded = _recorded(contender, under_load.folder) - connections * workload.turns()
    if contender == "direct":
        recorded = seen
    if not seen == recorded == expected == figures["calls"]:
        sys.exit(f"{contender}: {expected} calls made, {seen} seen by the model server, {recorded} recorded")
    calls = int(figures["calls"])
    return Measure(
        contender,
        load,
        calls,
        figures["seconds"],
        figures["p50_ms"],
        figures["p99_ms"],
        service_cpu_ms_per_call=cpu / calls * 1000,
        load_cpu_ms_per_call=figures["load_cpu_seconds"] / calls * 1000,
    )


def _play(contender: str, under_load: Service, connections: int, trajectories: int, rate: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.contenders.load", contender, "--port", str(under_load.port)]
    command += ["--control", str(under_load.control), "--connections", str(connections)]
    command += ["--trajectories", str(trajectories), "--calls-per-second", str(rate)]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if played.returncode != 0:
        sys.exit(f"{contender}: {played.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(played.stdout)
    return figures


def _recorded(contender: str, folder: Path) -> int:
    """Returns the number of model calls on disk, each with its messages and its reply."""
    match contender:
        case "heldout":
            lines = [line.attempt for line in journal.read(folder / "journal")]
            assert all(line.rewards == (1.0,) and line.turns[0].parent is None for line in lines)
            return sum(len(line.turns) for line in lines)
        case "gateway":
            with sqlite3.connect(folder / "traces.db") as store:
                return int(store.execute("SELECT count(*) FROM traces").fetchone()[0])
        case "relay":
            with (folder / "calls.jsonl").open("rb") as file:
                return sum(1 for _ in file)
        case _:
            return 0


def _cpu_seconds(pid: int) -> float:
    if pid == 0:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(measures: Sequence[Measure]) -> list[dict[str, object]]:
    """Returns a row for each contender and load: median and spread, and the latency added to the model server's in each round."""
    rows: list[dict[str, object]] = []
    direct = {
        load: [one for one in measures if (one.contender, one.load) == ("direct", load)] for load in ("full", "paced")
    }
    for contender, load in sorted({(one.contender, one.load) for one in measures}):
        chosen = [one for one in measures if (one.contender, one.load) == (contender, load)]
        row: dict[str, object] = {"contender": contender, "load": load}
        for what in ("calls_per_second", "p50_ms", "p99_ms", "service_cpu_ms_per_call", "load_cpu_ms_per_call"):
            row[what] = Spread.of([getattr(one, what) for one in chosen])._asdict()
        for what in ("p50_ms", "p99_ms"):
            added = [getattr(one, what) - getattr(bare, what) for one, bare in zip(chosen, direct[load], strict=False)]
            if added:
                row[f"added_{what}"] = Spread.of(added)._asdict()
        rows.append(row)
    return rows


def verdicts(measures: Sequence[Measure]) -> list[dict[str, object]]:
    """Checks the targets whose contenders took part."""
    rates = {
        name: [one.calls_per_second for one in measures if (one.contender, one.load) == (name, "full")]
        for name in TRAJECTORIES
    }
    found = []
    if rates["heldout"]:
        found.append(verdict("recorded calls per second in one process", Spread.of(rates["heldout"]).median, 2500.0))
    if over_gateway := _over("gateway", rates):
        found.append(verdict("calls per second over the gateway", over_gateway.median, 10.0))
    if over_relay := _over("relay", rates):
        print(f"       calls per second over the relay: {over_relay}")
    return found


def _over(peer: str, rates: Mapping[str, Sequence[float]]) -> Spread | None:
    """Returns the ratio of the Job Runtime's calls per second to a peer's, by round."""
    ratios = [ours / theirs for ours, theirs in zip(rates["heldout"], rates[peer], strict=False)]
    return Spread.of(ratios) if ratios else None


def main() -> None:
    """Measures, prints, checks the targets and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--connections", type=int, default=96)
    parser.add_argument("--share", type=float, default=1.0, help="of the trajectories that each contender plays")
    parser.add_argument("--only", nargs="+", choices=list(TRAJECTORIES), default=list(TRAJECTORIES))
    parser.add_argument("--no-results", action="store_true", help="print only")
    options = parser.parse_args()
    order = random.Random(SEED)
    measures: list[Measure] = []
    with model_server() as server:
        for number in range(options.repeats):
            for contender in order.sample(options.only, len(options.only)):
                for load, most in (("full", TRAJECTORIES[contender]), ("paced", PACED_TRAJECTORIES)):
                    one = measure(contender, server, options.connections, load, max(1, round(most * options.share)))
                    measures.append(one)
                    print(
                        f"round {number}  {contender:<8} {load:<5} {one.calls_per_second:7.0f} calls/s"
                        f"  p50 {one.p50_ms:7.2f} ms  p99 {one.p99_ms:7.2f} ms  service {one.service_cpu_ms_per_call:.3f}"
                        f" and load {one.load_cpu_ms_per_call:.3f} ms of CPU a call",
                        flush=True,
                    )
    rows = summary(measures)
    for row in rows:
        print(row)
    checked = verdicts(measures)
    if not options.no_results:
        results = {
            "connections": options.connections,
            "turns": workload.turns(),
            "repeats": options.repeats,
            "seed": SEED,
        }
        written = [asdict(one) | {"calls_per_second": one.calls_per_second} for one in measures]
        write_results("runtime", results | {"targets": checked, "summary": rows, "measures": written})


if __name__ == "__main__":
    main()
