"""Posterior of a success rate from counts of successes when prompts differ in difficulty: beta-binomial, on a grid.

Prompt i has its own success rate, drawn from a beta distribution with mean m; the correlation r between two rollouts of one
prompt says how far the rates spread. Limits for m come from its posterior, r averaged out. The prior is chosen for coverage
and nothing else:

- For the upper limit m has density 1 / (1 - m), for the lower 1 / m: with one rollout a prompt these are exactly the limits of
  Clopper and Pearson.
- The design effect 1 + (n - 1) r, by which correlated rollouts widen an interval, has its logarithm spread from independent
  rollouts to identical ones, a little more towards the former, with extra weight on either end: both ends are common in
  practice, and neither is found by a grid of points in between.

scipy is imported where it is used, so that an evaluation starts without waiting for it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np

from heldout.metrics.table import FloatArray, IntArray

WEIGHT_INDEPENDENT = 0.5
"""Prior weight of rollouts of a prompt being independent: the smaller, the wider the intervals where they are."""
WEIGHT_IDENTICAL = 0.1
"""Prior weight of all rollouts of a prompt ending alike: the smaller, the lower the coverage where they nearly do."""
TILT = 0.25
"""In between, the weight falls as this power of the way left to identical rollouts: the greater, the narrower the intervals of
few prompts and the lower their coverage where rollouts are much alike."""
_NUM_MEANS = 101
_NUM_CORRELATIONS = 12
_FARTHEST_LOGIT = 16.0
"""Rates between 1e-7 and 1 - 1e-7 are looked at."""
_EVALUATIONS_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class CountTables:
    """How many prompts had c successes in n rollouts, for one or several evaluations: all a beta-binomial likelihood needs."""

    pairs: tuple[tuple[int, int], ...]
    """(c, n), each once."""
    num_prompts_RC: FloatArray
    """Shape (num_evaluations, num_pairs)."""

    @classmethod
    def of(cls, successes: IntArray, sizes: IntArray) -> Self:
        """The table of one evaluation. successes, sizes: shape (num_prompts,), 0 <= successes <= sizes."""
        (found_n, found_c), num_prompts = np.unique(np.stack([sizes, successes]), axis=1, return_counts=True)
        pairs = tuple(zip(found_c.tolist(), found_n.tolist(), strict=True))
        return cls(pairs, num_prompts.astype(np.float64)[None, :])

    @property
    def rollouts_R(self) -> FloatArray:
        """Shape (num_evaluations,)."""
        return self.num_prompts_RC @ np.array([n for _, n in self.pairs], dtype=np.float64)

    @property
    def successes_R(self) -> FloatArray:
        """Shape (num_evaluations,)."""
        return self.num_prompts_RC @ np.array([c for c, _ in self.pairs], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Quantity:
    """The function of a prompt's success rate p that is averaged over prompts: 1 - (1 - p)^k, or p^k."""

    k: int = 1
    is_power: bool = False

    def on(self, grid: "Grid") -> FloatArray:
        """Its mean over prompts at each grid point, shape (num_means, num_correlations), or (num_means, 1) for the success
        rate, which does not depend on the correlation."""
        from scipy import special

        if self.k == 1:
            return np.asarray(special.expit(grid.logits)[:, None])
        a, b = grid.shapes_MR()
        if self.is_power:
            means: FloatArray = np.exp(special.betaln(a + self.k, b) - special.betaln(a, b))
        else:
            means = -np.expm1(special.betaln(a, b + self.k) - special.betaln(a, b))
        return means


SUCCESS_RATE = Quantity()


