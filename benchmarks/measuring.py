"""Measures the cost of a command with all its processes, describes the machine, and writes results."""

import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / ".work"
"""The folder for files of measured runs. Ignored by git."""
_POLL_SECONDS = 0.1
_PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h: orphans of measured processes become children of this one, so that their CPU is counted too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of one command with every process that it started."""

    exit_status: int
    started_at: float
    """Seconds of the machine's monotonic clock."""
    wall_seconds: float
    cpu_seconds: float
    main_peak_mib: float
    """Peak resident memory of the command's first process."""
    largest_peak_mib: float
    """Peak resident memory of the largest process."""
    sum_peak_mib: float
    """Sum of the peaks of all processes."""


def measured(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path,
    watch: Callable[[int], None] = lambda _: None,
) -> Usage:
    """Runs a command in the repository's root to its end; its output goes to `log`.

    watch: called ten times a second with the process's id while it runs.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peaks = _Peaks(process.pid, watch)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # interrupted: its processes must not keep playing
            for pid in descendants(process.pid):
                os.kill(pid, signal.SIGKILL)
            raise
        ended = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
    mib = peaks.stop()
    cpu_seconds = usage.ru_utime + usage.ru_stime + sum(_reaped(pid) for pid in mib)
    return Usage(
        exit_status=process.returncode,
        started_at=started,
        wall_seconds=ended - started,
        cpu_seconds=cpu_seconds,
        main_peak_mib=mib.get(process.pid, 0.0),
        largest_peak_mib=max(mib.values(), default=0.0),
        sum_peak_mib=sum(mib.values()),
    )


def _environment() -> dict[str, str]:
    """Returns this process's environment with Python's bytecode cache on, as users have it: without, each start compiles."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _reaped(pid: int) -> float:
    """CPU seconds of an adopted orphan; 0 for any other process."""
    try:
        _, _, usage = os.wait4(pid, 0)
    except ChildProcessError:
        return 0.0
    return usage.ru_utime + usage.ru_stime


class _Peaks:
    """Reads the peak resident memory of each process of a tree, which the kernel keeps until the process ends."""

    def __init__(self, pid: int, watch: Callable[[int], None]) -> None:
        self._pid = pid
        self._also = watch
        self._mib: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[int, float]:
        """Peak in MiB by process."""
        self._ended.set()
        self._thread.join()
        return self._mib

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._also(self._pid)
            for pid in descendants(self._pid):
                peak = memory_mib(pid, "VmHWM")
                if peak is not None:
                    self._mib[pid] = peak


def descendants(pid: int) -> list[int]:
    """A process and all those below it, as of now."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            parent = _parent(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[1])


def memory_mib(pid: int, field: str) -> float | None:
    """A process's resident memory now (`VmRSS`) or its peak (`VmHWM`), in MiB; None when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


class Spread(NamedTuple):
    """A measure over repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(round(statistics.median(values), 4), round(min(values), 4), round(max(values), 4))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def machine() -> dict[str, object]:
    """Describes the machine and the versions."""
    packages = ("aiohttp", "openai", "orjson", "pyarrow", "uvloop")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "heldout": importlib.metadata.version("heldout"),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
        "load_at_end": os.getloadavg()[0],
    }


def write_results(name: str, results: Mapping[str, object]) -> Path:
    """Writes `results/<name>-<date>.json`, with the machine, and prints the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.date.today().isoformat()}.json"
    document = {"benchmark": name, "date": datetime.datetime.now().isoformat(timespec="seconds"), "machine": machine()}
    path.write_text(json.dumps({**document, **results}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")
    return path


def verdict(name: str, value: float, bound: float, *, at_most: bool = False) -> dict[str, object]:
    """Prints and returns a target and whether it is met."""
    is_met = value <= bound if at_most else value >= bound
    words = "at most" if at_most else "at least"
    print(f"{'met   ' if is_met else 'MISSED'} {name}: {value:.2f} ({words} {bound:g})")
    return {"target": name, "value": round(value, 4), words.replace(" ", "_"): bound, "met": is_met}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or "unknown"
