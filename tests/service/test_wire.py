"""The AWS protocols with botocore as the client: parsing, rendering, authentication, validation and paging."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from botocore.exceptions import ClientError
from botocore.model import OperationModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.errors import InputError
from heldout.runtime.signing import Credentials, SignedRequest
from heldout.service.application import OPERATION_TABLES
from heldout.service.wire.authentication import Authenticator
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.operations import service_model
from heldout.service.wire.paging import paged
from heldout.service.wire.protocols import parse_request, render_reply
from tests.support.live_service import KEYS, REGION, Served, client, served
from tests.support.s3_service import forget_aws

CATEGORY = "AgentRFTEvaluation"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("state")) as running:
        yield running


def refused(call: Any, **params: Any) -> tuple[str, int, str]:
    """Code, HTTP status and message of the error that a call raises."""
    with pytest.raises(ClientError) as caught:
        call(**params)
    reply: Any = caught.value.response
    return reply["Error"]["Code"], reply["ResponseMetadata"]["HTTPStatusCode"], reply["Error"]["Message"]


def operations() -> list[OperationModel]:
    return [service_model(room.service).operation_model(name) for room in OPERATION_TABLES for name in room.functions]


def values(shape: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any value of a shape, as botocore's clients take it; structures have at least one member."""
    words = st.text("abcXYZ019", min_size=1, max_size=8)
    match shape.type_name:
        case "structure":
            members = {name: values(member, depth + 1) for name, member in shape.members.items() if depth < 4}
            return _some(members, 1 if shape.is_tagged_union else 5) if members else st.just({})
        case "list":
            return st.lists(values(shape.member, depth + 1), min_size=1, max_size=2)
        case "map":
            return st.dictionaries(words, values(shape.value, depth + 1), min_size=1, max_size=2)
        case "timestamp":
            return st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(
                lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
            )
        case "integer" | "long":
            return st.integers(200, 299)
        case "float" | "double":
            return st.floats(0, 1)
        case "boolean":
            return st.booleans()
        case "blob":
            return st.binary(min_size=1, max_size=8)
        case _:
            return st.sampled_from(shape.enum) if shape.enum else words


