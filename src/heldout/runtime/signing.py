"""Verifies AWS Signature Version 4 of requests (header or presigned query) and of SageMaker's bearer tokens.

Pure functions: the time is an argument. Source: "AWS Signature Version 4 for API requests" (IAM user guide); for tokens, the
published package sagemaker-core 2.27 (`sagemaker.core.token_generator`). Both are tested against botocore's own signer.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote_plus

ALGORITHM = "AWS4-HMAC-SHA256"
TOKEN_PREFIX = "sagemaker-api-key-"

_SERVICE = "sagemaker"
_S3 = "s3"
_UNSIGNED = "UNSIGNED-PAYLOAD"
"""S3 alone accepts this in place of a body's hash. Its presigned requests always have it."""
_TOKEN_HOST = "sagemaker.amazonaws.com"
_TOKEN_ACTION = "CallWithBearerToken"
_TOKEN_SECONDS = 43_200
"""Longest life of a token, as in the published generator."""
_PRESIGNED_SECONDS = 604_800
"""Longest life of a presigned request: a week."""
_SKEW_SECONDS = 900
"""Largest difference between the agent's clock and this machine's."""
_EMPTY_HASH = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """An AWS key pair. Only the access key shows in `repr`."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class SignatureRefused(Exception):
    """A signature is invalid. The message is one line without secrets."""


class SignatureIncomplete(SignatureRefused):
    """A part of the signature is missing or malformed."""


class KeyUnknown(SignatureRefused):
    """The signature's key pair is not one of the allowed ones."""


class SignedRequest(NamedTuple):
    """The parts of a request that a signature covers, as received."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Scope(NamedTuple):
    """The access key, date, region and service that a signature names."""

    access_key: str
    date: str
    """Such as 20260131."""
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def is_signed(request: SignedRequest) -> bool:
    """Whether a request has a signature, in a header or in its query."""
    return request.headers.get("authorization", "").startswith(ALGORITHM) or _is_presigned(request)


def signed_scope(request: SignedRequest) -> Scope:
    """Returns the scope that a request's signature names, without verifying it. Raises SignatureIncomplete."""
    return _scope(_claim(request))


def verify_request(
    request: SignedRequest,
    *,
    credentials: Sequence[Credentials],
    region: str,
    now: float,
    service: str = _SERVICE,
    what: str = "job",
) -> None:
    """Verifies the signature of a request and its body: in the `Authorization` header, or else in the query.

    credentials: key pairs that may sign. region, service: the required ones. now: Unix time, seconds. what: the name of the
    protected thing in messages. Raises SignatureRefused if a part is missing, the key pair is not allowed, the region or
    service differs, the signature does not cover the host, the date, the body and every `x-amz-` header, its date is more
    than 15 minutes from `now`, or a presigned request has expired.
    """
    claim = _claim(request)
    scope = _checked_scope(claim, region, service, what)
    signer = _signer(credentials, scope.access_key, claim.session_token, what)
    _check_date(claim, now)
    body_hash = hashlib.sha256(request.body).hexdigest()
    if service == _S3 and request.headers.get("x-amz-content-sha256", _UNSIGNED if claim.expires else "") == _UNSIGNED:
        body_hash = _UNSIGNED
    elif request.headers.get("x-amz-content-sha256", body_hash) != body_hash:
        raise SignatureRefused("the header x-amz-content-sha256 is not the hash of the body")
    names = claim.signed_headers.split(";")
    needed = {"host"} if claim.expires else {"host", "x-amz-date"}
    # An uncovered header could turn a signature for one operation into a request for another.
    needed |= {name for name in request.headers if name.startswith("x-amz-")}
    if not needed <= set(names):
        raise SignatureRefused(
            f"the signature must cover the headers {' and '.join(sorted(needed))}, not only {claim.signed_headers!r}"
        )
    query = "&".join(part for part in request.query.split("&") if not part.startswith("X-Amz-Signature="))
    rest = (
        *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in names),
        "",
        claim.signed_headers,
        body_hash,
    )
    # Clients send other spellings than they sign: a space as `+`, or a path with redundant parts. Each spelling is tried.
    canonicals = [
        "\n".join((request.method, quote(path, safe="/~"), _canonical_query(text), *rest))
        for path in dict.fromkeys((request.path, _normalized(request.path)))
        for text in dict.fromkeys((query, _encoded_anew(query)))
    ]
    _compare(signer, scope, claim.signed_at, canonicals, claim.signature)


