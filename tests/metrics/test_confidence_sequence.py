"""The interval that may be looked at after every value."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.errors import MetricError
from heldout.metrics.confidence_sequence import ConfidenceSequence
from heldout.metrics.table import FloatArray

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=80)


def sequence_of(values: list[float], *, confidence: float = 0.95) -> ConfidenceSequence:
    sequence = ConfidenceSequence(confidence=confidence)
    for value in values:
        sequence.add(value)
    return sequence


def by_definition(values: list[float], means_M: FloatArray) -> tuple[float, float]:
    """The candidate means that no capital has reached 40 against, by the paper's formulas, one bet after another."""
    needed = 2 / 0.05
    greater_M, less_M, is_possible_M = np.ones_like(means_M), np.ones_like(means_M), np.ones_like(means_M, dtype=bool)
    total, squares = 0.5, 0.25
    for t, value in enumerate(values, start=1):
        bet = math.sqrt(2 * math.log(needed) / (squares / t * t * math.log(t + 1)))
        greater_M *= 1 + np.minimum(bet, 0.5 / np.maximum(means_M, 1e-12)) * (value - means_M)
        less_M *= 1 - np.minimum(bet, 0.5 / np.maximum(1 - means_M, 1e-12)) * (value - means_M)
        is_possible_M &= (greater_M < needed) & (less_M < needed)
        total += value
        squares += (value - total / (t + 1)) ** 2
    possible = means_M[is_possible_M]
    return float(possible.min()), float(possible.max())


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 0.98), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_the_limits_are_those_of_the_paper(rate: float, number: int, seed: int) -> None:
    values = np.random.default_rng(seed).binomial(2, rate, number) / 2
    assert sequence_of(list(values)).interval() == pytest.approx(
        by_definition(list(values), np.linspace(0, 1, 10_001)), abs=1.5e-3
    )


@settings(deadline=None)
@given(VALUES)
def test_intervals_only_shrink_and_stay_in_the_range(values: list[float]) -> None:
    sequence = ConfidenceSequence()
    low, high = sequence.interval()
    assert (low, high) == (0.0, 1.0)
    for value in values:
        sequence.add(value)
        before, (low, high) = (low, high), sequence.interval()
        assert before[0] <= low <= high <= before[1]


@settings(deadline=None)
@given(VALUES, st.integers(1, 40))
def test_how_often_one_looks_changes_nothing(values: list[float], every: int) -> None:
    looked_at = ConfidenceSequence()
    for number, value in enumerate(values):
        looked_at.add(value)
        if number % every == 0:
            looked_at.interval()
    assert looked_at.interval() == pytest.approx(sequence_of(values).interval(), abs=1e-9)


@settings(deadline=None)
@given(VALUES)
def test_failures_in_place_of_successes_turn_the_interval_around(values: list[float]) -> None:
    low, high = sequence_of(values).interval()
    mirrored = sequence_of([1 - value for value in values]).interval()
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)


@settings(deadline=None)
@given(VALUES, st.floats(-50, 50), st.floats(0.1, 50))
def test_another_range_only_changes_the_unit(values: list[float], low: float, width: float) -> None:
    sequence = ConfidenceSequence(low=low, high=low + width)
    for value in values:
        sequence.add(min(max(low + width * value, low), low + width))
    found = sequence_of(values).interval()
    assert sequence.interval() == pytest.approx((low + width * found[0], low + width * found[1]), abs=1e-3 * width)


def test_more_confidence_is_wider() -> None:
    values = [0.0, 1.0] * 50
    (low, high), (sure_low, sure_high) = (
        sequence_of(values, confidence=confidence).interval() for confidence in (0.9, 0.99)
    )
    assert sure_low < low < high < sure_high


def test_ten_successes_leave_room_below() -> None:
    low, high = sequence_of([1.0] * 10).interval()
    # One look at 10 of 10 gives 0.722 (Wilson); any number of looks costs more.
    assert low == pytest.approx(0.528, abs=0.001)
    assert high == 1.0


def test_ends_meet_when_no_mean_fits() -> None:
    low, high = sequence_of([0.0] * 400 + [1.0] * 4000).interval()
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_looking_after_every_value_misses_the_mean_in_at_most_5_of_100_runs(rate: float) -> None:
    rng = np.random.default_rng(15)
    missed = 0
    for _ in range(200):
        sequence = ConfidenceSequence()
        values = rng.binomial(4, rng.beta(rate * 2, (1 - rate) * 2, 150)) / 4
        for value in values:
            sequence.add(float(value))
        # Intervals are nested, so the last one holds the mean exactly when all of them do.
        low, high = sequence.interval()
        missed += not low <= rate <= high
    assert missed <= 16  # Binomial(200, 0.05): at most 16 with probability 0.98


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"low": 1.0, "high": 1.0}, "range is 1.0 to 1.0"),
        ({"high": float("inf")}, "range is 0.0 to inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict[str, float], problem: str) -> None:
    with pytest.raises(MetricError, match=problem):
        ConfidenceSequence(**arguments)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_a_value_outside_the_range_is_refused(value: float) -> None:
    with pytest.raises(MetricError, match="it must be from 0 to 1"):
        ConfidenceSequence().add(value)
