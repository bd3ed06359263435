"""What grows with an evaluation's size? The engine's memory, the bytes on disk, the time that `heldout show` takes.

The engine's memory is watched while it plays and while it writes the Parquet files. Bytes are counted per turn, over more
rollouts and over longer ones; the replies and the environment's answers have one length throughout.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import workload
from benchmarks.measuring import ROOT, WORK, measured, memory_mib, verdict, write_results
from benchmarks.model_server import Server, model_server
from benchmarks.overhead import Size, heldout_command

GROUP = 8
CONCURRENCY = 96


@dataclass(frozen=True, slots=True)
class Measure:
    """One evaluation and its `show`."""

    rollouts: int
    turns_per_rollout: int
    wall_seconds: float
    calls_per_second: float
    playing_peak_mib: float | None
    """Peak resident memory of the engine until it writes the results; None if it was never sampled while playing."""
    peak_mib: float | None
    """Peak resident memory of the engine over its whole life; None if it was never sampled."""
    largest_other_peak_mib: float
    """Peak of the largest other process, the one that writes the results."""
    journal_bytes_per_turn: float | None
    """None if the journal was never sampled."""
    parquet_bytes_per_turn: float
    show_seconds: float
    show_cpu_seconds: float
    show_peak_mib: float


class _Watch:
    """Samples a run from outside: the engine's memory while it plays, and the size of its journal."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.playing_peak_mib: float | None = None
        self.journal_bytes: int | None = None

    def __call__(self, pid: int) -> None:
        try:
            status = json.loads((self._run / "job.json").read_bytes())["secondary_status"]
            size = sum(path.stat().st_size for path in (self._run / "journal").iterdir())
        except OSError:
            return  # not yet created, or already removed
        self.journal_bytes = max(self.journal_bytes or 0, size)
        resident = memory_mib(pid, "VmRSS")
        if status == "Evaluating" and resident is not None:
            self.playing_peak_mib = max(self.playing_peak_mib or 0.0, resident)


def measure(server: Server, rollouts: int, turns: int) -> Measure:
    """Plays and shows one evaluation; ends the benchmark if its results are wrong."""
    folder = WORK / "scale" / f"{rollouts}x{turns}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = Size(-(-rollouts // GROUP), GROUP, CONCURRENCY)
    run = folder / "bench" / workload.MODEL
    watch = _Watch(run)
    environment = {"PYTHONPATH": str(ROOT), workload.TURNS_VARIABLE: str(turns)}
    log = folder / "output.log"
    command = heldout_command("light", server.url, size, folder)
    usage = measured(command, environment=environment, log=log, watch=watch)
    calls = size.prompts * size.rollouts * turns
    if usage.exit_status != 0 or not _is_right(run, size, calls):
        sys.exit(f"{rollouts} rollouts of {turns} turns did not come out right: {log.read_text()[-2000:]}")
    show = measured([command[0], "show", str(run), "--json"], log=folder / "show.json")
    parquet_bytes = sum(path.stat().st_size for path in run.glob("*.parquet") if path.name != "prompts.parquet")
    return Measure(
        rollouts=size.prompts * size.rollouts,
        turns_per_rollout=turns,
        wall_seconds=usage.wall_seconds,
        calls_per_second=calls / usage.wall_seconds,
        playing_peak_mib=watch.playing_peak_mib,
        peak_mib=usage.main_peak_mib or None,
        largest_other_peak_mib=usage.largest_peak_mib,
        journal_bytes_per_turn=None if watch.journal_bytes is None else watch.journal_bytes / calls,
        parquet_bytes_per_turn=parquet_bytes / calls,
        show_seconds=show.wall_seconds,
        show_cpu_seconds=show.cpu_seconds,
        show_peak_mib=show.main_peak_mib,
    )


def _is_right(run: Path, size: Size, calls: int) -> bool:
    metrics = json.loads((run / "metrics.json").read_text())
    mean = metrics["metrics"]["eval/reward/mean"]
    return (
        metrics["rollouts"]["scored"] == size.prompts * size.rollouts
        and pq.read_metadata(run / "trajectories.parquet").num_rows == calls
        and abs(mean - workload.mean_reward(size.prompts)) < 1e-9
    )


def verdicts(by_rollouts: Sequence[Measure], by_turns: Sequence[Measure]) -> list[dict[str, object]]:
    """The targets. Growth is the ratio of the largest evaluation to the smallest."""
    least, most = by_rollouts[0], by_rollouts[-1]
    short, long = by_turns[0], by_turns[-1]
    turns = f"{long.turns_per_rollout} turns over {short.turns_per_rollout}"
    return [
        *_target(f"engine's peak MiB at {most.rollouts} rollouts", most.peak_mib, 250.0),
        *_target(
            "engine's peak while playing, largest over smallest",
            _ratio(most.playing_peak_mib, least.playing_peak_mib),
            1.1,
        ),
        *_target("engine's peak, largest over smallest", _ratio(most.peak_mib, least.peak_mib), 1.1),
        *_target(
            f"journal bytes per turn, {turns}", _ratio(long.journal_bytes_per_turn, short.journal_bytes_per_turn), 1.0
        ),
        *_target(
            f"Parquet bytes per turn, {turns}", _ratio(long.parquet_bytes_per_turn, short.parquet_bytes_per_turn), 1.0
        ),
    ]


def _ratio(largest: float | None, smallest: float | None) -> float | None:
    return None if largest is None or not smallest else largest / smallest


def _target(name: str, value: float | None, bound: float) -> list[dict[str, object]]:
    """The verdict on a value; none if an evaluation ended before it was sampled."""
    if value is None:
        print(f"UNKNOWN {name}: an evaluation ended before it was sampled; use a larger one")
        return []
    return [verdict(name, value, bound, at_most=True)]


def main() -> None:
    """Measures, prints, checks the targets and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--turns", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--turns-in-all", type=int, default=16_384, help="in each evaluation with longer rollouts")
    parser.add_argument("--no-results", action="store_true", help="print only")
    options = parser.parse_args()
    with model_server() as server:
        by_turns = [_printed(measure(server, options.turns_in_all // turns, turns)) for turns in options.turns]
        by_rollouts = [_printed(measure(server, rollouts, workload.DEFAULT_TURNS)) for rollouts in options.rollouts]
    checked = verdicts(by_rollouts, by_turns)
    if not options.no_results:
        rows = {"by_rollouts": [asdict(one) for one in by_rollouts], "by_turns": [asdict(one) for one in by_turns]}
        write_results("scale", {"targets": checked, **rows})


def _printed(one: Measure) -> Measure:
    print(
        f"{one.rollouts:6} rollouts of {one.turns_per_rollout:3} turns: {one.wall_seconds:7.1f} s, engine"
        f" {_shown(one.playing_peak_mib)} MiB playing and {_shown(one.peak_mib)} MiB at most, journal"
        f" {_shown(one.journal_bytes_per_turn)} and Parquet {one.parquet_bytes_per_turn:.0f} bytes a turn, show"
        f" {one.show_seconds:.1f} s ({one.show_cpu_seconds:.1f} s of CPU, {one.show_peak_mib:.0f} MiB)",
        flush=True,
    )
    return one


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
