"""The Job Runtime in a process of its own, every rewarded trajectory appended durably to a run's journal.

Opening a trajectory is the engine's part, not an HTTP operation; here a second port does it: a line in, a path out.
"""

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benchmarks.workload import MODEL
from heldout.job.records import Attempt
from heldout.policies.endpoint import EndpointPolicy
from heldout.runs.journal import Journal
from heldout.runtime import CallRules, JobRuntime, Report, ReportKind, Trajectory

JOB_ARN = "arn:aws:sagemaker:us-west-2:000000000000:job/AgentRFTEvaluation/bench"


class Recorder:
    """Opens trajectories, and writes each down when its reward comes."""

    def __init__(self, runtime: JobRuntime, journal: Journal) -> None:
        self._runtime = runtime
        self._journal = journal
        self._serial = itertools.count()

    def open(self) -> str:
        """The path of a new trajectory's own base URL."""
        number = next(self._serial)
        started_at = time.time()

        async def take(report: Report) -> None:
            if report.kind is ReportKind.REWARDED:
                await self._journal.append(_attempt(number, trajectory, report, started_at))
                asyncio.get_running_loop().call_soon(trajectory.close)

        trajectory = self._runtime.open(f"bench-{number}", seed=number, on_report=take)
        return urlsplit(trajectory.base_url).path

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers each line with a path."""
        while await reader.readline():
            writer.write(self.open().encode() + b"\n")
        writer.close()


def _attempt(number: int, trajectory: Trajectory, report: Report, started_at: float) -> Attempt:
    return Attempt(
        prompt_index=number,
        rollout_index=0,
        number=1,
        trajectory_id=trajectory.id,
        is_final=True,
        failure=None,
        rewards=report.rewards,
        metrics=report.metrics,
        flags=(),
        turns=tuple(trajectory.turns),
        output="",
        started_at=started_at,
        seconds=time.time() - started_at,
    )


async def serve(upstream: str, folder: Path) -> None:
    """Serves until it is killed; prints its ports."""
    policy = EndpointPolicy([upstream], MODEL)
    await policy.start()
    rules = CallRules(temperature=0.0, top_p=1.0, max_tokens=4096)
    runtime = JobRuntime(job_arn=JOB_ARN, region="us-west-2", policy=policy, rules=rules, credentials=[])
    await runtime.start()
    journal = Journal(folder / "journal")
    journal.open()
    control = await asyncio.start_server(Recorder(runtime, journal).serve, "127.0.0.1", 0, backlog=1024)
    ports = {"port": urlsplit(runtime.endpoint).port, "control": control.sockets[0].getsockname()[1]}
    print(json.dumps(ports), flush=True)
    await asyncio.get_running_loop().create_future()


def main() -> None:
    """Serves the model at `--upstream`, recording in `--folder`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.upstream, options.folder))


if __name__ == "__main__":
    main()
