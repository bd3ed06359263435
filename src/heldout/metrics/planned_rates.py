"""Two success rates as planned, and the difference that the limits of both runs need on top of the sign-flip test.

A comparison of rates shows a difference when two intervals leave out 0: that of the sign-flip test, and that of MOVER, built
from the limits of each run (`heldout.metrics.differences`). Near 0 and 1 and with few prompts MOVER asks for more. How much
more follows from the joint distribution of a prompt's successes in both runs, without drawing any evaluation: among
evaluations with a mean difference x, the shares of prompts are near that distribution tilted exponentially to mean x (Gibbs'
conditioning principle: Csiszar 1984, Ann. Probab. 12, 768-793). The tilted distribution gives both intervals, and the least x
at which both leave out 0.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from heldout.metrics.beta_binomial import SUCCESS_RATE, CountTables
from heldout.metrics.differences import PairedRates
from heldout.metrics.intervals import Scatter, limits_of_rates
from heldout.metrics.table import FloatArray, IntArray

_NUM_PLACES = 1_000
"""Quantiles of difficulty to average over."""
_NUM_OBSERVED = 9
_FEWEST_ERRORS, _MOST_ERRORS = 1.0, 6.0
"""Mean differences to look at, in standard errors of the planned one, which is looked at too: among these both intervals begin
to leave out 0."""
_STEEPEST = 200.0
"""Tilts are looked for up to this, on a difference of 1."""
_EXACT_BELOW = 20
"""Below this every number of prompts is looked at; above, the numbers that differ by a factor of `_STEP`."""
_STEP = 2**0.5


@dataclass(frozen=True, slots=True)
class PlannedRates:
    """Two policies' success rates, beta-distributed over prompts; the second rate is the first plus the planned difference."""

    rate: float
    """Of the first policy."""
    correlations: tuple[float, float]
    """Of the rollouts of one prompt, for each policy."""
    likeness: float
    """Correlation of the two policies' rates over prompts. It comes from a share of the prompts whose order of difficulty is
    the same for both; a negative one counts as 0."""

    def errors_needed(self, num_prompts: int, group_size: int, difference: float, confidence: float) -> float:
        """The observed difference from which the limits of both runs leave out 0, in standard errors of the difference."""
        mirrored = PlannedRates(1 - self.rate, self.correlations, self.likeness) if difference < 0 else self
        before, after = mirrored.rate, min(mirrored.rate + abs(difference), 1.0)
        if after <= before:
            return 0.0
        if num_prompts < _EXACT_BELOW:
            return _errors_needed(mirrored, after, num_prompts, group_size, confidence)
        place = np.log(num_prompts / _EXACT_BELOW) / np.log(_STEP)
        low = int(place + 1e-9)
        ends = [
            _errors_needed(mirrored, after, round(_EXACT_BELOW * _STEP**step), group_size, confidence)
            for step in ((low, low + 1) if place - low > 1e-9 else (low,))
        ]
        return float(ends[0] + (place - low) * (ends[-1] - ends[0]))


def difficulty_quantiles(rate: float, correlation: float, places: FloatArray) -> FloatArray:
    """Success rates of prompts at these quantiles of the beta distribution with this mean and correlation of rollouts."""
    from scipy import special  # not before a plan is made: see ARCHITECTURE.md, decision 12

    precision = 1 / min(max(correlation, 1e-6), 0.999) - 1
    rate = min(max(rate, 1e-9), 1 - 1e-9)
    quantiles = special.betaincinv(rate * precision, (1 - rate) * precision, places)
    return np.asarray(np.nan_to_num(quantiles, nan=rate))


def alike_share(likeness: float, first: FloatArray, second: FloatArray) -> float:
    """The share of prompts with one order of difficulty for both policies that gives their rates this correlation.

    first, second: rates at the same quantiles. A policy that always or never succeeds has no order of difficulty to share.
    """
    most_alike = float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else np.inf
    return min(max(likeness / most_alike, 0.0), 1.0)


@lru_cache(maxsize=1_024)
def _errors_needed(rates: PlannedRates, after: float, num_prompts: int, group_size: int, confidence: float) -> float:
    joint_BT = _joint(rates, after, group_size)
    values = np.arange(group_size + 1) / group_size
    differences_BT = values[None, :] - values[:, None]
    mean = float((joint_BT * differences_BT).sum())
    variance = float((joint_BT * np.square(differences_BT - mean)).sum())
    if variance < 1e-12:
        return 0.0
    error = float(np.sqrt(variance / num_prompts))
    most = min(max(_MOST_ERRORS * error, mean), 0.98)
    means = np.geomspace(min(_FEWEST_ERRORS * error, most / 2), most, _NUM_OBSERVED)
    lows = _Observed(_tilted(joint_BT, means), values, num_prompts).lower_limits(confidence)
    return float(np.interp(0.0, np.maximum.accumulate(lows), means)) / error


def _tilted(joint_BT: FloatArray, means_R: FloatArray) -> FloatArray:
    """The distribution, tilted exponentially to each of these mean differences, shape (num_means, *joint_BT.shape)."""
    size = len(joint_BT) - 1
    steps = np.arange(-size, size + 1)
    shares = np.array([np.trace(joint_BT, step) for step in steps])
    low, high = np.full(len(means_R), -_STEEPEST), np.full(len(means_R), _STEEPEST)
    for _ in range(40):
        tilts = (low + high) / 2
        is_below = _normalized(shares * np.exp(_exponents(tilts, steps / size))) @ (steps / size) < means_R
        low, high = np.where(is_below, tilts, low), np.where(is_below, high, tilts)
    weights_RD = np.exp(_exponents(tilts, steps / size))
    places = np.arange(size + 1)[None, :] - np.arange(size + 1)[:, None] + size
    tilted: FloatArray = joint_BT * weights_RD[:, places]
    return np.asarray(tilted / tilted.sum(axis=(1, 2), keepdims=True))


