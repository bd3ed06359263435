"""The request parser without a socket: bytes in, requests out."""

from collections.abc import Mapping
from itertools import pairwise
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.http.exchange import Request
from heldout.http.request_parser import RequestParser, RequestRefused

TWO_REQUESTS = (
    b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Twice: 1\r\nContent-Length: 3\r\nx-twice: 2\r\n\r\nabc"
    b"POST /d HTTP/1.0\r\nContent-Length: 2\r\n\r\nef"
)


class Unconnected:
    """A channel for requests whose body is read only once it is complete."""

    async def read_body(self, request: Request, limit: int, seconds: float) -> NoReturn:
        raise AssertionError(f"the body of {request.path} is not complete")

    async def begin_stream(self, request: Request, status: int, headers: Mapping[str, str]) -> NoReturn:
        raise NotImplementedError

    async def send(self, data: bytes) -> NoReturn:
        raise NotImplementedError


@given(cuts=st.lists(st.integers(1, len(TWO_REQUESTS) - 1), unique=True))
def test_requests_are_the_same_however_the_network_cuts_them(cuts: list[int]) -> None:
    parser = RequestParser(Unconnected())
    for start, end in pairwise([0, *sorted(cuts), len(TWO_REQUESTS)]):
        parser.feed(TWO_REQUESTS[start:end])
    first, second = parser.arrived
    assert (first.method, first.path, first.query, first.version, first.size) == ("POST", "/a", "b=c", "1.1", 3)
    assert dict(first.headers) == {"host": "x", "x-twice": "1,2", "content-length": "3"}
    assert (second.path, second.version, second.is_complete, second.keeps_alive) == ("/d", "1.0", True, False)
    assert parser.arriving is None


async def test_a_body_in_pieces_is_read_as_one() -> None:
    parser = RequestParser(Unconnected())
    for piece in (b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\n", b"abc", b"def"):
        parser.feed(piece)
    assert await parser.arrived.popleft().read(limit=6, seconds=1) == b"abcdef"


def test_a_request_with_a_body_on_its_way_is_the_one_arriving() -> None:
    parser = RequestParser(Unconnected())
    parser.feed(b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc")
    assert parser.arriving is parser.arrived[0]
    assert (parser.arriving.size, parser.arriving.announced_bytes, parser.arriving.is_complete) == (3, 6, False)


@pytest.mark.parametrize(
    ("pieces", "status", "reason"),
    [
        ([b"nonsense\r\n\r\n"], 400, "Invalid"),
        ([b"GET / HTTP/1.1\r\nX: ", b"x" * 65537], 431, "the request's head is longer than 64 KiB"),
    ],
)
def test_invalid_request_bytes_are_refused_with_a_reason(pieces: list[bytes], status: int, reason: str) -> None:
    parser = RequestParser(Unconnected())
    *before, last = pieces
    for piece in before:
        parser.feed(piece)
    with pytest.raises(RequestRefused, match=reason) as refused:
        parser.feed(last)
    assert refused.value.status == status
