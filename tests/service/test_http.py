"""Malformed and hostile HTTP requests: the server refuses them like a service, with at most one log line."""

import gzip
import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

from tests.support.live_service import Served, served
from tests.support.service_jobs import until

LISTING = {"X-Amz-Target": "SageMaker.ListPipelines", "Content-Type": "application/x-amz-json-1.1"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("state"), has_auth=False) as running:
        yield running


def request(headers: dict[str, str], body: bytes = b"{}", line: str = "POST / HTTP/1.1") -> bytes:
    """A request as it goes over the wire; the connection is closed after it, unless the headers say otherwise."""
    given = {"Host": "localhost", "Content-Length": str(len(body)), "Connection": "close"} | headers
    lines = [line, *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def connected(service: Served) -> socket.socket:
    parts = urlsplit(service.url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def answer(service: Served, sent: bytes) -> tuple[int, bytes]:
    """Status and everything after it."""
    with connected(service) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, rest = received.partition(b"\r\n")
    return int(status.split()[1]), rest


@pytest.mark.parametrize(
    "sent",
    [
        request(LISTING | {"Accept": "\x19"}),
        request(LISTING | {"Host": ""}),
        b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        request({"Transfer-Encoding": "chunked"}, b"zz\r\n"),
        request({"X-Long": "a" * 10_000}),
    ],
)
def test_malformed_http_is_refused_with_at_most_one_log_line(
    service: Served, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert answer(service, sent)[0] in (400, 403)
    assert len(caplog.text.splitlines()) <= 1


def test_a_connection_reset_during_a_request_is_not_logged(service: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            with connected(service) as connection:
                # Closed by a reset, as by a process that is killed.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(request(LISTING | {"Content-Length": "100"}, b"{"))
        assert answer(service, request(LISTING))[0] == 200
    assert caplog.text == ""


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_operations_named_by_a_target_header_need_post(service: Served, method: str) -> None:
    assert answer(service, request(LISTING, line=f"{method} / HTTP/1.1"))[0] == 404


def test_a_compressed_body_is_refused_without_decompressing_it(service: Served) -> None:
    """Signatures cover the body as sent, and a few compressed bytes may expand to very many."""
    headers = LISTING | {"Content-Encoding": "gzip"}
    assert answer(service, request(headers))[0] == 200  # an empty body
    status, rest = answer(service, request(headers, gzip.compress(b"{}")))
    assert (status, b"SerializationException" in rest) == (400, True)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null"])
def test_a_body_that_is_not_an_object_is_refused_in_every_protocol(service: Served, body: bytes) -> None:
    for sent in (request(LISTING, body), request({}, body, "POST /runtimes/ HTTP/1.1")):
        status, rest = answer(service, sent)
        assert (status, b"SerializationException" in rest) == (400, True)


def test_a_job_header_with_invalid_text_names_no_job(service: Served) -> None:
    sent = request({"X-Amzn-SageMaker-Job-Arn": "\xff"}, line="POST /v1/chat/completions HTTP/1.1")
    status, rest = answer(service, sent)
    assert (status, b"there is no job" in rest) == (404, True)


def test_a_path_with_control_characters_is_routed_to_its_operation(service: Served) -> None:
    status, rest = answer(service, request({}, line="POST /2015-03-31/functions/a%0Ab/invocations HTTP/1.1"))
    assert (status, b"failed to satisfy constraint" in rest) == (400, True)


def test_an_xml_error_is_valid_xml_whatever_the_request_held(service: Served) -> None:
    form = b"Action=GetRole&Version=2010-05-08&RoleName=a%00%1F%EF%BF%BE%3C%C3%A9"
    status, rest = answer(service, request({"Content-Type": "application/x-www-form-urlencoded"}, form))
    assert status == 400
    message = ElementTree.fromstring(rest.partition(b"\r\n\r\n")[2]).findtext("Error/Message")
    assert message is not None
    assert "Value 'a���<é' at 'roleName' failed to satisfy constraint" in message


def test_chunked_bodies_http_1_0_and_expect_continue_are_supported(service: Served) -> None:
    chunked = request(LISTING | {"Transfer-Encoding": "chunked"}, b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")
    assert answer(service, chunked.replace(b"Content-Length: 17\r\n", b""))[0] == 200
    assert answer(service, request(LISTING, line="POST / HTTP/1.0"))[0] == 200
    status, rest = answer(service, request(LISTING | {"Expect": "100-continue"}))
    assert (status, b"200 OK" in rest) == (100, True)


def test_pipelined_requests_are_answered_in_order(service: Served) -> None:
    kept = request(LISTING | {"Connection": "keep-alive"})
    unknown = request(LISTING | {"X-Amz-Target": "SageMaker.Nothing", "Connection": "keep-alive"})
    status, rest = answer(service, (kept + unknown) * 20 + request(LISTING))
    statuses = [status, *(int(part[1:4]) for part in rest.split(b"HTTP/1.1")[1:])]
    assert statuses == [200, 404] * 20 + [200]


def test_unfinished_requests_block_no_other_client_and_leak_no_descriptor(service: Served) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    slow = [connected(service) for _ in range(50)]
    for connection in slow:
        connection.sendall(request(LISTING)[:-1])
    assert answer(service, request(LISTING))[0] == 200
    for connection in slow:
        connection.close()
    until(num_open, lambda found: found <= before + 2)