def verify_token(token: str, *, credentials: Sequence[Credentials], region: str, now: float) -> float:
    """Verifies a bearer token: `sagemaker-api-key-` and the base64 of a presigned URL without its scheme.

    credentials, region, now: as for `verify_request`. Returns the Unix time at which the token expires, in seconds.
    Raises SignatureRefused if it is malformed, expired, for another region, or made with another key pair.
    """
    query = _token_query(token)
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    if parameters.get("Action") != _TOKEN_ACTION or parameters.get("X-Amz-Algorithm") != ALGORITHM:
        raise SignatureRefused(f"the bearer token is not a presigned {_TOKEN_ACTION} request")
    signed_at = parameters.get("X-Amz-Date", "")
    scope = _checked_scope(_query_claim(parameters), region, _SERVICE, "job")
    signer = _signer(credentials, scope.access_key, parameters.get("X-Amz-Security-Token"), "job")
    expires_at = _token_expiry(signed_at, parameters.get("X-Amz-Expires", ""), now)
    # The generator appends the version after signing, so the signature covers neither the version nor itself.
    covered = [pair for pair in query.split("&") if not pair.startswith(("X-Amz-Signature=", "Version="))]
    canonical = "\n".join(
        ("POST", "/", _canonical_query("&".join(covered)), f"host:{_TOKEN_HOST}", "", "host", _EMPTY_HASH)
    )
    _compare(signer, scope, signed_at, [canonical], parameters.get("X-Amz-Signature", ""))
    return expires_at


class _Claim(NamedTuple):
    """The parts of a signature, as received."""

    credential: str
    signed_headers: str
    signature: str
    signed_at: str
    session_token: str | None
    expires: str
    """Lifetime of a presigned request in seconds; empty for one signed in its header."""


def _is_presigned(request: SignedRequest) -> bool:
    return f"X-Amz-Algorithm={ALGORITHM}" in request.query.split("&")


def _claim(request: SignedRequest) -> _Claim:
    if _is_presigned(request):
        return _query_claim(dict(parse_qsl(request.query, keep_blank_values=True)))
    header = request.headers.get("authorization", "")
    fields = dict(part.strip().partition("=")[::2] for part in header.removeprefix(ALGORITHM).split(","))
    try:
        return _Claim(
            fields["Credential"],
            fields["SignedHeaders"],
            fields["Signature"],
            request.headers.get("x-amz-date", ""),
            request.headers.get("x-amz-security-token"),
            "",
        )
    except KeyError as missing:
        raise SignatureIncomplete(f"the Authorization header has no {missing.args[0]}") from None


def _query_claim(parameters: Mapping[str, str]) -> _Claim:
    return _Claim(
        parameters.get("X-Amz-Credential", ""),
        parameters.get("X-Amz-SignedHeaders", ""),
        parameters.get("X-Amz-Signature", ""),
        parameters.get("X-Amz-Date", ""),
        parameters.get("X-Amz-Security-Token"),
        parameters.get("X-Amz-Expires", "0"),
    )


def _scope(claim: _Claim) -> Scope:
    match claim.credential.split("/"):
        case [access_key, date, region, service, "aws4_request"]:
            return Scope(access_key, date, region, service)
        case _:
            raise SignatureIncomplete("the signature's credential is not KEY/DATE/REGION/SERVICE/aws4_request")


def _checked_scope(claim: _Claim, region: str, service: str, what: str) -> Scope:
    scope = _scope(claim)
    if scope.service != service:
        raise SignatureRefused(f"the signature is for the service {scope.service!r}, expected {service!r}")
    if scope.region != region:
        raise SignatureRefused(f"the signature is for the region {scope.region!r}; the {what} is in {region!r}")
    if not claim.signed_at.startswith(scope.date):
        raise SignatureRefused(f"the signature's date {claim.signed_at!r} is not on the day in its credential")
    return scope


