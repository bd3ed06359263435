"""Streamed replies are relayed without fields that the agent did not request, and recorded as if unstreamed."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.runtime.dialects.base import Reply, ReplyTooLong, error_text
from heldout.runtime.dialects.openai_replies import OpenAIStream, read_reply
from tests.support.runtime_support import Answer, Json, streamed_events, whole_reply

TOOL_CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "guess", "arguments": '{"number": 5}'}},
    {"id": "call_2", "type": "function", "function": {"name": "stop", "arguments": ""}},
]
ANSWERS = [
    Answer(),
    Answer({"role": "assistant", "content": "one"}, "length"),
    Answer({"role": "assistant", "content": None, "tool_calls": TOOL_CALLS}, "tool_calls"),
    Answer({"role": "assistant", "content": "let me see", "tool_calls": TOOL_CALLS[:1]}, "tool_calls"),
]


def follow(
    pieces: list[bytes], *, hides_usage: bool = False, hides_logprobs: bool = False
) -> tuple[bytes, OpenAIStream]:
    streamed = OpenAIStream(hides_usage=hides_usage, hides_logprobs=hides_logprobs, limit=10**6)
    relayed = b"".join(streamed.feed(piece) for piece in pieces) + streamed.finish()
    return relayed, streamed


def request(**fields: object) -> Json:
    return {"model": "m", "stream": True, "stream_options": {"include_usage": True}, **fields}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"n": 3}, {"n": 2, "logprobs": True}])
def test_a_streamed_reply_is_recorded_like_an_unstreamed_one(answer: Answer, fields: Json) -> None:
    sent = request(**fields)
    _, streamed = follow(list(streamed_events(sent, answer)))
    assert streamed.reply() == read_reply(whole_reply(sent, answer))
    assert streamed.is_done
    assert streamed.is_complete


@given(st.data())
def test_a_stream_cut_at_any_byte_is_relayed_the_same(data: st.DataObject) -> None:
    answer = data.draw(st.sampled_from(ANSWERS))
    end = data.draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]))
    flags = {"hides_usage": data.draw(st.booleans()), "hides_logprobs": data.draw(st.booleans())}
    sent = request(logprobs=True)
    events = [event.removesuffix(b"\n\n") + end for event in streamed_events(sent, answer)]
    whole = b"".join([b": a comment" + end, *events])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    relayed, streamed = follow(pieces, **flags)
    relayed_at_once, streamed_at_once = follow([whole], **flags)
    assert relayed == relayed_at_once
    assert streamed.reply() == streamed_at_once.reply() == read_reply(whole_reply(sent, answer))
    if not any(flags.values()):
        assert relayed == whole


def test_an_event_is_relayed_as_soon_as_it_is_complete() -> None:
    events = list(streamed_events(request(), Answer()))
    streamed = OpenAIStream(hides_usage=True, hides_logprobs=True, limit=10**6)
    assert streamed.feed(events[0] + events[1][:10]) == events[0]
    assert streamed.feed(events[1][10:]) == events[1]


def test_usage_that_the_agent_did_not_ask_for_is_counted_and_not_relayed() -> None:
    relayed, streamed = follow(list(streamed_events(request(), Answer())), hides_usage=True)
    assert b"usage" not in relayed
    assert relayed.endswith(b"data: [DONE]\n\n")
    assert (streamed.reply().prompt_tokens, streamed.reply().response_tokens) == (7, 4)


def test_logprobs_that_the_agent_did_not_ask_for_are_kept_and_not_relayed() -> None:
    relayed, streamed = follow(list(streamed_events(request(logprobs=True), Answer())), hides_logprobs=True)
    plain, _ = follow(list(streamed_events(request(), Answer())))
    assert b"-0.5" not in relayed
    assert texts(relayed) == texts(plain)
    assert streamed.reply().logprobs == (-0.5, -0.5, -0.5, -0.5)


def texts(stream: bytes) -> list[object]:
    chunks = [orjson.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    return [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]


def test_a_stream_cut_short_keeps_what_came() -> None:
    _, streamed = follow(list(streamed_events(request(), Answer()))[:3])
    assert streamed.reply() == Reply([{"role": "assistant", "content": "Hello, who "}], None, None, None, None)
    assert not streamed.is_complete


def test_reasoning_is_put_together_like_content() -> None:
    deltas: list[Json] = [{"reasoning_content": "I "}, {"reasoning_content": "think"}, {"content": "so"}]
    events = [b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n" for delta in deltas]
    _, streamed = follow(events)
    assert streamed.reply().messages == [{"role": "assistant", "content": "so", "reasoning_content": "I think"}]


def test_reply_fields_that_are_not_text_are_kept_and_lists_are_joined() -> None:
    deltas: list[Json] = [
        {"reasoning_details": [{"text": "I"}]},
        {"reasoning_details": [{"text": "think"}], "score": 1},
    ]
    _, streamed = follow([b"data: " + orjson.dumps({"choices": [{"delta": delta}]}) + b"\n\n" for delta in deltas])
    (message,) = streamed.reply().messages
    details = [{"text": "I"}, {"text": "think"}]
    assert message == {"role": "assistant", "content": None, "reasoning_details": details, "score": 1}


def test_choices_are_in_the_order_of_their_numbers_whichever_came_first() -> None:
    chunks: list[Json] = [{"index": index, "delta": {"content": str(index)}} for index in (1, 0)]
    _, streamed = follow([b"data: " + orjson.dumps({"choices": [chunk]}) + b"\n\n" for chunk in chunks])
    assert [message["content"] for message in streamed.reply().messages if isinstance(message, dict)] == ["0", "1"]


def test_an_error_within_a_stream_is_kept_and_relayed() -> None:
    event = b'data: {"error": {"message": "out of memory"}}\n\n'
    relayed, streamed = follow([event])
    assert (relayed, streamed.error) == (event, "out of memory")


def test_a_stream_without_end_is_not_followed_for_ever() -> None:
    streamed = OpenAIStream(hides_usage=False, hides_logprobs=False, limit=1000)
    streamed.feed(b"x" * 600)
    with pytest.raises(ReplyTooLong):
        streamed.feed(b"x" * 600)


def test_a_streamed_completion_is_read_as_text() -> None:
    events = [b'data: {"choices": [{"index": 0, "text": "a", "logprobs": {"token_logprobs": [-1, null]}}]}\n\n'] * 2
    _, streamed = follow(events)
    assert streamed.reply() == Reply([{"role": "assistant", "content": "aa"}], None, None, None, (-1.0, -1.0))


@pytest.mark.parametrize("body", [None, [], {}, {"choices": []}, {"choices": "no"}, "text"])
def test_a_reply_that_is_not_a_completion_is_recognized(body: object) -> None:
    assert read_reply(body) is None


def test_odd_replies_are_kept_without_the_parts_that_make_no_sense() -> None:
    odd: Json = {
        "choices": [{"message": {"content": 5}, "logprobs": {"content": ["x", {"logprob": None}]}}, {"text": "a"}],
        "usage": {"prompt_tokens": "7"},
    }
    said: list[object] = [{"content": 5}, {"role": "assistant", "content": "a"}]
    assert read_reply(odd) == Reply(said, None, None, None, ())


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no such\\nmodel"}}', "no such model"),
        (b'{"error": "busy"}', "busy"),
        (b'{"message": "flat"}', "flat"),
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"", ""),
    ],
)
def test_an_error_is_described_by_its_message_or_its_beginning(body: bytes, text: str) -> None:
    assert error_text(body) == text
