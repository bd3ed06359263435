"""What does a harness add to an evaluation? The same multi-turn work done by Heldout, by bare loops and by two peers.

Contenders take turns, in another order each round, against the same model server; every figure is a whole command's, from
its start to its exit, but for `playing`, which goes from the first model call to the last.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import peers, workload
from benchmarks.measuring import ROOT, WORK, Spread, Usage, measured, verdict, write_results
from benchmarks.model_server import Report, Server, model_server

SEED = 7
NAMES = (
    "heldout-openai",
    "bare-openai",
    "inspect-ai",
    "verifiers-openai",
    "heldout-light",
    "bare-light",
    "verifiers-light",
)
_RUN = Path(f"bench/{workload.MODEL}")


@dataclass(frozen=True, slots=True)
class Size:
    """The amount of work: prompts, rollouts of each, and concurrent rollouts."""

    prompts: int
    rollouts: int
    concurrency: int

    @property
    def calls(self) -> int:
        """Model calls in all."""
        return self.prompts * self.rollouts * workload.turns()


@dataclass(frozen=True, slots=True)
class Measure:
    """One measurement of one contender."""

    contender: str
    latency_ms: float
    usage: Usage
    first_call_seconds: float
    """From the command to the first model call."""
    playing_seconds: float
    model_server_cpu_seconds: float
    calls: int

    @property
    def calls_per_second(self) -> float:
        """Over the whole command."""
        return self.calls / self.usage.wall_seconds

    @property
    def calls_per_playing_second(self) -> float:
        """From the first model call to the last."""
        return self.calls / self.playing_seconds


def command(contender: str, url: str, size: Size, folder: Path) -> list[str]:
    """The command line of a contender, whose files go to `folder`."""
    kind, _, client = contender.partition("-")
    options = ["--url", url, "--prompts", str(size.prompts), "--rollouts", str(size.rollouts)]
    options += ["--concurrency", str(size.concurrency), "--folder", str(folder)]
    match kind:
        case "heldout":
            return heldout_command(client, url, size, folder)
        case "bare":
            return [sys.executable, "-m", "benchmarks.contenders.bare", client, *options]
        case "verifiers":
            return [peers.python("verifiers"), "-m", "benchmarks.contenders.verifiers_eval", client, *options]
        case _:
            return [peers.python("inspect-ai"), "-m", "benchmarks.contenders.inspect_ai_eval", *options]


def heldout_command(client: str, url: str, size: Size, folder: Path) -> list[str]:
    """`heldout evaluate` over prompts that it writes into `folder`."""
    dataset = folder / "prompts.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": workload.prompt(n)}) + "\n" for n in range(size.prompts)))
    return [
        str(Path(sys.executable).with_name("heldout")),
        "evaluate",
        *("--model", f"{url}#{workload.MODEL}"),
        *("--agent", f"benchmarks.contenders.{client}_agent:play"),
        *("--dataset", str(dataset)),
        *("--output", str(folder), "--name", "bench"),
        *("-H", f"eval_group_size={size.rollouts}", "-H", f"rollout_max_concurrency={size.concurrency}"),
        *("-H", "pass_k_values=1", "--mlflow", "off"),
    ]


def measure(contender: str, server: Server, latency_ms: float, size: Size) -> Measure:
    """Runs a contender once; ends the benchmark if the work is incomplete or wrong."""
    folder = WORK / "overhead" / contender
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    server.report()
    log = folder / "output.log"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks' / 'contenders'}"}
    usage = measured(command(contender, server.url, size, folder), environment=environment, log=log)
    report = server.report()
    _check(contender, usage, report, size, folder, log)
    assert report.first_call_at is not None
    assert report.last_call_at is not None
    return Measure(
        contender,
        latency_ms,
        usage,
        first_call_seconds=report.first_call_at - usage.started_at,
        playing_seconds=report.last_call_at - report.first_call_at + latency_ms / 1000,
        model_server_cpu_seconds=report.cpu_seconds,
        calls=report.calls,
    )


def _check(contender: str, usage: Usage, report: Report, size: Size, folder: Path, log: Path) -> None:
    problem = ""
    if usage.exit_status != 0:
        problem = f"exit status {usage.exit_status}"
    elif report.calls != size.calls:
        problem = f"the model server saw {report.calls} calls, expected {size.calls}"
    else:
        rollouts, mean_reward = _outcome(contender, folder, size)
        expected = (size.prompts * size.rollouts, round(workload.mean_reward(size.prompts), 9))
        if (rollouts, round(mean_reward, 9)) != expected:
            problem = f"(rollouts, mean reward) is ({rollouts}, {mean_reward}), expected {expected}"
    if problem:
        sys.exit(f"{contender} did not do the work: {problem}\n{log.read_text(errors='replace')[-2000:]}")


def _outcome(contender: str, folder: Path, size: Size) -> tuple[int, float]:
    if not contender.startswith("heldout"):
        result = json.loads((folder / "result.json").read_text())
        return result["rollouts"], result["mean_reward"]
    run = folder / _RUN
    recorded = pq.read_metadata(run / "trajectories.parquet").num_rows
    if recorded != size.calls:
        return -recorded, 0.0
    metrics = json.loads((run / "metrics.json").read_text())
    return metrics["rollouts"]["scored"], metrics["metrics"]["eval/reward/mean"]


def rounds(names: Sequence[str], latency_ms: float, size: Size, repeats: int) -> Iterator[Measure]:
    """Runs every contender once a round, after a small discarded round that warms the disk's cache."""
    order = random.Random(SEED)
    with model_server(latency_ms) as server:
        for name in names:
            measure(name, server, latency_ms, Size(2, 2, size.concurrency))
        for number in range(repeats):
            for name in order.sample(names, len(names)):
                one = measure(name, server, latency_ms, size)
                print(_line(number, one), flush=True)
                yield one