def _signer(credentials: Sequence[Credentials], access_key: str, session_token: str | None, what: str) -> Credentials:
    for candidate in credentials:
        if candidate.access_key == access_key and candidate.session_token == session_token:
            return candidate
    if any(candidate.access_key == access_key for candidate in credentials):
        given = "without a session token" if session_token is None else "with another session token"
        raise KeyUnknown(
            f"the access key {access_key!r} comes {given}; AWS_SESSION_TOKEN must be what this {what} was started with, or unset "
            "for both"
        )
    raise KeyUnknown(f"the access key {access_key!r} is not one that this {what} was started with")


def _check_date(claim: _Claim, now: float) -> None:
    signed_at = _unix_time(claim.signed_at)
    if not claim.expires:
        if abs(now - signed_at) > _SKEW_SECONDS:
            raise SignatureRefused(
                f"the signature's date {claim.signed_at} is more than 15 minutes away from this machine's clock"
            )
    elif not (_is_lifetime(claim.expires) and signed_at - _SKEW_SECONDS <= now < signed_at + int(claim.expires)):
        raise SignatureRefused(f"the presigned request of {claim.signed_at} is valid for {claim.expires} seconds")


def _is_lifetime(seconds: str) -> bool:
    """Whether a presigned request may have this lifetime."""
    return seconds.isascii() and seconds.isdigit() and len(seconds) < 7 and int(seconds) <= _PRESIGNED_SECONDS


def _unix_time(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise SignatureRefused(f"the signature's date {stamp!r} is not like 20260131T235959Z") from None


def _token_query(token: str) -> str:
    try:
        url = base64.b64decode(token.removeprefix(TOKEN_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        raise SignatureRefused(f"the bearer token is not {TOKEN_PREFIX} and base64") from None
    target, _, query = url.partition("?")
    if target.rstrip("/") != _TOKEN_HOST:
        raise SignatureRefused(f"the bearer token is for {target!r}, expected {_TOKEN_HOST!r}")
    return query


def _token_expiry(signed_at: str, expires: str, now: float) -> float:
    if not (expires.isascii() and expires.isdigit() and len(expires) < 6 and 0 < int(expires) <= _TOKEN_SECONDS):
        raise SignatureRefused(f"the bearer token's life is {expires!r}, expected 1 to {_TOKEN_SECONDS} seconds")
    start = _unix_time(signed_at)
    if now < start - _SKEW_SECONDS:
        raise SignatureRefused(f"the bearer token is not valid before {signed_at}")
    if now >= start + int(expires):
        raise SignatureRefused(f"the bearer token of {signed_at} has expired; make a new one")
    return start + int(expires)


def _canonical_query(query: str) -> str:
    return "&".join(f"{key}={value}" for key, value in sorted(_pair(part) for part in query.split("&") if part))


def _encoded_anew(query: str) -> str:
    return "&".join(
        "=".join(quote(unquote_plus(text), safe="-_.~") for text in _pair(part)) for part in query.split("&") if part
    )


def _normalized(path: str) -> str:
    """Returns a path without empty parts, `.` and `..`."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(("", *parts, "")) if path.endswith("/") or not parts else "/".join(("", *parts))


def _pair(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    return key, value


def _compare(signer: Credentials, scope: Scope, signed_at: str, canonicals: Sequence[str], signature: str) -> None:
    """Raises SignatureRefused unless the signature matches one of the request's canonical spellings."""
    for canonical in canonicals:
        text = "\n".join((ALGORITHM, signed_at, str(scope), hashlib.sha256(_bytes(canonical)).hexdigest()))
        expected = _hmac(_signing_key(signer.secret_key, scope), text).hex()
        if hmac.compare_digest(_bytes(expected), _bytes(signature)):
            return
    raise SignatureRefused("the signature does not match the request")


@lru_cache(maxsize=64)
def _signing_key(secret_key: str, scope: Scope) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (scope.date, scope.region, scope.service, "aws4_request"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, _bytes(text), "sha256")


def _bytes(text: str) -> bytes:
    """Returns the text's bytes. Header bytes that are not UTF-8 arrive as surrogates: they must fail to match, not to encode."""
    return text.encode("utf-8", "surrogateescape")
