"""Pairing of two runs by prompt: prompts are matched by content, not by row number."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.failures import FailureReason
from heldout.metrics.sample import Sample
from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import BoolArray, FloatArray, IntArray, RolloutTable


@dataclass(frozen=True, slots=True)
class Side:
    """One run of a comparison."""

    name: str
    rollouts: RolloutTable
    prompt_keys: Mapping[int, str]
    """By prompt_index: a hash of the prompt's content. Prompts with the same key are one prompt."""
    agent_metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    """By name, shape (num_rollouts,), NaN where the agent gave none."""
    is_partial: bool = False
    """Whether the run ended before all its rollouts were played."""
    reasons: tuple[FailureReason, ...] = ()
    """Why rollouts failed for good, the most common first."""
    is_retried: BoolArray | None = None
    """Shape (num_rollouts,): whether a rollout took more than one attempt; None when unknown."""
    success_threshold: float | None = None
    """The threshold that the run was played for; None: that of the comparison."""
    identity: str = ""
    """Two sides with the same one are the same run; empty when unknown."""

    @property
    def num_failed(self) -> int:
        """Rollouts that failed for good."""
        return int((~self.rollouts.is_scored).sum())

    @property
    def failed_share(self) -> float:
        """In [0, 1]; 0 without rollouts."""
        return self.num_failed / max(1, self.rollouts.num_rollouts)


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """One side's rollouts of the prompts both sides have; `prompt_index` is the position in `Pairs.keys`."""

    rollouts: RolloutTable
    sample: Sample
    agent_metrics: dict[str, FloatArray]
    is_retried: BoolArray | None = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two runs, aligned: position p is the same prompt on both sides, each with at least one rollout that counts."""

    keys: tuple[str, ...]
    base: SharedPrompts
    fine_tuned: SharedPrompts
    only_base: tuple[str, ...]
    only_fine_tuned: tuple[str, ...]
    notes: tuple[str, ...]


def pair_sides(base: Side, fine_tuned: Side, settings: MetricSettings) -> Pairs:
    """Align two runs. Raises MetricError when they share no prompt with a rollout that counts, or a prompt has no key."""
    base_keys, tuned_keys = _counted_keys(base, settings), _counted_keys(fine_tuned, settings)
    keys = tuple(key for key in base_keys if key in tuned_keys)
    if not keys:
        raise MetricError(
            f"runs {base.name!r} and {fine_tuned.name!r} share no prompt ({len(base_keys)} and {len(tuned_keys)} prompts);"
            " compare runs of the same dataset"
        )
    only_base = tuple(key for key in base_keys if key not in tuned_keys)
    only_tuned = tuple(key for key in tuned_keys if key not in base_keys)
    return Pairs(
        keys=keys,
        base=_share(base, keys, settings),
        fine_tuned=_share(fine_tuned, keys, settings),
        only_base=only_base,
        only_fine_tuned=only_tuned,
        notes=tuple(_notes((base, base_keys, only_base), (fine_tuned, tuned_keys, only_tuned))),
    )


def only_keys(side: Side, keys: Container[str]) -> Side:
    """Keep only the rollouts of prompts with these keys. Raises MetricError when a prompt has no key."""
    prompts, of_row = np.unique(side.rollouts.prompt_index, return_inverse=True)
    kept = np.array([_key_of(side, int(prompt)) in keys for prompt in prompts], dtype=np.bool_)[of_row]
    agent_metrics = {name: values[kept] for name, values in side.agent_metrics.items()}
    is_retried = None if side.is_retried is None else side.is_retried[kept]
    return replace(side, rollouts=_rows(side.rollouts, kept), agent_metrics=agent_metrics, is_retried=is_retried)


def _rows(rollouts: RolloutTable, kept: BoolArray) -> RolloutTable:
    return RolloutTable(*(getattr(rollouts, column.name)[kept] for column in fields(rollouts)))


def _counted_keys(side: Side, settings: MetricSettings) -> dict[str, None]:
    """Keys of the prompts with a rollout that counts, each once, in the order of the prompts."""
    rollouts = side.rollouts
    counted = rollouts.is_scored if settings.failed_rollouts == "exclude" else slice(None)
    return dict.fromkeys(_key_of(side, int(prompt)) for prompt in np.unique(rollouts.prompt_index[counted]))


def _key_of(side: Side, prompt_index: int) -> str:
    key = side.prompt_keys.get(prompt_index)
    if key is None:
        raise MetricError(f"run {side.name!r} has rollouts of prompt {prompt_index}, but no key for it")
    return key


def _share(side: Side, keys: tuple[str, ...], settings: MetricSettings) -> SharedPrompts:
    position = {key: p for p, key in enumerate(keys)}
    prompts, of_row = np.unique(side.rollouts.prompt_index, return_inverse=True)
    positions: IntArray = np.array(
        [position.get(_key_of(side, int(prompt)), -1) for prompt in prompts], dtype=np.int64
    )[of_row]
    shared = positions >= 0
    rollouts = replace(_rows(side.rollouts, shared), prompt_index=positions[shared])
    agent_metrics = {name: values[shared] for name, values in side.agent_metrics.items()}
    is_retried = None if side.is_retried is None else side.is_retried[shared]
    return SharedPrompts(rollouts, Sample.of(rollouts, settings), agent_metrics, is_retried)


def _notes(*sides: tuple[Side, dict[str, None], tuple[str, ...]]) -> list[str]:
    notes = [f"{side.name} is partial: its missing rollouts are not counted" for side, _, _ in sides if side.is_partial]
    for side, keys, only in sides:
        if only:
            notes.append(f"{len(only)} of {len(keys)} prompts are only in {side.name} and are left out")
    return notes
