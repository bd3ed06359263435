"""Failures by reason: counted, each with its commonest message and a hint where everyone meets it."""

import pytest

from heldout.metrics.failures import FailureReason, count_reasons


def test_each_reason_has_its_commonest_message_and_how_often_it_came() -> None:
    keys = [("agent", "raised", "KeyError: 'answer'")] * 3
    found = count_reasons([*keys, ("agent", "raised", "ValueError: no"), ("policy", "unreachable", "HTTP 503")])
    assert list(map(str, found)) == [
        "agent: raised (4), 3 of them KeyError: 'answer'",
        "policy: unreachable (1), HTTP 503",
    ]


def test_messages_that_differ_in_numbers_and_ids_are_one() -> None:
    messages = [f"no reward within 600 s of trajectory {p}-0-1-abcdef{p:010d}" for p in range(5)]
    (reason,) = count_reasons(("agent", "timeout", message) for message in messages)
    assert (reason.message, reason.message_count) == (messages[0], 5)
    assert str(reason).startswith("agent: timeout (5), all no reward within")


def test_a_message_of_many_lines_is_one_line_and_cut() -> None:
    (reason,) = count_reasons([("agent", "raised", "first\n  second " + "x" * 1000)])
    assert reason.message.startswith("first second xxx")
    assert len(reason.message) == 160


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        ("raised", "KeyError: 'answer'", "columns"),
        ("raised", "ModuleNotFoundError: No module named 'x'", "install the module"),
        ("unreachable", "Connection refused", "model server runs"),
        ("timeout", "timed out after 600 s", "rollout_timeout"),
        ("raised", "This model's maximum context length is 4096 tokens", "outgrows the model"),
        ("raised", "openai.RateLimitError: Error code: 429", "rollout_max_concurrency"),
        ("no_reward", "the agent answered {} and reported no reward", "return {'reward': NUMBER}"),
        ("raised", "ZeroDivisionError: division by zero", ""),
    ],
)
def test_failures_that_everyone_meets_have_a_hint(kind: str, message: str, words: str) -> None:
    hint = FailureReason("agent", kind, 1, message, 1).hint
    assert words in hint
    assert bool(hint) == bool(words)
