"""Intervals for a mean that are valid at every look: a confidence sequence by betting.

An ordinary interval is valid at one look. If it is looked at after every value, it misses the mean at some look far more often
than its confidence promises. A confidence sequence is valid at all looks at once, so a display may show it at any time, and a
reader may stop because of it.

Source: Waudby-Smith and Ramdas 2021, "Estimating means of bounded random variables by betting", arXiv:2010.09686 (J. R. Statist.
Soc. B 86, 2024): the hedged capital process (theorem 3) with predictable plug-in bets (equation 26 with the factor
log(t + 1)), each bet at most half of what could be lost. A mean is ruled out when a gambler who bets against it has multiplied
the capital by 2 / (1 - confidence).

Departures: the capital is kept at fixed candidate means and the limits are interpolated between them; the intersection over
all looks is kept.
"""

import math

import numpy as np

from heldout.errors import MetricError
from heldout.metrics.table import FloatArray

_NUM_MEANS = 401
_MEANS = (1 - np.cos(np.linspace(0, np.pi, _NUM_MEANS))) / 2
"""Candidate means in [0, 1], closest together near 0 and 1, where intervals are narrow."""
_LARGEST_BETS = 0.5 / np.maximum(_MEANS, 1e-12)
"""The largest bet that the mean is greater than each candidate: a value of 0 loses half of the capital."""
_VALUES_AT_ONCE = 32
"""The capital after so many values is computed at once: in the processor's cache, and as products that no float overflows."""


class ConfidenceSequence:
    """The interval of a mean, for values that arrive one by one; valid at every look.

    Values are independent with the same mean, or at least their mean given all values before is the same. Memory is constant;
    `add` takes constant time, and `interval` some 20 microseconds for each value added since the last call.
    """

    def __init__(self, *, confidence: float = 0.95, low: float = 0.0, high: float = 1.0) -> None:
        """low, high: the range that no value can leave; known before the first value.

        Raises MetricError for a confidence outside (0, 1) or a range that is empty or infinite.
        """
        if not 0 < confidence < 1:
            raise MetricError(f"confidence is {confidence!r}; it must lie between 0 and 1, such as 0.95")
        if not (math.isfinite(high - low) and low < high):
            raise MetricError(f"range is {low!r} to {high!r}; it must be two finite numbers, the lower one first")
        self.range = low, high
        self._low, self._width = low, high - low
        self._log_needed = math.log(2 / (1 - confidence))
        self._pending: list[float] = []
        self._count = 0
        self._sum = 0.5
        self._sum_squares = 0.25
        # Logarithms of the capital of bets that the mean is greater, and less, than each candidate: now, and at its greatest.
        self._capital_2M = np.zeros((2, _NUM_MEANS))
        self._greatest_2M = np.zeros((2, _NUM_MEANS))

    def add(self, value: float) -> None:
        """Adds the next value. Raises MetricError for a value outside the range."""
        scaled = (value - self._low) / self._width
        if not 0 <= scaled <= 1:
            raise MetricError(f"value is {value!r}; it must be from {self.range[0]:g} to {self.range[1]:g}")
        self._pending.append(scaled)
        if len(self._pending) == _VALUES_AT_ONCE:
            self._bet()

    def interval(self) -> tuple[float, float]:
        """Low and high end, both inside the range; the whole range before the first value."""
        if self._pending:
            self._bet()
        against_low, against_high = self._greatest_2M
        low = _last_crossing(against_low, self._log_needed)
        high = 1 - _last_crossing(against_high[::-1], self._log_needed)
        if low > high:  # Every candidate is ruled out, as by values whose mean changes: the ends meet.
            low = high = (low + high) / 2
        return self._low + low * self._width, self._low + high * self._width

    def _bet(self) -> None:
        values_T = np.array(self._pending)
        self._pending.clear()
        bets_T = self._bets(values_T)[:, None]
        gains_TM = values_T[:, None] - _MEANS
        greater_TM = 1 + np.minimum(bets_T, _LARGEST_BETS) * gains_TM
        less_TM = 1 - np.minimum(bets_T, _LARGEST_BETS[::-1]) * gains_TM
        for side, factors_TM in enumerate((greater_TM, less_TM)):
            growth_TM = np.cumprod(factors_TM, axis=0)
            np.maximum(
                self._greatest_2M[side],
                self._capital_2M[side] + np.log(growth_TM.max(axis=0)),
                out=self._greatest_2M[side],
            )
            self._capital_2M[side] += np.log(growth_TM[-1])

    def _bets(self, values_T: FloatArray) -> FloatArray:
        """The bet on each value, which depends on the values before it alone; brings the sums up to date."""
        count_T = self._count + np.arange(1, len(values_T) + 1)
        means_T = (self._sum + np.cumsum(values_T)) / (count_T + 1)
        squares_T = self._sum_squares + np.cumsum(np.square(values_T - means_T))
        before_T = np.concatenate([[self._sum_squares], squares_T[:-1]]) / count_T
        self._count += len(values_T)
        self._sum += float(values_T.sum())
        self._sum_squares = float(squares_T[-1])
        bets_T: FloatArray = np.sqrt(2 * self._log_needed / (before_T * count_T * np.log(count_T + 1)))
        return bets_T


def _last_crossing(capital_M: FloatArray, needed: float) -> float:
    """The mean up to which means are ruled out, interpolated; 0 if none is.

    capital_M: the capital by ascending means. needed: the capital that rules a mean out.
    """
    ruled_out = np.flatnonzero(capital_M >= needed)
    if len(ruled_out) == 0:
        return 0.0
    last = int(ruled_out[-1])
    if last == _NUM_MEANS - 1:
        return 1.0
    above, below = capital_M[last] - needed, needed - capital_M[last + 1]
    return float(_MEANS[last] + (_MEANS[last + 1] - _MEANS[last]) * above / (above + below))
