"""Does an evaluation survive kill -9 at any moment? One evaluation, killed at random many times and resumed each time.

The engine, a worker or the model server is killed: some while at random points of its progress, some at random times after a
start, the last few while the results are written. `benchmarks.crash_evidence` defines lost, repeated and scored twice, and counts
them from the agent's log.
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import workload
from benchmarks.contenders.logging_agent import LOG_VARIABLE
from benchmarks.crash_evidence import Rollout, Snapshot, judge, read_journal, read_log, read_results, rollout_of
from benchmarks.measuring import ROOT, WORK, descendants, verdict, write_results
from benchmarks.model_server import Server
from benchmarks.overhead import Size, heldout_command

TURNS = 4
LATENCY_MS = 20.0
GROUP = 8
CONCURRENCY = 16
_TARGETS = ("engine", "engine", "worker", "model server")
_KILLS_WHILE_WRITING = 5
"""The most kills while writing: it may end before its random moment."""
_SHARE_BY_TIME = 0.3
_LONGEST_BY_TIME_SECONDS = 4.0
_WRITING_SECONDS = 0.3
_SPARE = 1.15
"""Kills are spread as if there were more, so that the evaluation does not end before all are made."""
_POLL_SECONDS = 0.01
_GIVE_UP_SECONDS = 120.0
"""Without a finished rollout for this long, the benchmark fails: something hangs."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill."""

    target: str
    phase: str
    """The job's status at that moment."""
    finished: int
    """Rollouts that were finished by then."""


