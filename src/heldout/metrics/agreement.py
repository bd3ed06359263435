"""Agreement of two scorers: the reward against an independent score of the same rollouts, to catch reward hacking."""

from dataclasses import dataclass

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.settings import least_meeting
from heldout.metrics.table import BoolArray, FloatArray, Groups, IntArray


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of rollouts by whether reward and score, each against its threshold, call them a success."""

    both_succeed: int
    only_reward: int
    """The reward calls it a success, the score does not: where to look for reward hacking."""
    only_score: int
    neither: int

    @property
    def agreement(self) -> float:
        """Share of rollouts on which both agree, in [0, 1]; NaN without rollouts."""
        total = self.both_succeed + self.only_reward + self.only_score + self.neither
        return (self.both_succeed + self.neither) / total if total else float("nan")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well an independent score agrees with the reward."""

    num_rollouts: int
    """Rollouts with both a reward and a score."""
    confusion: Confusion
    rank_correlation: float
    """Spearman's, in [-1, 1]; NaN when either has one value only."""
    rank_interval: tuple[float, float] | None
    """None for fewer than three prompts, or when the rank correlation is NaN, 1 or -1."""
    disagreements: IntArray
    """Rows of the table, shape (num_rollouts,), those that disagree most first: by how far apart reward and score rank."""


def agreement(
    reward: FloatArray,
    score: FloatArray,
    prompt_index: IntArray,
    *,
    reward_threshold: float,
    score_threshold: float,
    confidence: float = 0.95,
) -> Agreement:
    """Compare reward and score, shape (n,) each; NaN where there is none, such as for a failed rollout.

    Raises MetricError when the shapes differ or no rollout has both.
    """
    if not reward.shape == score.shape == prompt_index.shape:
        raise MetricError(
            f"reward {reward.shape}, score {score.shape} and prompts {prompt_index.shape} differ in shape"
        )
    rows = np.flatnonzero(np.isfinite(reward) & np.isfinite(score))
    if len(rows) == 0:
        raise MetricError("no rollout has both a reward and a score, so there is nothing to compare")
    x, y = reward[rows], score[rows]
    ranks_x, ranks_y = _mid_ranks(x), _mid_ranks(y)
    correlation = _pearson(ranks_x, ranks_y)
    groups = Groups.of(prompt_index[rows])
    return Agreement(
        num_rollouts=len(rows),
        confusion=_confusion(x >= least_meeting(reward_threshold), y >= least_meeting(score_threshold)),
        rank_correlation=correlation,
        rank_interval=_rank_interval(x, y, correlation, groups, confidence),
        disagreements=rows[np.argsort(-np.abs(ranks_x - ranks_y), kind="stable")].astype(np.int64),
    )


def _confusion(by_reward: BoolArray, by_score: BoolArray) -> Confusion:
    return Confusion(
        both_succeed=int((by_reward & by_score).sum()),
        only_reward=int((by_reward & ~by_score).sum()),
        only_score=int((~by_reward & by_score).sum()),
        neither=int((~by_reward & ~by_score).sum()),
    )


def _mid_ranks(values: FloatArray) -> FloatArray:
    """Share of values below plus half the share of equal ones, shape (n,), in (0, 1)."""
    _, of_row, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    ranks: FloatArray = ((below + counts / 2) / len(values))[of_row]
    return ranks


def _pearson(x: FloatArray, y: FloatArray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float("nan") if scale == 0 else float(np.clip((x @ y) / scale, -1, 1))


def _rank_interval(
    x: FloatArray, y: FloatArray, correlation: float, groups: Groups, confidence: float
) -> tuple[float, float] | None:
    """Student's t interval on Fisher's scale, its standard error from the rollouts' influences summed by prompt."""
    if groups.num_prompts < 3 or not abs(correlation) < 1 - 1e-12:
        return None
    from scipy import special  # not before a rescoring is judged: see ARCHITECTURE.md, decision 12

    by_prompt = groups.sum(_influences(x, y, correlation))
    variance = float(by_prompt @ by_prompt) / len(x) ** 2 * groups.num_prompts / (groups.num_prompts - 1)
    half = (
        float(special.stdtrit(groups.num_prompts - 1, 0.5 + confidence / 2)) * np.sqrt(variance) / (1 - correlation**2)
    )
    low, high = np.tanh(np.arctanh(correlation) + np.array([-half, half]))
    return float(low), float(high)


def _influences(x: FloatArray, y: FloatArray, correlation: float) -> FloatArray:
    """How much each rollout moves Spearman's correlation, times n, shape (n,).

    The correlation is c(x, y) / sqrt(c(x, x) c(y, y)) with c the covariance of mid-ranks. A rollout moves a covariance by its
    own product of ranks and by shifting the ranks of all rollouts above it.
    """
    ranks_x, ranks_y = _mid_ranks(x) - 0.5, _mid_ranks(y) - 0.5
    covariance, variance_x, variance_y = (
        ranks_x @ ranks_y / len(x),
        ranks_x @ ranks_x / len(x),
        ranks_y @ ranks_y / len(x),
    )
    move = ranks_x * ranks_y + _mean_above(x, ranks_y) + _mean_above(y, ranks_x) - 3 * covariance
    move_x = ranks_x**2 + 2 * _mean_above(x, ranks_x) - 3 * variance_x
    move_y = ranks_y**2 + 2 * _mean_above(y, ranks_y) - 3 * variance_y
    scale = np.sqrt(variance_x * variance_y)
    influences: FloatArray = move / scale - correlation / 2 * (move_x / variance_x + move_y / variance_y)
    return influences


def _mean_above(order: FloatArray, values: FloatArray) -> FloatArray:
    """For each row, the sum of `values` over rows that are higher in `order` (equal ones by half), over n, shape (n,)."""
    levels, of_row = np.unique(order, return_inverse=True)
    sums = np.bincount(of_row, weights=values, minlength=len(levels))
    above = sums.sum() - np.cumsum(sums)
    means: FloatArray = ((above + sums / 2) / len(order))[of_row]
    return means
