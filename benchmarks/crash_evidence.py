"""Judges a run that was killed many times by independent evidence: the agent's log, and the journal after each death.

Reads the journal's lines and the Parquet files without Heldout's code, so that a fault in its reading cannot hide one in its
writing.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq


class Rollout(NamedTuple):
    """The key of a rollout."""

    prompt: int
    number: int


class Event(NamedTuple):
    """A line of the agent's log."""

    event: str
    """`start`, or `taken` when a reported reward was answered with 200."""
    trajectory_id: str
    at: float
    reward: float | None


class Snapshot(NamedTuple):
    """The durable state at one death of the engine, after all its processes have ended."""

    at: float
    finished: dict[Rollout, str]
    """Trajectory id of each rollout with a final attempt on disk."""


class Final(NamedTuple):
    """A row of rollouts.parquet."""

    rollout: Rollout
    trajectory_id: str
    reward: float | None


class Verdict(NamedTuple):
    """Counts of rollouts by fault."""

    lost: int
    """Planned rollouts that are not in the results, and rollouts whose reward was taken (answered with 200) or on disk at a
    death, but whose row has another trajectory or another reward."""
    repeated: int
    """Rollouts that an agent played again after their reward was taken or on disk at a death."""
    scored_twice: int
    """Rollouts with more than one row, more than one final attempt, or more than one taken reward."""
    unscored: int
    """Rollouts that failed for good because they were killed too often. Not a fault."""


def read_log(path: Path) -> list[Event]:
    """The agent's log."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [Event(line["event"], line["id"], line["at"], line.get("reward")) for line in lines]


def read_journal(folder: Path) -> dict[Rollout, str]:
    """Trajectory id of each rollout that has a final attempt in the journal; a last line without its end does not count."""
    finished = {}
    for segment in sorted(folder.glob("*.jsonl")):
        for line in segment.read_bytes().split(b"\n")[:-1]:
            attempt = json.loads(line)
            if attempt["final"]:
                finished[Rollout(attempt["prompt"], attempt["rollout"])] = attempt["id"]
    return finished


def read_results(run: Path) -> tuple[list[Final], Counter[Rollout]]:
    """The rows of rollouts.parquet, and the number of final attempts of each rollout in attempts.parquet."""
    columns = ["prompt_index", "rollout_index", "trajectory_id", "reward"]
    rows = pq.read_table(run / "rollouts.parquet", columns=columns).to_pylist()
    finals = [
        Final(Rollout(row["prompt_index"], row["rollout_index"]), row["trajectory_id"], row["reward"]) for row in rows
    ]
    attempts = pq.read_table(
        run / "attempts.parquet", columns=["prompt_index", "rollout_index", "is_final"]
    ).to_pylist()
    counts = Counter(Rollout(row["prompt_index"], row["rollout_index"]) for row in attempts if row["is_final"])
    return finals, counts


def judge(
    planned: Iterable[Rollout],
    events: Sequence[Event],
    snapshots: Sequence[Snapshot],
    finals: Sequence[Final],
    final_attempts: Counter[Rollout],
) -> Verdict:
    """Compares the results with the agent's log and the snapshots."""
    rows = {final.rollout: final for final in finals}
    taken = [event for event in events if event.event == "taken"]
    lost = {rollout for rollout in planned if rollout not in rows}
    for event in taken:
        row = rows.get(rollout_of(event.trajectory_id))
        if row is None or (row.trajectory_id, row.reward) != (event.trajectory_id, event.reward):
            lost.add(rollout_of(event.trajectory_id))
    for snapshot in snapshots:
        for rollout, trajectory_id in snapshot.finished.items():
            if rollout not in rows or rows[rollout].trajectory_id != trajectory_id:
                lost.add(rollout)
    done_at = {rollout_of(event.trajectory_id): event.at for event in reversed(taken)}
    for snapshot in snapshots:
        for rollout in snapshot.finished:
            done_at[rollout] = min(done_at.get(rollout, snapshot.at), snapshot.at)
    started = [(rollout_of(event.trajectory_id), event.at) for event in events if event.event == "start"]
    repeated = {rollout for rollout, at in started if rollout in done_at and at > done_at[rollout]}
    times_taken = Counter(rollout_of(trajectory_id) for trajectory_id in {event.trajectory_id for event in taken})
    times_taken_with = Counter(event.trajectory_id for event in taken)
    num_rows = Counter(final.rollout for final in finals)
    twice = {rollout for counts in (num_rows, final_attempts, times_taken) for rollout, n in counts.items() if n > 1}
    twice |= {rollout_of(trajectory_id) for trajectory_id, n in times_taken_with.items() if n > 1}
    return Verdict(len(lost), len(repeated), len(twice), sum(final.reward is None for final in finals))


def rollout_of(trajectory_id: str) -> Rollout:
    """A trajectory's id begins with the numbers of its prompt and rollout."""
    prompt, index, _ = trajectory_id.split("-", 2)
    return Rollout(int(prompt), int(index))