class Evaluation:
    """The evaluation under attack."""

    def __init__(self, rollouts: int, kills: int, rng: random.Random) -> None:
        self.size = Size(-(-rollouts // GROUP), GROUP, CONCURRENCY)
        self.planned = self.size.prompts * GROUP
        self.snapshots: list[Snapshot] = []
        self.kills: list[Kill] = []
        self.orphans = 0
        """Workers that outlived their engine."""
        self._least_kills = kills
        self._rng = rng
        self._folder = WORK / "crash"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self.run = self._folder / "bench" / workload.MODEL
        self.log = self._folder / "agent.log"
        self._server = Server(LATENCY_MS)
        self._output = (self._folder / "output.log").open("wb")
        self._command = heldout_command("logging", self._server.url, self.size, self._folder)
        self._command += ["-H", "rollout_max_retries=10"]

    def play(self) -> None:
        """Plays it to its end with kills in between. Raises RuntimeError if it ends early."""
        self._start()
        try:
            while self._wait_for_moment():
                self._kill(self._rng.choice(_TARGETS) if self._finished() < self.planned else "engine")
            if self._phase() != "Completed" or len(self.kills) < self._least_kills:
                raise RuntimeError(
                    f"ended as {self._phase()} with status {self._engine.returncode} after {len(self.kills)} kills:"
                    f" {(self._folder / 'output.log').read_text()[-2000:]}"
                )
        finally:
            self._engine.kill()
            self._engine.wait()
            self._server.kill()
            self._output.close()

    def _wait_for_moment(self) -> bool:
        """Returns at the next random moment to kill; False when the evaluation has ended."""
        started, before = time.monotonic(), self._finished()
        seconds, more = self._draw(before)
        progressed, writing_ends = started, None
        while self._engine.poll() is None:
            now, finished = time.monotonic(), self._finished()
            if finished < self.planned:
                if now - started >= seconds or finished - before >= more:
                    return True
            elif writing_ends is None and self._is_writing():
                writing_ends = now + self._rng.uniform(0, _WRITING_SECONDS)
            elif writing_ends is not None and now >= writing_ends:
                if sum(kill.phase == "Uploading" for kill in self.kills) < _KILLS_WHILE_WRITING:
                    return True
                writing_ends = math.inf
            if finished > before:
                progressed = now
            if now - progressed > _GIVE_UP_SECONDS:
                raise RuntimeError(f"no rollout finished in {_GIVE_UP_SECONDS:.0f} s, at {finished} of {self.planned}")
            time.sleep(_POLL_SECONDS)
        return False

    def _draw(self, finished: int) -> tuple[float, int]:
        """Draws the next kill: after a number of seconds or of further finished rollouts, whichever comes first."""
        left = max(1.0, self._least_kills * _SPARE - len(self.kills))
        more = max(1, round(self._rng.uniform(0, 1.6) * (self.planned - finished) / (left + 1)))
        is_by_time = self._rng.random() < _SHARE_BY_TIME
        return self._rng.uniform(0, _LONGEST_BY_TIME_SECONDS) if is_by_time else math.inf, more

    def _kill(self, target: str) -> None:
        workers = self._workers()
        if target == "worker" and not workers:
            target = "engine"
        self.kills.append(Kill(target, self._phase(), self._finished()))
        print(
            f"kill {len(self.kills):3}: {target:<12} {self.kills[-1].phase:<11} {self.kills[-1].finished} finished",
            flush=True,
        )
        match target:
            case "model server":
                self._server.kill()
                time.sleep(self._rng.uniform(0, 0.5))
                self._server.start()
            case "worker":
                _kill_hard(self._rng.choice(workers))
            case _:
                self._engine.kill()
                self._engine.wait()
                self._see_workers_gone(workers)
                self._witness()
                self._start()

    def _start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            LOG_VARIABLE: str(self.log),
            workload.TURNS_VARIABLE: str(TURNS),
        }
        self._started_at = time.time()
        self._engine = subprocess.Popen(
            self._resume_command(),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def _resume_command(self) -> list[str]:
        """Draws one of the two commands that resume, once there is a run."""
        is_there = (self.run / "job.json").exists()
        by_folder = [self._command[0], "resume", str(self.run)]
        return by_folder if is_there and self._rng.random() < 0.5 else [*self._command, "--resume"]

    def _witness(self) -> None:
        if self._phase() != "Completed":
            self.snapshots.append(Snapshot(time.monotonic(), read_journal(self.run / "journal")))

    def _see_workers_gone(self, workers: list[int]) -> None:
        deadline = time.monotonic() + 5
        while any(_is_worker(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        left = [pid for pid in workers if _is_worker(pid)]
        self.orphans += len(left)
        for pid in left:
            _kill_hard(pid)

    def _workers(self) -> list[int]:
        return [pid for pid in descendants(self._engine.pid)[1:] if _is_worker(pid)]

    def _finished(self) -> int:
        """Counts lines in the journal, which is cheap: about the finished rollouts."""
        if self._phase() == "Completed":
            return self.planned
        segments = sorted((self.run / "journal").glob("*.jsonl"))
        return min(self.planned, sum(path.read_bytes().count(b'"final":true,"amends":false') for path in segments))

    def _is_writing(self) -> bool:
        """Whether the current engine has begun to write the results."""
        return self._phase() == "Uploading" and (self.run / "job.json").stat().st_mtime > self._started_at

    def _phase(self) -> str:
        try:
            phase: str = json.loads((self.run / "job.json").read_bytes())["secondary_status"]
        except FileNotFoundError:
            return "none"
        return phase


def _is_worker(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return stat[0] != b"Z" and b"heldout.agents.worker" in command


def _kill_hard(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def judged(evaluation: Evaluation) -> dict[str, int]:
    """Returns the verdict; ends the benchmark if the evidence is incomplete."""
    finals, final_attempts = read_results(evaluation.run)
    planned = [Rollout(p, r) for p in range(evaluation.size.prompts) for r in range(GROUP)]
    for final in finals:
        if rollout_of(final.trajectory_id) != final.rollout:
            sys.exit(
                f"trajectory {final.trajectory_id} is of {final.rollout}: ids no longer begin with prompt and rollout"
            )
    events = read_log(evaluation.log)
    found = judge(planned, events, evaluation.snapshots, finals, final_attempts)
    expected = {n: n % 5 / 4 for n in range(evaluation.size.prompts)}
    wrong = sum(final.reward is not None and final.reward != expected[final.rollout.prompt] for final in finals)
    turns = pq.read_table(evaluation.run / "trajectories.parquet", columns=["is_final"])["is_final"].to_pylist()
    missing = (len(finals) - found.unscored) * TURNS - turns.count(True)
    starts = sum(event.event == "start" for event in events)
    return {
        **found._asdict(),
        "wrong_rewards": wrong,
        "turns_missing": max(0, missing),
        "orphaned_workers": evaluation.orphans,
        "rollouts": len(finals),
        "attempts_started": starts,
    }


def main() -> None:
    """Kills, judges and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--rollouts", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--no-results", action="store_true", help="print only")
    options = parser.parse_args()
    started = time.monotonic()
    evaluation = Evaluation(options.rollouts, options.kills, random.Random(options.seed))
    evaluation.play()
    found = judged(evaluation)
    seconds = time.monotonic() - started
    phases = Counter(f"{kill.target}, {kill.phase}" for kill in evaluation.kills)
    print(f"{len(evaluation.kills)} kills in {seconds:.0f} s: {dict(phases)}\n{found}")
    checked = [verdict("kills", len(evaluation.kills), options.kills)]
    wrongs = ("lost", "repeated", "scored_twice", "wrong_rewards", "turns_missing", "orphaned_workers")
    checked += [verdict(name, found[name], 0, at_most=True) for name in wrongs]
    if not options.no_results:
        facts = {"seed": options.seed, "seconds": seconds, "kills": phases, "found": found}
        write_results("crash", {"targets": checked, **facts})
    if not all(one["met"] for one in checked):
        sys.exit(1)


if __name__ == "__main__":
    main()
