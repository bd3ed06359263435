"""Each message of a trajectory is stored once, and every conversation can be rebuilt."""

import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.job.conversations import conversation
from heldout.job.records import Turn
from heldout.runtime.capture import Capture, CapturedCall, TextPrompt

Json = dict[str, object]


def user(text: object) -> Json:
    return {"role": "user", "content": text}


def said(text: object) -> Json:
    return {"role": "assistant", "content": text}


def as_turn(call: CapturedCall, reply: object = None) -> Turn:
    kept = b"" if reply is None else orjson.dumps([reply])
    return Turn(
        call.turn,
        call.parent,
        call.shared_messages,
        call.messages,
        call.request,
        kept,
        None,
        None,
        None,
        None,
        0,
        0,
        200,
        None,
    )


def play(capture: Capture, messages: list[object], reply: object = None, request: Json | None = None) -> Turn:
    call = capture.begin(request or {}, messages)
    if reply is not None:
        capture.end(call, reply)
    return as_turn(call, reply)


def test_a_continued_conversation_stores_only_new_messages() -> None:
    capture = Capture()
    first = play(capture, [user("a")], said("b"))
    second = play(capture, [user("a"), said("b"), user("c")])
    assert (second.parent, second.shared_messages, second.messages) == (0, 2, orjson.dumps([user("c")]))
    assert conversation([first, second], 1) == [user("a"), said("b"), user("c")]


def test_a_reply_sent_back_without_its_null_keys_is_the_same_message() -> None:
    capture = Capture()
    reply: Json = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None}
    play(capture, [user("a")], reply)
    assert play(capture, [user("a"), said("b"), user("c")]).shared_messages == 2


def test_a_message_sent_with_null_keys_at_any_depth_is_the_same_message() -> None:
    capture = Capture()
    play(capture, [user([{"type": "text", "text": "a"}])])
    assert play(capture, [user([{"type": "text", "text": "a", "cache": None}]), user("b")]).shared_messages == 1


def test_a_branch_continues_from_the_last_shared_message() -> None:
    capture = Capture()
    turns = [play(capture, [user("a"), user("b")], said("c")), play(capture, [user("a"), user("x")])]
    assert (turns[1].parent, turns[1].shared_messages) == (0, 1)
    assert conversation(turns, 1) == [user("a"), user("x")]


def test_two_answers_to_the_same_question_each_have_their_continuations() -> None:
    capture = Capture()
    turns = [play(capture, [user("a")], said("left")), play(capture, [user("a")], said("right"))]
    turns.append(play(capture, [user("a"), said("right"), user("go on")]))
    assert [turn.parent for turn in turns] == [None, 0, 1]
    assert conversation(turns, 2) == [user("a"), said("right"), user("go on")]


def test_a_conversation_of_its_own_has_no_parent() -> None:
    capture = Capture()
    play(capture, [user("a")], said("b"))
    assert play(capture, [user("other")]).parent is None


def test_parameters_are_stored_again_only_when_they_change() -> None:
    capture = Capture()
    request: Json = {"model": "default", "temperature": 0.5, "tools": [{"type": "function"}]}
    turns = [
        play(capture, [user("a")], said("b"), request),
        play(capture, [user("a"), said("b"), user("c")], said("d"), dict(request)),
        play(capture, [user("a"), said("b"), user("c"), said("d"), user("e")], request=request | {"temperature": 0}),
    ]
    assert [orjson.loads(turn.request or b"null") for turn in turns] == [request, None, request | {"temperature": 0}]


def test_storage_grows_with_the_conversation_and_not_with_its_square() -> None:
    capture = Capture()
    messages: list[object] = []
    turns = []
    for number in range(200):
        messages.append(user(f"{number:04} {'x' * 100}"))
        turns.append(play(capture, list(messages), said(f"{number:04}")))
        messages.append(said(f"{number:04}"))
    sizes = [len(turn.messages) for turn in turns]
    assert max(sizes) == min(sizes)


