"""Authentication by AWS signatures (SigV4) with the server's own key pair."""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from heldout.errors import InputError
from heldout.runtime.signing import (
    Credentials,
    KeyUnknown,
    SignatureIncomplete,
    SignatureRefused,
    SignedRequest,
    is_signed,
    signed_scope,
    verify_request,
)
from heldout.service.wire.faults import ServiceError

_GLOBAL_SERVICES = frozenset({"iam", "sts"})
"""Services whose requests are signed for the partition's own region, not the client's."""

KeySource = Callable[[], Sequence[Credentials]]
"""Returns the key pairs that may sign now. Those of a role change every few hours."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller by the request's signature, verified unless verification is disabled."""

    access_key: str | None
    service: str | None
    """The signed service name, such as `sagemaker`; None for an unsigned request."""


class Authenticator:
    """Admits or refuses requests. keys: None admits every program on this machine, but no web page in its browsers."""

    def __init__(self, keys: KeySource | None, region: str) -> None:
        self._keys = keys
        self._region = region

    def admit(self, request: SignedRequest, now: float, *, is_query: bool) -> Caller:
        """The caller. now: Unix seconds. is_query: the request has the query protocol, whose error codes differ.

        Raises ServiceError for a missing or invalid signature, or for a request of a web page if verification is disabled.
        """
        if self._keys is None:
            _refuse_web_pages(request)
            return _unverified(request)
        if not is_signed(request):
            name = "MissingAuthenticationToken" if is_query else "MissingAuthenticationTokenException"
            raise ServiceError(name, "Missing Authentication Token: the request is not signed")
        try:
            scope = signed_scope(request)
            region = scope.region if scope.service in _GLOBAL_SERVICES else self._region
            verify_request(
                request,
                credentials=self._keys(),
                region=region,
                service=scope.service,
                now=now,
                what="server",
            )
        except SignatureRefused as refused:
            raise _refusal(refused, is_query=is_query) from refused
        return Caller(scope.access_key, scope.service)


def own_keys() -> KeySource:
    """The key pair that AWS tools in this environment use. Raises InputError if there is none."""
    import boto3  # slow to import, and only needed here
    from botocore.exceptions import BotoCoreError

    try:
        found = boto3.Session().get_credentials()
    except BotoCoreError as error:
        raise InputError(f"no AWS key pair to verify requests with: {error}") from error
    if found is None:
        raise InputError(
            "no AWS key pair to verify requests with: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (any values, the same "
            "for server and clients), or admit everyone on this machine with --no-auth"
        )

    def keys() -> Sequence[Credentials]:
        try:
            frozen = found.get_frozen_credentials()
        except BotoCoreError as error:  # keys of a role or a sign-in expire and are renewed here
            raise ServiceError(
                "ServiceUnavailableException",
                f"the server's AWS key pair has expired and cannot be renewed: {error}",
                status=503,
            ) from error
        return [Credentials(frozen.access_key or "", frozen.secret_key or "", frozen.token)]

    return keys


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
    try:
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_web_pages(request: SignedRequest) -> None:
    """Refuses requests that a web page makes a browser on this machine send.

    Such a request has an Origin header or, after DNS rebinding, the page's own name as Host.
    """
    if "origin" in request.headers or not is_loopback(_host_of(request)):
        raise ServiceError(
            "AccessDeniedException",
            "without verified signatures this server answers programs at localhost or 127.0.0.1, and no web pages",
            status=403,
        )


def _host_of(request: SignedRequest) -> str:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _unverified(request: SignedRequest) -> Caller:
    try:
        scope = signed_scope(request)
    except SignatureRefused:
        return Caller(None, None)
    return Caller(scope.access_key, scope.service)


def _refusal(refused: SignatureRefused, *, is_query: bool) -> ServiceError:
    match refused:
        case SignatureIncomplete():
            return ServiceError("IncompleteSignature" if is_query else "IncompleteSignatureException", str(refused))
        case KeyUnknown():
            name = "InvalidClientTokenId" if is_query else "UnrecognizedClientException"
            return ServiceError(name, f"The security token included in the request is invalid: {refused}")
        case _:
            return ServiceError("SignatureDoesNotMatch" if is_query else "InvalidSignatureException", str(refused))
