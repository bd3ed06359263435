"""Short ids of rollouts: `12.3` is rollout 3 of prompt 12. Files keep the long id of each attempt."""

import re
from typing import NamedTuple

_SHORT = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_LONG = re.compile(r"(\d+)-(\d+)-\d+-.+", re.ASCII)


class RolloutPlace(NamedTuple):
    """A rollout of a run."""

    prompt_index: int
    rollout_index: int


def short_id(trajectory_id: str) -> str:
    """Returns the short id of a rollout's deciding attempt; an id of another form is returned unchanged."""
    found = _LONG.fullmatch(trajectory_id)
    return trajectory_id if found is None else f"{found[1]}.{found[2]}"


def parse_short_id(text: str) -> RolloutPlace | None:
    """Reads a short id; None for other text."""
    found = _SHORT.fullmatch(text)
    return None if found is None else RolloutPlace(int(found[1]), int(found[2]))
