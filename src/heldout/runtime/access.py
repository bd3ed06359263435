"""Who may call the Job Runtime: holders of the job's secret, of a trajectory's own URL, or of the job's AWS key pair."""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence

from heldout.errors import shown
from heldout.runtime.refusals import denied
from heldout.runtime.signing import (
    ALGORITHM,
    TOKEN_PREFIX,
    Credentials,
    SignatureRefused,
    SignedRequest,
    verify_request,
    verify_token,
)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
"""What a trajectory may be called: its id has to pass as a path segment, a header and an AgentCore session id (256)."""
_MAC_CHARS = 32
"""Hex characters of a mac in an id: 128 bits, and enough for the 33 characters that a session id must have."""
_TOKENS_KEPT = 4096
"""Verified bearer tokens remembered. The published client makes one for each report; they differ from second to second."""


class Access:
    """The secret of one Job Runtime and what follows from it. Keeps no trace of trajectories."""

    def __init__(
        self,
        *,
        job_arn: str,
        region: str,
        credentials: Sequence[Credentials],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.secret = secrets.token_urlsafe(32)
        self._secret_bytes = self.secret.encode()
        self._job_arn = job_arn
        self._region = region
        self._credentials = tuple(credentials)
        self._clock = clock
        self._token_expiry: dict[str, float] = {}

    def trajectory_id(self, name: str) -> str:
        """`name` and a mac of it: an id that can be told from a made-up one without remembering it.

        Raises ValueError if the name has other characters than `[A-Za-z0-9_.-]` or more than 200.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"trajectory name {shown(name)} must be 1 to 200 characters of A-Z, a-z, 0-9, '_', '.' and '-'"
            )
        return f"{name}-{self._mac('id', name)}"

    def is_own_id(self, trajectory_id: str) -> bool:
        """Whether this instance once gave out the id."""
        name, _, mac = trajectory_id.rpartition("-")
        return hmac.compare_digest(self._mac("id", name).encode(), _bytes(mac))

    def url_token(self, trajectory_id: str) -> str:
        """The secret in the path of a trajectory's own URL."""
        return self._mac("url", trajectory_id)

    def check_url_token(self, token: str, expected: str) -> None:
        """Lets in who has a trajectory's own URL. Raises Refusal (403)."""
        if not hmac.compare_digest(_bytes(token), expected.encode()):
            raise denied("the secret in the URL's path is not that of its trajectory")

    def needs_body(self, authorization: str) -> bool:
        """Whether the header's kind of proof covers the request's body, which must be read first."""
        return authorization.startswith(ALGORITHM)

    def check_bearer(self, authorization: str) -> None:
        """Lets in the job's secret and tokens made with its key pair. Raises Refusal (403)."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise denied(
                "no credentials: send 'Authorization: Bearer' with the job's secret or a SageMaker bearer token, sign the"
                " request (SigV4), or use the trajectory's own base URL (metadata.baseUrl)"
            )
        token = token.strip()
        if hmac.compare_digest(_bytes(token), self._secret_bytes):
            return
        if not token.startswith(TOKEN_PREFIX):
            raise denied("the bearer token is neither this job's secret nor a SageMaker bearer token")
        now = self._clock()
        if self._token_expiry.get(token, 0.0) > now:
            return
        self._remember(token, self._verified_expiry(token, now))

    def check_signature(self, request: SignedRequest) -> None:
        """Lets in a request signed with the job's key pair. Raises Refusal (403)."""
        try:
            verify_request(request, credentials=self._credentials, region=self._region, now=self._clock())
        except SignatureRefused as refused:
            raise denied(str(refused)) from refused

    def check_job(self, job_arn: object) -> None:
        """Refuses a request that names another job (403). One that names none is let through."""
        if job_arn is not None and job_arn != self._job_arn:
            raise denied(f"this is the Job Runtime of {self._job_arn}, not of {shown(job_arn, 300)}")

    def _verified_expiry(self, token: str, now: float) -> float:
        try:
            return verify_token(token, credentials=self._credentials, region=self._region, now=now)
        except SignatureRefused as refused:
            self._token_expiry.pop(token, None)
            raise denied(str(refused)) from refused

    def _remember(self, token: str, expires_at: float) -> None:
        if len(self._token_expiry) >= _TOKENS_KEPT:
            del self._token_expiry[next(iter(self._token_expiry))]
        self._token_expiry[token] = expires_at

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.digest(self._secret_bytes, _bytes(f"{purpose}:{text}"), "sha256").hex()[:_MAC_CHARS]


def _bytes(text: str) -> bytes:
    """Header bytes that are no UTF-8 arrive as surrogates; they must fail to match, not to encode."""
    return text.encode("utf-8", "surrogateescape")
