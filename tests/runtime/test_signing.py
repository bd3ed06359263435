"""Signatures are verified as AWS does: tested against botocore's signer and the published token generator."""

import base64
import time
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from heldout.runtime.access import Access
from heldout.runtime.refusals import Refusal
from heldout.runtime.signing import Credentials, SignatureRefused, SignedRequest, verify_request, verify_token
from tests.support.runtime_support import published

REGION = "eu-central-1"
KEYS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI")
SESSION = Credentials("ASIAEXAMPLE", "another/secret", "a+session/token==")


class Provider:
    """The session from which the token generator reads its key pair."""

    def __init__(self, keys: Credentials) -> None:
        self._keys = keys

    def load(self) -> BotoCredentials:
        return boto(self._keys)


def boto(keys: Credentials) -> BotoCredentials:
    return BotoCredentials(keys.access_key, keys.secret_key, keys.session_token)


def token(keys: Credentials = KEYS, region: str = REGION, expiry: timedelta = timedelta(hours=12)) -> str:
    made: str = published("sagemaker.core.token_generator").generate_token(region, Provider(keys), expiry)
    return made


def signed(
    url: str, body: bytes, *, keys: Credentials = KEYS, region: str = REGION, service: str = "sagemaker"
) -> SignedRequest:
    headers = {"Content-Type": "application/json", "X-Amzn-Thing": "  two   spaces "}
    request = AWSRequest(method="POST", url=url, data=body, headers=headers)
    SigV4Auth(boto(keys), service, region).add_auth(request)
    parts = urlsplit(url)
    received = {name.lower(): value for name, value in request.headers.items()} | {"host": parts.netloc}
    return SignedRequest("POST", parts.path, parts.query, received, body)


def check(request: SignedRequest, *, now: float | None = None) -> None:
    verify_request(request, credentials=[KEYS, SESSION], region=REGION, now=time.time() if now is None else now)


def check_token(made: str, *, now: float | None = None) -> float:
    return verify_token(made, credentials=[KEYS, SESSION], region=REGION, now=time.time() if now is None else now)


@given(
    body=st.binary(max_size=50),
    path=st.sampled_from(["/sample", "/v1/chat/completions", "/a-b_c.d~e"]),
    query=st.sampled_from(["", "b=2&a=1", "a=2&a=1", "key"]),
    keys=st.sampled_from([KEYS, SESSION]),
)
def test_a_request_signed_by_botocore_is_accepted(body: bytes, path: str, query: str, keys: Credentials) -> None:
    check(signed(f"http://127.0.0.1:8080{path}{'?' if query else ''}{query}", body, keys=keys))


@pytest.mark.parametrize(
    "change",
    [
        lambda request: request._replace(body=b'{"Rewards": [1.0]}'),
        lambda request: request._replace(path="/complete-rollout"),
        lambda request: request._replace(query="a=1"),
        lambda request: request._replace(method="PUT"),
        lambda request: request._replace(headers=request.headers | {"host": "elsewhere"}),
        lambda request: request._replace(headers=request.headers | {"x-amzn-thing": "other"}),
    ],
    ids=["body", "path", "query", "method", "host", "header"],
)
def test_a_request_changed_after_signing_is_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(SignatureRefused, match="does not match"):
        check(change(signed("http://host/update-reward", b'{"Rewards": [0.0]}')))


def test_a_request_signed_with_another_secret_is_refused() -> None:
    with pytest.raises(SignatureRefused, match="does not match"):
        check(signed("http://host/sample", b"{}", keys=Credentials("AKIDEXAMPLE", "guessed")))


def test_a_key_pair_that_the_job_does_not_know_is_named() -> None:
    with pytest.raises(SignatureRefused, match="'AKIDOTHER' is not one that this job was started with"):
        check(signed("http://host/sample", b"{}", keys=Credentials("AKIDOTHER", "s")))


def test_a_session_token_is_part_of_the_key_pair() -> None:
    for token, told in ((None, "without a session token"), ("old", "with another session token")):
        with pytest.raises(SignatureRefused, match=f"'ASIAEXAMPLE' comes {told}; AWS_SESSION_TOKEN must be"):
            check(signed("http://host/sample", b"{}", keys=Credentials("ASIAEXAMPLE", "another/secret", token)))


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_request_signed_too_long_ago_or_ahead_is_refused(minutes: int) -> None:
    request = signed("http://host/sample", b"{}")
    check(request, now=time.time() + 10 * 60)
    with pytest.raises(SignatureRefused, match="more than 15 minutes"):
        check(request, now=time.time() + minutes * 60)


def test_another_region_or_service_is_named() -> None:
    with pytest.raises(SignatureRefused, match="region 'us-east-1'; the job is in 'eu-central-1'"):
        check(signed("http://host/sample", b"{}", region="us-east-1"))
    with pytest.raises(SignatureRefused, match="service 's3'"):
        check(signed("http://host/sample", b"{}", service="s3"))


def test_a_header_of_aws_that_was_added_after_signing_is_refused() -> None:
    request = signed("http://host/sample", b"{}")
    with pytest.raises(SignatureRefused, match="must cover the headers host and x-amz-date and x-amz-target"):
        check(request._replace(headers={**request.headers, "x-amz-target": "SageMaker.DeletePipeline"}))


