"""The result of a rescoring, and its JSON."""

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
    """The result of scoring a run's recorded trajectories again."""

    scorer: str
    """The scorer's name, as in the names of its files."""
    scores_path: Path
    agreement_path: Path
    scored: int
    """Rollouts with a score."""
    errors: dict[str, int]
    """How often the scorer failed, by error, the most common first."""
    skipped: int
    """Rollouts that failed. They have no reward, so the scorer is not called for them."""
    score_mean: float | None
    """None when nothing was scored."""
    score_interval: tuple[float, float] | None
    reward_threshold: float
    """A rollout is a success to the job when its reward is at least this."""
    score_threshold: float
    """A rollout is a success to the scorer when its score is at least this."""
    agreement: Agreement | None
    """None when nothing was scored."""
    disagreements: tuple[Disagreement, ...]
    """The largest disagreement first; at most 50."""
    confidence: float
    """Of `score_interval` and of the interval of the rank correlation, such as 0.95."""

    @property
    def failed(self) -> int:
        """Rollouts for which the scorer returned no score."""
        return sum(self.errors.values())


def agreement_document(rescored: Rescored) -> dict[str, Any]:
    """Returns the content of `agreement-<scorer>.json`; an unknown number is null."""
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