@dataclass(frozen=True, slots=True)
class Grid:
    """Means and correlations to average over, and the log-likelihood of every pair of counts at each."""

    logits: FloatArray
    """Of the means, shape (num_means,), ascending."""
    correlations: FloatArray
    """Shape (num_correlations,)."""
    weights: FloatArray
    """Prior weight of each correlation, shape (num_correlations,)."""
    likelihoods: FloatArray
    """Logarithms, shape (num_pairs, num_means * num_correlations)."""

    def shapes_MR(self) -> tuple[FloatArray, FloatArray]:
        """The two parameters of the beta distribution at each grid point, shape (num_means, num_correlations) each."""
        return _beta_shapes(self.logits, self.correlations)


class Posterior(NamedTuple):
    """The posterior of a quantity, for several evaluations."""

    limits_R2: FloatArray
    """Equal-tailed limits, shape (num_evaluations, 2)."""
    likeliest_R: FloatArray
    """The quantity where the likelihood is greatest, shape (num_evaluations,)."""


def posterior(tables: CountTables, quantity: Quantity, tails_R2: FloatArray) -> Posterior:
    """Limits for `quantity`, and the estimate they are about, both of the model.

    tails_R2: what the lower and the upper limit leave out, such as 0.025 each for limits of 95%, shape (num_evaluations, 2).
    """
    found = Posterior(np.empty((len(tables.num_prompts_RC), 2)), np.empty(len(tables.num_prompts_RC)))
    centres, halvings = _grid_keys(tables.successes_R, tables.rollouts_R)
    for centre, halving in np.unique(np.stack([centres, halvings], axis=1), axis=0):
        same = np.flatnonzero((centres == centre) & (halvings == halving))
        grid = _make_grid(tables.pairs, int(centre), int(halving))
        values_MR = quantity.on(grid)
        for rows in np.array_split(same, -(-len(same) // _EVALUATIONS_AT_ONCE)):
            likelihoods = tables.num_prompts_RC[rows] @ grid.likelihoods
            found.limits_R2[rows] = _limits(grid, likelihoods, values_MR, tails_R2[rows])
            found.likeliest_R[rows] = _likeliest(grid, likelihoods, values_MR)
    return found


def _grid_keys(successes_R: FloatArray, rollouts_R: FloatArray) -> tuple[IntArray, IntArray]:
    """Where the means of a grid must lie closest together, a centre and a spacing, both rounded so that similar data share
    a grid; shape (num_evaluations,) each."""
    from scipy import special

    rates = (successes_R + 0.5) / (rollouts_R + 1)
    halvings = np.ceil(np.log2(np.sqrt(np.maximum(rollouts_R * rates * (1 - rates), 1.0)))) - 1
    return np.round(special.logit(rates) * 2 ** (halvings - 1)).astype(np.int64), halvings.astype(np.int64)


@lru_cache(maxsize=64)
def _make_grid(pairs: tuple[tuple[int, int], ...], centre: int, halvings: int) -> Grid:
    spacing = 2.0**-halvings
    middle = 2 * centre * spacing
    below, above = np.arcsinh((_FARTHEST_LOGIT + middle) / spacing), np.arcsinh((_FARTHEST_LOGIT - middle) / spacing)
    logits = middle + spacing * np.sinh(np.linspace(-below, above, _NUM_MEANS))
    correlations, weights = _correlations(max(n for _, n in pairs))
    a, b = (shape.ravel() for shape in _beta_shapes(logits, correlations))
    c, n = np.array(pairs).T
    likelihoods = _log_rising(a, c) + _log_rising(b, n - c) - _log_rising(a + b, n)
    return Grid(logits, correlations, weights, likelihoods)


def _log_rising(start: FloatArray, counts: IntArray) -> FloatArray:
    """log(start (start + 1) ... (start + count - 1)) for each count and start, shape (num_counts, num_starts)."""
    from scipy import special

    different, position = np.unique(counts, return_inverse=True)
    rising: FloatArray = special.gammaln(start + different[:, None]) - special.gammaln(start)
    return rising[position]


def _limits(grid: Grid, likelihoods: FloatArray, values_MR: FloatArray, tails_R2: FloatArray) -> FloatArray:
    from scipy import special

    likelihoods = np.exp(likelihoods - likelihoods.max(axis=1, keepdims=True))
    masses = likelihoods.reshape(-1, len(grid.logits), len(grid.weights)) * grid.weights
    if values_MR.shape[1] == 1:
        masses = masses.sum(axis=2, keepdims=True)
    order = np.argsort(values_MR, axis=None, kind="stable")
    values, starts = np.unique(values_MR.ravel()[order], return_index=True)
    widths = np.gradient(grid.logits)
    limits = []
    # In logits a prior density of 1 / m becomes 1 - m (for the lower limit), and 1 / (1 - m) becomes m (for the upper).
    for levels_R, density in (
        (tails_R2[:, 0], special.expit(-grid.logits)),
        (1 - tails_R2[:, 1], special.expit(grid.logits)),
    ):
        weighted = (masses * (widths * density)[:, None]).reshape(len(masses), -1)[:, order]
        limits.append(_quantiles(np.add.reduceat(weighted, starts, axis=1), values, levels_R))
    return np.stack(limits, axis=1)


def _likeliest(grid: Grid, likelihoods: FloatArray, values_MR: FloatArray) -> FloatArray:
    """The value at the top of the likelihood: at the best grid point, moved along the means to the top of a parabola."""
    from scipy import special

    row = np.arange(len(likelihoods))
    profile = likelihoods.reshape(-1, len(grid.logits), len(grid.weights))
    mean, correlation = np.divmod(likelihoods.argmax(axis=1), len(grid.weights))
    values_MR = np.broadcast_to(values_MR, profile.shape[1:])
    mean = np.clip(mean, 1, len(grid.logits) - 2)
    x = np.stack([grid.logits[mean + step] for step in (-1, 0, 1)])
    y = np.stack([profile[row, mean + step, correlation] for step in (-1, 0, 1)])
    before, after = np.diff(y, axis=0) / np.diff(x, axis=0)
    bend = np.minimum(after - before, -1e-9)
    top = np.clip((x[0] + x[1]) / 2 - before * (x[2] - x[0]) / 2 / bend, x[0], x[2])
    low, middle, high = (
        special.logit(np.clip(values_MR[mean + step, correlation], 1e-12, 1 - 1e-12)) for step in (-1, 0, 1)
    )
    slope = np.where(top < x[1], (middle - low) / (x[1] - x[0]), (high - middle) / (x[2] - x[1]))
    value: FloatArray = special.expit(middle + slope * (top - x[1]))
    return value


def _quantiles(masses_RV: FloatArray, values: FloatArray, levels_R: FloatArray) -> FloatArray:
    """A quantile of each row's distribution over ascending values, half of a value's mass counted below it."""
    sums = np.cumsum(masses_RV, axis=1)
    middles = (sums - masses_RV / 2) / sums[:, -1:]
    return np.array([np.interp(level, row, values) for level, row in zip(levels_R, middles, strict=True)])


def _correlations(largest: int) -> tuple[FloatArray, FloatArray]:
    if largest == 1:
        return np.array([0.5]), np.array([1.0])
    inner = (np.arange(_NUM_CORRELATIONS) + 0.5) / _NUM_CORRELATIONS
    design_effects = float(largest) ** np.concatenate([[0.0], inner, [1.0]])
    correlations = np.clip((design_effects - 1) / (largest - 1), 1e-6, 1 - 1e-6)
    between = (1 - inner) ** TILT
    between *= (1 - WEIGHT_INDEPENDENT - WEIGHT_IDENTICAL) / between.sum()
    weights = np.concatenate([[WEIGHT_INDEPENDENT], between, [WEIGHT_IDENTICAL]])
    return correlations, weights


def _beta_shapes(logits: FloatArray, correlations: FloatArray) -> tuple[FloatArray, FloatArray]:
    from scipy import special

    precisions = 1 / correlations - 1
    return special.expit(logits)[:, None] * precisions, special.expit(-logits)[:, None] * precisions