def complete(capture: Capture, prompt: TextPrompt, reply: str | None = None) -> Turn:
    """Records one completion."""
    return play(capture, capture.messages_of(prompt), None if reply is None else said(reply))


def test_a_plain_prompt_that_continues_another_stores_only_the_new_part() -> None:
    capture = Capture()
    turns = [complete(capture, "Q: a\nA:", " b"), complete(capture, "Q: a\nA: b\nQ: c\nA:", " d")]
    turns.append(complete(capture, "Q: a\nA: b\nQ: other"))
    assert [turn.parent for turn in turns] == [None, 0, 0]
    assert orjson.loads(turns[1].messages) == [user("\nQ: c\nA:")]
    assert conversation(turns, 2) == [user("Q: a\nA:"), said(" b"), user("\nQ: other")]


def test_a_prompt_of_token_ids_stores_only_the_new_ids() -> None:
    capture = Capture()
    turns = [complete(capture, [1, 2, 3], "text"), complete(capture, [1, 2, 3, 4, 5], "text")]
    assert orjson.loads(turns[1].messages) == [user([4, 5])]
    assert conversation(turns, 1) == [user([1, 2, 3]), user([4, 5])]


text_call = st.tuples(st.text("ab", max_size=4), st.one_of(st.none(), st.text("ab", max_size=3)), st.booleans())


@given(st.lists(text_call, max_size=12))
def test_every_prompt_of_a_plain_completion_can_be_had_back(calls: list[tuple[str, str | None, bool]]) -> None:
    capture = Capture()
    turns: list[Turn] = []
    sent: list[str] = []
    so_far = ""
    for text, reply, goes_on in calls:
        prompt = so_far + text if goes_on else text
        sent.append(prompt)
        turns.append(complete(capture, prompt, reply))
        so_far = prompt + (reply or "")
    for turn, expected in zip(turns, sent, strict=True):
        assert "".join(str(message["content"]) for message in conversation(turns, turn.index)) == expected


def test_a_call_that_cannot_be_stored_leaves_no_trace() -> None:
    deep: object = "x"
    for _ in range(300):
        deep = [deep]
    capture = Capture()
    play(capture, [user("a")], said("b"))
    too_deep: list[list[object]] = [[user("a"), said("b"), user(deep)], [user(deep)]]
    for messages in too_deep:
        with pytest.raises((orjson.JSONEncodeError, RecursionError)):
            play(capture, messages)
    turn = play(capture, [user("a"), said("b"), user("c")])
    assert (turn.index, turn.parent, turn.shared_messages) == (1, 0, 2)


small = st.one_of(st.none(), st.booleans(), st.integers(0, 2), st.sampled_from(["", "a", "é\n"]))
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={"content": st.one_of(small, st.lists(st.fixed_dictionaries({"text": small}), max_size=2)), "name": small},
)
call = st.tuples(st.lists(message, max_size=5), st.one_of(st.none(), message), st.booleans())


@given(st.lists(call, max_size=12))
def test_every_conversation_can_be_had_back_from_the_turns(calls: list[tuple[list[Json], Json | None, bool]]) -> None:
    capture = Capture()
    turns: list[Turn] = []
    sent: list[list[Json]] = []
    for messages, reply, goes_on in calls:
        if goes_on and turns and turns[-1].reply:
            messages = [*sent[-1], *orjson.loads(turns[-1].reply), *messages]
        sent.append(messages)
        turns.append(play(capture, list(messages), reply))
    for turn, expected in zip(turns, sent, strict=True):
        assert bare(conversation(turns, turn.index)) == bare(expected)


def bare(value: object) -> object:
    """Returns the value without null keys."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if item is not None}
    return [bare(item) for item in value] if isinstance(value, list) else value


def test_a_stored_turn_takes_the_memory_of_its_text() -> None:
    capture = Capture()
    tracemalloc.start()
    try:
        calls = [capture.begin({}, [user(f"question {number}")]) for number in range(500)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(call.messages for call in calls)
    assert held < 500 * 2_000
