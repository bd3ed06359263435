"""Chooses the trajectories that a person should read first, each with its reasons."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from heldout.metrics.table import FloatArray, Groups
from heldout.report.finding import Finding
from heldout.report.rollout_rows import RolloutRows

_MOST = 12
"""The most trajectories of a run in the report: an hour of reading. `heldout show` prints the others."""


class WorthReading(NamedTuple):
    """A trajectory and the reasons to read it."""

    trajectory_id: str
    why: str


def choose(
    rows: RolloutRows,
    findings: Sequence[Finding],
    disagreements: Iterable[tuple[str, str]] = (),
    most: int = _MOST,
) -> list[WorthReading]:
    """Choose the trajectories, each once, with all its reasons. disagreements: ids and reasons, the largest first."""
    reasons: dict[str, list[str]] = {}
    for trajectory_id, why in _reasons(rows, findings, disagreements):
        if trajectory_id in reasons or len(reasons) < most:
            reasons.setdefault(trajectory_id, []).append(why)
    return [WorthReading(trajectory_id, "; ".join(dict.fromkeys(whys))) for trajectory_id, whys in reasons.items()]


def _reasons(
    rows: RolloutRows, findings: Sequence[Finding], disagreements: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    yield from disagreements
    scored = np.flatnonzero(rows.is_scored)
    if len(scored):
        groups = Groups.of(rows.prompt_index)
        rate = (groups.sum(rows.rewards_or_zero) / groups.count())[groups.of_row]
        # Of equal rewards, prefer the surprise: a success where few succeed, a failure where most do.
        best = scored[np.lexsort((rate[scored], -rows.reward[scored]))[0]]
        worst = scored[np.lexsort((-rate[scored], rows.reward[scored]))[0]]
        if rows.reward[best] > rows.reward[worst]:
            yield _named(rows, int(best), "the best reward, on the prompt where it is rarest")
            yield _named(rows, int(worst), "the worst reward, on the prompt that goes best otherwise")
        else:
            yield _named(rows, int(best), "one of them all: every reward is the same")
        yield from _widest_group(rows, groups)
    yield from (
        (finding.trajectory_ids[0], finding.kind.replace("_", " ")) for finding in findings if finding.trajectory_ids
    )
    if rows.is_failed.any():
        yield rows.ids(rows.is_failed, 1)[0], "a rollout that failed"


def _widest_group(rows: RolloutRows, groups: Groups) -> Iterator[tuple[str, str]]:
    """Choose the best and the worst rollout of the prompt with the largest spread."""
    rewards: FloatArray = rows.rewards_or_zero
    counts = groups.count()
    means = groups.sum(rewards) / counts
    spread = np.sqrt(np.maximum(groups.sum(rewards * rewards) / counts - means**2, 0))
    widest = int(np.argmax(spread))
    if spread[widest] == 0:
        return
    members = np.flatnonzero((groups.of_row == widest) & rows.is_scored)
    if len(members) > 1 and np.ptp(rewards[members]) > 0:
        why = "of the prompt whose rollouts disagree most"
        yield _named(rows, int(members[np.argmax(rewards[members])]), f"the best {why}")
        yield _named(rows, int(members[np.argmin(rewards[members])]), f"the worst {why}")


def _named(rows: RolloutRows, place: int, why: str) -> tuple[str, str]:
    return rows.ids_at(np.array([place]))[0], why
