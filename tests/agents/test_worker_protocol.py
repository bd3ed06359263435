"""Frames from worker to engine and answers from agents, read in pieces of any size."""

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.agents.agentcore_contract import read_answer, says_busy
from heldout.agents.base import Outcome
from heldout.agents.worker_protocol import FrameReader, write_output


@given(
    st.lists(st.tuples(st.text("abc-_.", min_size=1, max_size=256), st.binary(min_size=1, max_size=9000)), max_size=5),
    st.integers(1, 500),
)
def test_output_read_in_any_pieces_arrives_complete(said: list[tuple[str, bytes]], size: int) -> None:
    read_fd, write_fd = os.pipe()
    for session, data in said:
        write_output(write_fd, session.encode(), data)
    os.close(write_fd)
    reader, heard = FrameReader(), []
    while piece := os.read(read_fd, size):
        heard += reader.feed(piece)
    os.close(read_fd)
    for session in {session for session, _ in said}:
        expected = b"".join(data for name, data in said if name == session)
        assert b"".join(frame.data for frame in heard if frame.session == session) == expected


@pytest.mark.parametrize(
    ("content_type", "body", "value"),
    [
        ("application/json", b'{"reward": 1}', {"reward": 1}),
        ("text/plain", b" 3 ", 3),
        ("application/json", b"", None),
        ("text/event-stream", b'data: {"reward": 0}\n\ndata: {"reward": 1}\n\ndata: [DONE]\n\n', {"reward": 1}),
        ("text/event-stream; charset=utf-8", b'event: x\r\ndata: {"a":\r\ndata: 1}\r\n\r\n: idle\r\n\r\n', {"a": 1}),
        ("text/event-stream", b"", None),
        ("application/json", b'{"error": "of measurement", "reward": 1}', {"error": "of measurement", "reward": 1}),
    ],
)
def test_json_and_the_last_event_of_a_stream_are_answers(content_type: str, body: bytes, value: object) -> None:
    result = read_answer(200, content_type, body)
    assert (result.outcome, result.body) == (Outcome.RETURNED, value)


def test_nan_is_still_nan_after_the_way() -> None:
    assert math.isnan(json.loads(json.dumps(read_answer(200, "application/json", b'{"reward": NaN}').body))["reward"])


@pytest.mark.parametrize(
    ("status", "content_type", "body", "message"),
    [
        (500, "application/json", b'{"error": "boom"}', 'answered 500: {"error": "boom"}'),
        (
            500,
            "application/json",
            b'{"error": "boom (a.py:3)", "error_type": "ValueError"}',
            "ValueError: boom (a.py:3)",
        ),
        (404, "text/plain", b"", "answered 404: (empty)"),
        (200, "text/html", b"<p>\nhi", "answered something that is not JSON: <p> hi"),
        (
            200,
            "text/event-stream",
            b'data: 1\n\ndata: {"error": "x", "error_type": "KeyError", "message": "m"}\n\n',
            "KeyError: x",
        ),
        (200, "application/json", b"[" * 100_000, "answered something that is not JSON: " + "[" * 462 + "…"),
    ],
)
def test_errors_are_one_line(status: int, content_type: str, body: bytes, message: str) -> None:
    result = read_answer(status, content_type, body)
    assert (result.outcome, result.message) == (Outcome.RAISED, message)


@pytest.mark.parametrize(
    ("ping", "is_busy"), [(b'{"status": "HealthyBusy"}', True), (b'{"status": "Healthy"}', False), (b"x", False)]
)
def test_the_ping_decides_whether_an_agent_is_busy(ping: bytes, is_busy: bool) -> None:
    assert says_busy(ping) is is_busy