def test_a_presigned_request_is_accepted_from_its_date_until_it_expires() -> None:
    request = presigned(60)
    for seconds in (-14 * 60, 0, 55):
        check(request, now=time.time() + seconds)
    for seconds in (-16 * 60, 61):
        with pytest.raises(SignatureRefused, match="is valid for 60 seconds"):
            check(request, now=time.time() + seconds)


def presigned(seconds: object) -> SignedRequest:
    request = AWSRequest(method="POST", url="http://host/sample")
    SigV4QueryAuth(boto(KEYS), "sagemaker", REGION, expires=seconds).add_auth(request)  # type: ignore[arg-type]  # as sent
    parts = urlsplit(str(request.prepare().url))
    return SignedRequest("POST", parts.path, parts.query, {"host": "host"}, b"")


@pytest.mark.parametrize("seconds", ["604801", "9" * 5_000, "\u0663", "-1", "0", ""])
def test_a_presigned_request_lives_a_week_at_most(seconds: str) -> None:
    with pytest.raises(SignatureRefused, match=r"is valid for|must cover the headers"):
        check(presigned(seconds))


def test_a_body_hash_that_is_not_the_body_is_refused() -> None:
    request = signed("http://host/sample", b"{}")
    with pytest.raises(SignatureRefused, match="not the hash of the body"):
        check(request._replace(headers={**request.headers, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}))


@pytest.mark.parametrize(
    "header", ["AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a/b, Signature=c", "AWS4-HMAC-SHA256 ,,=,"]
)
def test_a_mangled_authorization_header_is_refused(header: str) -> None:
    request = signed("http://host/sample", b"{}")
    with pytest.raises(SignatureRefused, match="the Authorization header has no"):
        check(request._replace(headers={**request.headers, "authorization": header}))


@pytest.mark.parametrize("keys", [KEYS, SESSION])
def test_a_token_of_the_published_generator_is_accepted_until_it_expires(keys: Credentials) -> None:
    made = token(keys, expiry=timedelta(minutes=5))
    expires_at = check_token(made)
    assert 290 < expires_at - time.time() <= 300
    with pytest.raises(SignatureRefused, match=r"has expired; make a new one"):
        check_token(made, now=expires_at)


def test_a_token_that_was_verified_before_is_refused_once_it_has_expired() -> None:
    now = time.time()
    access = Access(job_arn="arn", region=REGION, credentials=[KEYS], clock=lambda: now)
    bearer = f"Bearer {token(expiry=timedelta(minutes=5))}"
    access.check_bearer(bearer)
    now += 5 * 60 + 1
    with pytest.raises(Refusal, match="has expired"):
        access.check_bearer(bearer)


def test_only_the_latest_of_the_verified_tokens_are_remembered() -> None:
    access = Access(job_arn="arn", region=REGION, credentials=[KEYS], tokens_kept=2)
    made = [token(expiry=timedelta(minutes=minutes)) for minutes in (1, 2, 3)]
    for one in made:
        access.check_bearer(f"Bearer {one}")
    assert access.remembered_tokens == tuple(made[1:])


def test_a_token_is_not_valid_before_its_time() -> None:
    with pytest.raises(SignatureRefused, match="not valid before"):
        check_token(token(), now=time.time() - 3600)


def test_a_token_made_with_another_key_pair_or_for_another_region_is_refused() -> None:
    with pytest.raises(SignatureRefused, match="does not match"):
        check_token(token(Credentials("AKIDEXAMPLE", "guessed")))
    with pytest.raises(SignatureRefused, match="is not one that this job was started with"):
        check_token(token(Credentials("AKIDOTHER", "s")))
    with pytest.raises(SignatureRefused, match="region 'us-west-2'"):
        check_token(token(region="us-west-2"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X-Amz-Expires=43200", "X-Amz-Expires=43199"),
        ("Action=CallWithBearerToken", "Action=CallWithBearerToken&More=1"),
    ],
)
def test_a_token_with_changed_contents_is_refused(old: str, new: str) -> None:
    url = base64.b64decode(token().removeprefix("sagemaker-api-key-")).decode()
    assert old in url
    with pytest.raises(SignatureRefused, match="does not match"):
        check_token("sagemaker-api-key-" + base64.b64encode(url.replace(old, new).encode()).decode())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "elsewhere.com/?Action=CallWithBearerToken",
        "sagemaker.amazonaws.com/?Action=DeleteEverything",
        "sagemaker.amazonaws.com/?Action=CallWithBearerToken&X-Amz-Algorithm=AWS4-HMAC-SHA256",
        "sagemaker.amazonaws.com/?Action=CallWithBearerToken&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        f"&X-Amz-Credential=AKIDEXAMPLE/20260101/{REGION}/sagemaker/aws4_request&X-Amz-Date=20260101&X-Amz-Expires=60",
        "sagemaker.amazonaws.com/?Action=CallWithBearerToken&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        f"&X-Amz-Credential=AKIDEXAMPLE/20260101/{REGION}/sagemaker/aws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=-1",
    ],
)
def test_an_invalid_presigned_token_is_refused(url: str) -> None:
    with pytest.raises(SignatureRefused):
        check_token("sagemaker-api-key-" + base64.b64encode(url.encode()).decode())


@given(st.text(st.characters(max_codepoint=300), max_size=30))
def test_no_text_at_all_breaks_the_check(text: str) -> None:
    with pytest.raises(SignatureRefused):
        check_token("sagemaker-api-key-" + text)


def test_secrets_do_not_show() -> None:
    assert repr(SESSION) == "Credentials(access_key='ASIAEXAMPLE')"
