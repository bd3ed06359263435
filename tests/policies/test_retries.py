"""Retries of calls to a model server."""

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.http.headers import retry_after_seconds
from heldout.policies.base import PolicyUnavailable
from heldout.policies.retries import Budget, Retries, TryFailed

NOW = 1_700_000_000.0


class Waits(list[float]):
    """Stands in for sleep: notes each wait and returns at once."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


async def _spend(budget: Budget, failure: TryFailed) -> None:
    while True:
        budget.spend_try("http://server/v1", failure)
        await budget.wait("http://server/v1", failure)


@given(chance=st.floats(0, 1, exclude_max=True), tries=st.integers(2, 30))
async def test_waits_double_up_to_the_longest_and_jitter_only_shortens_them_by_up_to_half(
    chance: float, tries: int
) -> None:
    waits = Waits()
    retries = Retries(max_tries=tries, max_waiting_seconds=1e9, sleep=waits, chance=lambda: chance)
    with pytest.raises(PolicyUnavailable):
        await _spend(Budget(retries, "m"), TryFailed("answers 503"))
    assert len(waits) == tries - 1
    for number, seconds in enumerate(waits):
        longest = min(0.25 * 2**number, 15.0)
        assert longest / 2 <= seconds <= longest


async def test_the_error_after_the_last_try_names_policy_server_reason_tries_and_waiting() -> None:
    retries = Retries(max_tries=3, sleep=Waits(), chance=lambda: 0.0)
    with pytest.raises(PolicyUnavailable) as caught:
        await _spend(Budget(retries, "tuned"), TryFailed("answers 503 'busy'"))
    # half of 0.25 s, then half of 0.5 s
    assert str(caught.value) == (
        "policy 'tuned': http://server/v1 answers 503 'busy'; gave up after 3 tries and 0.375 s of waiting (the most tries)"
    )


async def test_a_retry_after_beyond_the_remaining_wait_fails_at_once() -> None:
    waits = Waits()
    with pytest.raises(PolicyUnavailable, match=r"gave up after 1 try .*the next wait of 3.6e\+03 s would pass"):
        await _spend(Budget(Retries(sleep=waits), "m"), TryFailed("answers 429", retry_after="3600"))
    assert waits == []


@given(st.integers(0, 10**9))
def test_retry_after_as_a_date_equals_its_seconds(seconds: int) -> None:
    date = formatdate(NOW + seconds, usegmt=True)
    assert retry_after_seconds(date, NOW) == pytest.approx(seconds)
    assert retry_after_seconds(str(seconds), NOW) == seconds


def test_a_date_without_a_time_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after_seconds(formatdate(NOW + 60).removesuffix(" -0000"), NOW) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_retry_after_in_the_past_means_no_wait() -> None:
    assert retry_after_seconds(formatdate(NOW - 60, usegmt=True), NOW) == 0


@pytest.mark.parametrize("header", [None, "", "soon", "-1", "nan", "inf", "Mon, 99 Xyz 2026"])
def test_a_retry_after_that_cannot_be_read_is_as_none(header: str | None) -> None:
    assert retry_after_seconds(header, NOW) is None