def _line(number: int, one: Measure) -> str:
    return (
        f"{one.latency_ms:3.0f} ms round {number}  {one.contender:<16} wall {one.usage.wall_seconds:6.2f} s"
        f"  cpu {one.usage.cpu_seconds:6.2f} s  first call {one.first_call_seconds:5.2f} s"
        f"  {one.calls_per_second:6.0f} calls/s  playing {one.calls_per_playing_second:6.0f} calls/s"
        f"  peak {one.usage.main_peak_mib:4.0f} MiB, all {one.usage.sum_peak_mib:4.0f} MiB"
    )


class Table:
    """All measures, by contender and latency."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self._measures = measures

    def of(self, contender: str, latency_ms: float, what: str) -> list[float]:
        """One figure of a contender, a value a round; empty if it did not take part."""
        chosen = [one for one in self._measures if (one.contender, one.latency_ms) == (contender, latency_ms)]
        return [getattr(one.usage, what) if hasattr(one.usage, what) else getattr(one, what) for one in chosen]

    def ratio(self, ours: str, theirs: str, latency_ms: float, what: str) -> Spread | None:
        """The figure of `ours` over that of `theirs`, round by round."""
        pairs = list(zip(self.of(ours, latency_ms, what), self.of(theirs, latency_ms, what), strict=False))
        return Spread.of([a / b for a, b in pairs]) if pairs else None

    def summary(self) -> list[dict[str, object]]:
        """Median and spread of every figure, a row a contender and latency."""
        figures = ("wall_seconds", "cpu_seconds", "first_call_seconds", "calls_per_second", "calls_per_playing_second")
        memory = ("main_peak_mib", "largest_peak_mib", "sum_peak_mib")
        keys = sorted({(one.latency_ms, one.contender) for one in self._measures})
        return [
            {"contender": name, "latency_ms": latency}
            | {what: Spread.of(self.of(name, latency, what))._asdict() for what in (*figures, *memory)}
            for latency, name in keys
        ]


def verdicts(table: Table, latencies: Sequence[float], size: Size) -> list[dict[str, object]]:
    """Checks the targets whose contenders took part."""
    found: list[dict[str, object]] = []

    def compare(name: str, spread: Spread | None, bound: float, *, at_most: bool = False) -> None:
        if spread is not None:
            found.append(verdict(name, spread.median, bound, at_most=at_most) | {"spread": [spread.low, spread.high]})

    for latency in latencies:
        where = f" at {latency:g} ms"
        compare(
            f"openai: wall over bare loop{where}",
            table.ratio("heldout-openai", "bare-openai", latency, "wall_seconds"),
            0.75,
            at_most=True,
        )
        compare(
            f"openai: CPU over bare loop{where}",
            table.ratio("heldout-openai", "bare-openai", latency, "cpu_seconds"),
            1.25,
            at_most=True,
        )
        for peer, bound in (("verifiers-openai", 2.0), ("inspect-ai", 4.0)):
            speed = table.ratio("heldout-openai", peer, latency, "calls_per_second")
            compare(f"openai: rollouts/s over {peer}{where}", speed, bound)
        for name in ("heldout-openai", "heldout-light"):
            compare(
                f"{name}: seconds to the first call{where}",
                _spread(table.of(name, latency, "first_call_seconds")),
                2.0,
                at_most=True,
            )
        light = _spread(table.of("heldout-light", latency, "calls_per_playing_second"))
        if latency == 0:
            compare("light: recorded calls per second of playing", light, 1200.0)
            compare(
                "light: calls/s over the faster peer, whole commands",
                _over_faster_peer(table, "calls_per_second"),
                10.0,
            )
            compare(
                "light: calls/s over the faster peer, playing",
                _over_faster_peer(table, "calls_per_playing_second"),
                10.0,
            )
        elif light is not None:
            ideal = ideal_calls_per_second(size, latency / 1000)
            compare(f"light: share of the ideal throughput{where}", Spread(*(value / ideal for value in light)), 0.8)
    return found


def ideal_calls_per_second(size: Size, latency_seconds: float) -> float:
    """The rate of a harness without cost. Rollouts run in waves of the allowed concurrency, and the last wave may not be full."""
    waves = -(-size.prompts * size.rollouts // size.concurrency)
    return size.calls / (waves * workload.turns() * latency_seconds)


def _over_faster_peer(table: Table, what: str) -> Spread | None:
    peer_names = ("inspect-ai", "verifiers-openai", "verifiers-light")
    ratios = [ratio for name in peer_names if (ratio := table.ratio("heldout-light", name, 0, what)) is not None]
    return min(ratios, default=None)


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def main() -> None:
    """Measures, prints, checks the targets and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0.0, 100.0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=96)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--no-results", action="store_true", help="print only")
    options = parser.parse_args()
    size = Size(options.prompts, options.rollouts, options.concurrency)
    measures = [one for ms in options.latency_ms for one in rounds(options.only, ms, size, options.repeats)]
    table = Table(measures)
    for row in table.summary():
        print(row["latency_ms"], row["contender"], {k: v for k, v in row.items() if isinstance(v, dict)})
    checked = verdicts(table, options.latency_ms, size)
    if not options.no_results:
        results = {"size": asdict(size) | {"turns": workload.turns()}, "seed": SEED, "repeats": options.repeats}
        rows = [asdict(one) for one in measures]
        write_results("overhead", results | {"targets": checked, "summary": table.summary(), "measures": rows})


if __name__ == "__main__":
    main()
