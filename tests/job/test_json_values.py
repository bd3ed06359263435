"""JSON from outside is stored as valid JSON, and reads back as what it was."""

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.job.json_values import clean_text, read_json, sent_json, stored_json

_NUMBERS = st.one_of(st.integers(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False))
_TEXTS = st.text(st.characters(codec="utf-8"))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@given(_VALUES)
def test_what_is_stored_reads_back_as_it_was(value: object) -> None:
    assert read_json(stored_json(value)) == value
    assert read_json(sent_json(value)) == value


@given(_VALUES)
def test_every_parser_of_json_and_arrow_take_what_is_stored(value: object) -> None:
    text = stored_json(value).decode()

    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)
    assert pa.array([text]).to_pylist() == [text]


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (b"1e400", b"1e999"),
        (b"-1e400", b"-1e999"),
        (b"-Infinity", b"-1e999"),
        (b'{"a": NaN}', b'{"a":"NaN"}'),
        (b"18446744073709551616", b"18446744073709551616"),
        (b"[-9223372036854775809, null]", b"[-9223372036854775809,null]"),
        (b'"half \\ud800"', '"half \N{REPLACEMENT CHARACTER}"'.encode()),
        (b'{"\\udc00": 1e400}', '{"\N{REPLACEMENT CHARACTER}":1e999}'.encode()),
    ],
)
def test_what_json_or_utf8_cannot_carry_has_a_form(text: bytes, stored: bytes) -> None:
    assert stored_json(read_json(text)) == stored
    assert stored_json(read_json(stored)) == stored


def test_what_passes_through_stays_as_it_was_sent() -> None:
    sent = b'[NaN,-Infinity,"\\ud800",18446744073709551616]'
    assert sent_json(read_json(sent)) == sent


@pytest.mark.parametrize("text", [b"", b"{", b"[1,]", b"nul", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_an_error(text: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_json(text)


def test_too_deep_a_value_is_an_error() -> None:
    value: object = math.inf
    for _ in range(300):
        value = [value]
    for encode in (stored_json, sent_json):
        with pytest.raises(TypeError):
            encode(value)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert clean_text("\ud83d\ude00 \udc00") == "\N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"