def _some(members: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[Any]:
    return st.sets(st.sampled_from(sorted(members)), min_size=1, max_size=most).flatmap(
        lambda names: st.fixed_dictionaries({name: members[name] for name in sorted(names)})
    )


def is_empty(value: Any) -> bool:
    """Whether a value leaves nothing on the wire: nested structures and lists without a scalar."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is not None and all(is_empty(inner) for inner in inside)


def without_empty(value: Any) -> Any:
    match value:
        case dict():
            return {name: without_empty(inner) for name, inner in value.items() if not is_empty(inner)}
        case list():
            return [without_empty(inner) for inner in value if not is_empty(inner)]
        case _:
            return value


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_request_is_parsed_to_the_parameters_that_botocore_serialized(
    operation: OperationModel, data: st.DataObject
) -> None:
    shape: Any = operation.input_shape
    params = {} if shape is None else without_empty(data.draw(values(shape)))
    path_labels = {n for n, m in shape.members.items() if m.serialization.get("location") == "uri"} if shape else set()
    params |= dict.fromkeys(path_labels - params.keys(), "label")
    protocol = operation.service_model.metadata["protocol"]
    sent: Any = create_serializer(protocol, include_validation=False).serialize_to_request(params, operation)
    request = AWSRequest(
        method=sent["method"],
        url=f"http://host{sent['url_path']}",
        params=sent["query_string"] or None,
        data=sent["body"],
        headers=sent["headers"],
    ).prepare()
    parts = urlsplit(str(request.url))
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    raw: Any = request.body
    body = raw.encode() if isinstance(raw, str) else raw or b""
    received = parse_request(operation, SignedRequest(str(request.method), parts.path, parts.query, headers, body))
    payload = shape and shape.serialization.get("payload")
    if payload and payload not in params:
        received.pop(payload, None)  # a missing body and an empty one are equal
    assert received == params


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_reply_is_parsed_by_botocore_to_the_same_values(operation: OperationModel, data: st.DataObject) -> None:
    shape: Any = operation.output_shape
    reply = {} if shape is None else without_empty(data.draw(values(shape)))
    rendered = render_reply(operation, reply)
    if shape and (payload := shape.serialization.get("payload")):
        assert rendered.body == reply.get(payload, b"")
        return
    assert isinstance(rendered.body, bytes)
    headers = {name.lower(): value for name, value in rendered.headers.items()}
    parser: Any = create_parser(operation.service_model.metadata["protocol"])
    read = parser.parse({"status_code": rendered.status, "headers": headers, "body": rendered.body}, shape)
    read.pop("ResponseMetadata")
    assert without_empty(read) == reply


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_a_request_that_is_not_signed_is_refused(service: Served) -> None:
    headers = {"X-Amz-Target": "SageMaker.ListPipelines", "Content-Type": "application/x-amz-json-1.1"}
    request = urllib.request.Request(service.url, b"{}", headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as reply:
        assert reply.code == 403
        assert json.loads(reply.read())["__type"] == "MissingAuthenticationTokenException"


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (Credentials("AKIDOTHER", KEYS.secret_key), "UnrecognizedClientException"),
        (Credentials(KEYS.access_key, "another/secret"), "InvalidSignatureException"),
        (Credentials(KEYS.access_key, KEYS.secret_key, "a-session"), "UnrecognizedClientException"),
    ],
)
def test_a_wrong_key_pair_is_refused_as_aws_refuses_it(service: Served, keys: Credentials, code: str) -> None:
    assert refused(service.client("sagemaker", keys).list_pipelines)[:2] == (code, 403)


def test_the_query_protocol_has_its_own_error_codes(service: Served) -> None:
    wrong = Credentials(KEYS.access_key, "another/secret")
    assert refused(service.client("sts", wrong).get_caller_identity)[:2] == ("SignatureDoesNotMatch", 403)
    other = Credentials("AKIDOTHER", "secret")
    assert refused(service.client("sts", other).get_caller_identity)[:2] == ("InvalidClientTokenId", 403)


def test_a_signature_for_another_region_is_refused_with_both_regions_named(service: Served) -> None:
    code, status, message = refused(service.client("sagemaker", region="eu-west-1").list_pipelines)
    assert (code, status) == ("InvalidSignatureException", 403)
    assert "'eu-west-1'" in message
    assert repr(REGION) in message


def test_a_body_changed_after_signing_is_refused(service: Served) -> None:
    request = AWSRequest("POST", service.url, data=b"{}", headers={"X-Amz-Target": "SageMaker.ListPipelines"})
    SigV4Auth(BotoCredentials(KEYS.access_key, KEYS.secret_key), "sagemaker", REGION).add_auth(request)
    headers = {name: _text(value) for name, value in request.headers.items()}
    changed = urllib.request.Request(service.url, b'{"MaxResults": 1}', headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(changed)
    with caught.value as reply:
        assert json.loads(reply.read())["__type"] == "InvalidSignatureException"


def test_a_signature_for_one_service_is_refused_by_another(service: Served) -> None:
    request = AWSRequest("POST", service.url, data=b"{}", headers={"X-Amz-Target": "SageMaker.ListPipelines"})
    SigV4Auth(BotoCredentials(KEYS.access_key, KEYS.secret_key), "sts", REGION).add_auth(request)
    headers = {name: _text(value) for name, value in request.headers.items()}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(service.url, b"{}", headers))
    with caught.value as reply:
        refusal = json.loads(reply.read())
    assert refusal["__type"] == "InvalidSignatureException"
    assert refusal["message"] == "Credential should be scoped to correct service: 'sagemaker'."


def test_a_presigned_request_is_admitted_unless_it_was_changed(service: Served) -> None:
    url = service.client("sts").generate_presigned_url("get_caller_identity", ExpiresIn=60)
    with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as reply:
        assert b"<Account>000000000000</Account>" in reply.read()
    longer = url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(longer, method="POST")).close()


@pytest.mark.parametrize(("signer", "seconds"), [(SigV4Auth, 900), (SigV4QueryAuth, 3600)])
def test_a_signature_expires(signer: Any, seconds: int) -> None:
    made = AWSRequest("POST", "http://host/?Action=GetCallerIdentity&Version=2011-06-15")
    signer(BotoCredentials(KEYS.access_key, KEYS.secret_key), "sts", REGION).add_auth(made)
    parts = urlsplit(str(made.prepare().url))
    headers = {name.lower(): _text(value) for name, value in made.headers.items()} | {"host": "host"}
    request = SignedRequest("POST", parts.path, parts.query, headers, b"")
    authenticator, now = Authenticator(lambda: [KEYS], REGION), time.time()
    assert authenticator.admit(request, now + seconds - 10, is_query=True).access_key == KEYS.access_key
    with pytest.raises(ServiceError, match=r"15 minutes away|is valid for 3600 seconds"):
        authenticator.admit(request, now + seconds + 10, is_query=True)


WRITTEN = (
    "/",
    "/p",
    "//",
    "/a//b",
    "/a/./b/",
    "/a/../b",
    "/..",
    "/a%20b",
    "/a%2Fb",
    "/%C3%A9",
    "/a:b",
    "/a+b",
    "/a~b*",
)
ASKED: tuple[dict[str, Any] | str, ...] = (
    *(
        {"a b": "c d"},
        {"é": "ü🎉"},
        {"a": "1+1"},
        {"a": "", "b": ""},
        {"a": "x/y:z~*'()!"},
        {"b": 1, "a": 2, "A": 3, "a0": 4},
    ),
    *("", "a=1&a=2", "a=2&a=1", "a", "a&b=", "a=b=c", "x=%7e", "x=%2f", "x=a:b", "x=a+b", "a-b=1&a=2", "a%20b=1&a=1"),
)


@pytest.mark.parametrize("signer", [SigV4Auth, SigV4QueryAuth])
def test_a_signature_covers_path_and_query_in_every_spelling(signer: Any) -> None:
    authenticator = Authenticator(lambda: [KEYS], REGION)
    for path, asked in [(path, "a=1") for path in WRITTEN] + [("/p", asked) for asked in ASKED]:
        url, params = (f"http://host{path}?{asked}", None) if isinstance(asked, str) else (f"http://host{path}", asked)
        made = AWSRequest("GET", url, params=params)
        signer(BotoCredentials(KEYS.access_key, KEYS.secret_key), "lambda", REGION).add_auth(made)
        parts = urlsplit(str(made.prepare().url))
        headers = {name.lower(): _text(value) for name, value in made.headers.items()} | {"host": "host"}
        request = SignedRequest("GET", parts.path, parts.query, headers, b"")
        assert authenticator.admit(request, time.time(), is_query=False).service == "lambda", (path, asked)
        for other in (request._replace(path=f"{parts.path}x"), request._replace(query=f"{parts.query}&more=1")):
            with pytest.raises(ServiceError, match="the signature does not match the request"):
                authenticator.admit(other, time.time(), is_query=False)


@pytest.mark.parametrize("kind", ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "0" * 64])
def test_a_body_that_the_signature_does_not_cover_is_refused(service: Served, kind: str) -> None:
    headers = {"X-Amz-Target": "SageMaker.ListPipelines", "X-Amz-Content-SHA256": kind}
    request = AWSRequest("POST", service.url, data=b"{}", headers=headers)
    SigV4Auth(BotoCredentials(KEYS.access_key, KEYS.secret_key), "sagemaker", REGION).add_auth(request)
    reply = requests.post(service.url, b"{}", headers={k: _text(v) for k, v in request.headers.items()})
    assert (reply.status_code, reply.json()["__type"]) == (403, "InvalidSignatureException")
    assert "x-amz-content-sha256 is not the hash of the body" in reply.json()["message"]


def test_without_verification_every_local_program_is_admitted(tmp_path: Any) -> None:
    with served(tmp_path, has_auth=False) as running:
        assert (
            running.client("sagemaker", Credentials("anyone", "anything")).list_pipelines()["PipelineSummaries"] == []
        )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8765"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "rebound.example:8765"}, 403),
        ({"Host": "127.0.0.1.rebound.example"}, 403),
        ({"Origin": "http://page.example"}, 403),
    ],
)
def test_without_verification_web_pages_are_refused(tmp_path: Any, headers: dict[str, str], status: int) -> None:
    target = {"X-Amz-Target": "SageMaker.ListPipelines", "Content-Type": "application/x-amz-json-1.1"}
    with served(tmp_path, has_auth=False) as running:
        reply = requests.post(running.url, b"{}", headers=target | headers)
    assert reply.status_code == status
    assert ("no web pages" in reply.text) == (status == 403)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "127.0.0.1.example", "localhost.example"])
def test_verification_can_be_disabled_on_loopback_addresses_only(tmp_path: Any, host: str) -> None:
    expected = re.escape(f"--no-auth would admit everyone who can reach {host!r}")
    with pytest.raises(InputError, match=expected), served(tmp_path, has_auth=False, host=host):
        pass


def test_an_address_that_is_not_this_machines_is_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"cannot listen at 203\.0\.113\.1:0"), served(tmp_path, host="203.0.113.1"):
        pass


def test_signatures_cannot_be_verified_without_a_key_pair(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    with pytest.raises(InputError, match="no AWS key pair to verify requests with"), served(tmp_path, keys=()):
        pass


def test_an_unknown_profile_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match=r"no AWS key pair .*\(nobody\) could not be found"), served(tmp_path, keys=()):
        pass


def test_a_second_server_does_not_share_the_first_ones_state(service: Served) -> None:
    with pytest.raises(InputError, match="another server uses the state folder"), served(service.context.state):
        pass


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "Value null at 'jobCategory' failed to satisfy constraint: Member must not be null"),
        (
            {"JobCategory": "Other"},
            "Value 'Other' at 'jobCategory' failed to satisfy constraint: Member must satisfy enum",
        ),
        (
            {"JobCategory": CATEGORY, "MaxResults": 101},
            "Value 101 at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 100",
        ),
        (
            {"JobCategory": CATEGORY, "NameContains": "a_b"},
            "Value 'a_b' at 'nameContains' failed to satisfy constraint: Member must satisfy regular expression pattern: "
            "[a-zA-Z0-9\\-]+",
        ),
        (
            {"JobCategory": CATEGORY, "NameContains": "a" * 64},
            "at 'nameContains' failed to satisfy constraint: Member must have length less than or equal to 63",
        ),
        ({"MaxResults": 0}, "2 validation errors detected"),
        ({"JobCategory": CATEGORY, "NextToken": "bm9uZQ=="}, "NextToken was not returned by this operation"),
    ],
)
def test_parameters_that_break_the_model_are_a_validation_exception(
    service: Served, params: dict[str, Any], expected: str
) -> None:
    code, status, message = refused(service.client("sagemaker").list_jobs, **params)
    assert (code, status) == ("ValidationException", 400)
    assert expected in message


def test_constraints_hold_at_every_depth(service: Served) -> None:
    tags = [{"Key": "fine", "Value": "é ü"}, {"Key": "", "Value": "#"}]
    arn = "arn:aws:sagemaker:us-west-2:000000000000:pipeline/p"
    message = refused(service.client("sagemaker").add_tags, ResourceArn=arn, Tags=tags)[2]
    assert "2 validation errors detected" in message
    assert "Value '' at 'tags.2.member.key'" in message
    assert "Value '#' at 'tags.2.member.value'" in message


def test_a_value_of_another_type_is_a_serialization_exception(service: Served) -> None:
    params = {"JobCategory": CATEGORY, "MaxResults": "ten"}
    code, status, message = refused(service.client("sagemaker").list_jobs, **params)
    assert (code, status) == ("SerializationException", 400)
    assert message == "MaxResults is 'ten'; expected a value of type integer"


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"1", b"[" * 10_000, b'{"NextToken": "\xff"}', b'{"NextToken": "\\ud800"}', b'{"MaxResults": NaN}'],
)
def test_a_body_that_cannot_be_read_is_a_serialization_exception(body: bytes) -> None:
    listing = service_model("sagemaker").operation_model("ListPipelines")
    with pytest.raises(ServiceError) as caught:
        parse_request(listing, SignedRequest("POST", "/", "", {}, body))
    assert caught.value.code == "SerializationException"


def test_an_unsupported_operation_is_unknown(service: Served) -> None:
    assert refused(service.client("sagemaker").list_models)[:2] == ("UnknownOperationException", 404)


def test_an_ipv6_address_can_be_served_at(tmp_path: Any) -> None:
    with served(tmp_path, host="::1") as running:
        assert running.url.startswith("http://[::1]:")
        assert client(running.url, "sagemaker").list_pipelines()["PipelineSummaries"] == []


def items(names: list[int]) -> list[dict[str, Any]]:
    """Two of three items have the same time."""
    return [{"Name": f"n{name:04}", "At": datetime.fromtimestamp(name // 3, UTC)} for name in names]


def pages(names: list[int], params: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    token: dict[str, str] = {}
    while True:
        reply = paged("Items", items(names), params | token, {"Time": "At", "Name": "Name"})
        yield reply["Items"]
        if "NextToken" not in reply:
            return
        token = {"NextToken": reply["NextToken"]}


@settings(deadline=None)
@given(
    names=st.sets(st.integers(0, 999), max_size=40),
    size=st.integers(1, 12),
    order=st.sampled_from(["Ascending", "Descending"]),
    by=st.sampled_from(["Time", "Name"]),
)
def test_pages_have_every_item_once_and_in_order(names: set[int], size: int, order: str, by: str) -> None:
    found = list(pages(sorted(names), {"MaxResults": size, "SortOrder": order, "SortBy": by}))
    assert [int(item["Name"][1:]) for page in found for item in page] == sorted(names, reverse=order == "Descending")
    assert all(len(page) == size for page in found[:-1])


def test_changes_between_two_pages_neither_repeat_nor_hide_an_item() -> None:
    params = {"MaxResults": 2}
    first = paged("Items", items([1, 2, 3, 4]), params, {"Name": "Name"})
    then = paged("Items", items([0, 1, 3, 4, 5]), params | {"NextToken": first["NextToken"]}, {"Name": "Name"})
    assert [item["Name"] for item in then["Items"]] == ["n0003", "n0004"]


def test_a_token_of_another_list_is_refused() -> None:
    token = paged("Items", items([1, 2]), {"MaxResults": 1}, {"Name": "Name"})["NextToken"]
    with pytest.raises(ServiceError, match="NextToken was returned for other parameters"):
        paged("Items", items([1, 2]), {"SortOrder": "Descending", "NextToken": token}, {"Name": "Name"})
