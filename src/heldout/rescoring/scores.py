"""What a rescoring came to, as data, and as the JSON that is kept of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heldout.metrics.agreement import Agreement

_NAMED_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A rollout whose score and reward are far apart."""

    trajectory_id: str
    prompt_index: int
    rollout_index: int
    reward: float
    score: float


@dataclass(frozen=True, slots=True)
class Rescored:
    """What a rescoring came to."""

    scorer: str
    scores_path: Path
    agreement_path: Path
    scored: int
    """Rollouts with a score."""
    errors: dict[str, int]
    """What the scorer raised or returned instead of a score, the commonest first, with how often."""
    skipped: int
    """Rollouts that failed: they have no reward, so they were not scored."""
    score_mean: float | None
    """None when nothing was scored."""
    score_interval: tuple[float, float] | None
    reward_threshold: float
    score_threshold: float
    agreement: Agreement | None
    """None when nothing was scored."""
    disagreements: tuple[Disagreement, ...]
    """Those that disagree most first; at most 50."""
    confidence: float

    @property
    def failed(self) -> int:
        """Rollouts that the scorer gave no score."""
        return sum(self.errors.values())


def agreement_document(rescored: Rescored) -> dict[str, Any]:
    """What `agreement-<scorer>.json` holds; numbers that cannot be had are null."""
    compared = rescored.agreement
    confusion = None if compared is None else compared.confusion
    return {
        "scorer": rescored.scorer,
        "rollouts": {"scored": rescored.scored, "failed": rescored.failed, "skipped": rescored.skipped},
        "errors": dict(list(rescored.errors.items())[:_NAMED_ERRORS]),
        "score": {"mean": rescored.score_mean, "interval": rescored.score_interval},
        "thresholds": {"reward": rescored.reward_threshold, "score": rescored.score_threshold},
        "confusion": None
        if confusion is None
        else {
            "both_succeed": confusion.both_succeed,
            "only_reward": confusion.only_reward,
            "only_score": confusion.only_score,
            "neither": confusion.neither,
        },
        "agreement": None if confusion is None else confusion.agreement,
        "rank_correlation": None if compared is None else compared.rank_correlation,
        "rank_interval": None if compared is None else compared.rank_interval,
        "confidence": rescored.confidence,
        "disagreements": [
            {
                "trajectory_id": one.trajectory_id,
                "prompt_index": one.prompt_index,
                "rollout_index": one.rollout_index,
                "reward": one.reward,
                "score": one.score,
            }
            for one in rescored.disagreements
        ],
    }