def _exponents(tilts_R: FloatArray, differences: FloatArray) -> FloatArray:
    exponents = tilts_R[:, None] * differences
    below: FloatArray = exponents - exponents.max(axis=1, keepdims=True)
    return below


def _normalized(weights_RD: FloatArray) -> FloatArray:
    return np.asarray(weights_RD / weights_RD.sum(axis=1, keepdims=True))


@lru_cache(maxsize=64)
def _joint(rates: PlannedRates, after: float, group_size: int) -> FloatArray:
    """Probability of so many successes of a prompt in the first run (rows) and the second (columns)."""
    places = (np.arange(_NUM_PLACES) + 0.5) / _NUM_PLACES
    first, second = (
        difficulty_quantiles(rate, correlation, places)
        for rate, correlation in zip((rates.rate, after), rates.correlations, strict=True)
    )
    share = alike_share(rates.likeness, first, second)
    first_QB, second_QT = (_binomial(group_size, p) for p in (first, second))
    alike: FloatArray = first_QB.T @ second_QT / _NUM_PLACES
    return share * alike + (1 - share) * np.outer(first_QB.mean(axis=0), second_QT.mean(axis=0))


def _binomial(size: int, rates: FloatArray) -> FloatArray:
    """Probability of each number of successes in `size` rollouts, shape (num_rates, size + 1)."""
    from scipy import special

    counts = np.arange(size + 1)
    ways = special.gammaln(size + 1) - special.gammaln(counts + 1) - special.gammaln(size - counts + 1)
    logs = special.xlogy(counts, rates[:, None]) + special.xlog1py(size - counts, -rates[:, None])
    return np.asarray(np.exp(ways + logs))


class _Observed:
    """Evaluations whose prompts are distributed as given; shape of each distribution: (num_counts, num_counts)."""

    def __init__(self, shares_RBT: FloatArray, values: FloatArray, num_prompts: int) -> None:
        before, after = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))
        shares_RC = shares_RBT.reshape(len(shares_RBT), -1)
        gains, losses = np.maximum(after - before, 0), np.maximum(before - after, 0)
        self._num_prompts, self._group_size = num_prompts, len(values) - 1
        self._first_RB, self._second_RT = shares_RBT.sum(axis=2), shares_RBT.sum(axis=1)
        self._first = _scatter(values, self._first_RB, num_prompts)
        self._second = _scatter(values, self._second_RT, num_prompts)
        self._gains, self._losses = (_scatter(part, shares_RC, num_prompts) for part in (gains, losses))
        self._correlation = _correlation(shares_RC @ (before * after), self._first, self._second)
        self._gain_correlation = _correlation(shares_RC @ (gains * losses), self._gains, self._losses)
        self._settled = shares_RBT[:, 0, 0] + shares_RBT[:, -1, -1]

    def lower_limits(self, confidence: float) -> FloatArray:
        """MOVER's lower limit of second minus first, shape (num_evaluations,)."""
        size, num_evaluations = self._group_size, len(self._first_RB)
        confidences = np.full(num_evaluations, confidence)
        pairs = tuple((count, size) for count in range(size + 1))
        first, second = (
            limits_of_rates(scatter, CountTables(pairs, shares * self._num_prompts), SUCCESS_RATE, confidences)
            for scatter, shares in ((self._first, self._first_RB), (self._second, self._second_RT))
        )
        paired = PairedRates(
            self._first.means_R,
            self._second.means_R,
            self._correlation,
            self._gains,
            self._losses,
            self._gain_correlation,
            PairedRates.hidden(self._correlation, self._settled),
            np.full(num_evaluations, float(self._num_prompts * size)),
        )
        low: FloatArray = paired.limits(first, second, confidences)[:, 0]
        return low


def _scatter(values: FloatArray, shares_RV: FloatArray, num_prompts: int) -> Scatter:
    """values: shape (num_values,); shares_RV: of the prompts that have each, shape (num_evaluations, num_values)."""
    means = shares_RV @ values
    squares = np.square(values - means[:, None])
    variances = np.maximum((shares_RV * squares).sum(axis=1), 1e-18)
    kurtosis = (shares_RV * np.square(squares)).sum(axis=1) / variances**2
    order = np.argsort(values)
    lowest, highest = (values[_seen(shares_RV, one, num_prompts)] for one in (order, order[::-1]))
    # Where a typical sample holds only zeros, its mean is 0, and its limits are those of a run without a success.
    return Scatter(num_prompts, np.clip(means, lowest, highest), variances, kurtosis, lowest, highest)


def _seen(shares_RV: FloatArray, order: IntArray, num_prompts: int) -> IntArray:
    """The first value in this order that a sample of prompts reaches with probability a half, shape (num_evaluations,)."""
    reached = np.cumsum(shares_RV[:, order], axis=1) >= 1 - 0.5 ** (1 / num_prompts)
    return np.asarray(order[reached.argmax(axis=1)])


def _correlation(products_R: FloatArray, first: Scatter, second: Scatter) -> FloatArray:
    covariance = products_R - first.means_R * second.means_R
    scale = np.sqrt(first.variances_R * second.variances_R)
    found: FloatArray = np.where(scale > 1e-12, covariance / np.maximum(scale, 1e-12), 0.0)
    return np.clip(found, -1.0, 1.0)
