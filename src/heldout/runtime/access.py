"""Access to the Job Runtime: for holders of the job's secret, of a trajectory's own URL, or of the job's AWS key pair."""

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
"""Allowed names of a trajectory: its id is a path segment, a header and an AgentCore session id (at most 256 characters)."""
_MAC_CHARS = 32
"""Hex characters of a mac in an id: 128 bits, and long enough for a session id, which has at least 33 characters."""
_TOKENS_KEPT = 4096
"""Verified bearer tokens remembered. The published client makes a new one for each report."""


class Access:
    """The secret of one Job Runtime, and the ids and URL secrets derived from it. It stores nothing about trajectories.

    clock: Unix time, seconds. tokens_kept: how many verified bearer tokens are remembered, so that each is verified once.
    """

    def __init__(
        self,
        *,
        job_arn: str,
        region: str,
        credentials: Sequence[Credentials],
        clock: Callable[[], float] = time.time,
        tokens_kept: int = _TOKENS_KEPT,
    ) -> None:
        self.secret = secrets.token_urlsafe(32)
        self._secret_bytes = self.secret.encode()
        self._job_arn = job_arn
        self._region = region
        self._credentials = tuple(credentials)
        self._clock = clock
        self._tokens_kept = tokens_kept
        self._token_expiry: dict[str, float] = {}

    def trajectory_id(self, name: str) -> str:
        """Returns an id, `name` and its mac, which `is_own_id` recognises without a list of ids.

        Raises ValueError if the name has other characters than `[A-Za-z0-9_.-]` or more than 200.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"trajectory name {shown(name)} must be 1 to 200 characters of A-Z, a-z, 0-9, '_', '.' and '-'"
            )
        return f"{name}-{self._mac('id', name)}"

    def is_own_id(self, trajectory_id: str) -> bool:
        """Whether this instance made the id."""
        name, _, mac = trajectory_id.rpartition("-")
        return hmac.compare_digest(self._mac("id", name).encode(), _bytes(mac))

    def url_token(self, trajectory_id: str) -> str:
        """Returns the secret in the path of a trajectory's own URL."""
        return self._mac("url", trajectory_id)

    def check_url_token(self, token: str, expected: str) -> None:
        """Checks the secret of a trajectory's own URL. Raises Refusal (403)."""
        if not hmac.compare_digest(_bytes(token), expected.encode()):
            raise denied("the secret in the URL's path is not that of its trajectory")

    def needs_body(self, authorization: str) -> bool:
        """Whether the header holds a signature of the request's body, which must then be read first."""
        return authorization.startswith(ALGORITHM)

    def check_bearer(self, authorization: str) -> None:
        """Accepts the job's secret, and tokens made with its key pair. Raises Refusal (403)."""
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
        """Accepts a request signed with the job's key pair. Raises Refusal (403)."""
        try:
            verify_request(request, credentials=self._credentials, region=self._region, now=self._clock())
        except SignatureRefused as refused:
            raise denied(str(refused)) from refused

    def check_job(self, job_arn: object) -> None:
        """Accepts a request that names this job, or none. Raises Refusal (403)."""
        if job_arn is not None and job_arn != self._job_arn:
            raise denied(f"this is the Job Runtime of {self._job_arn}, not of {shown(job_arn, 300)}")

    @property
    def remembered_tokens(self) -> tuple[str, ...]:
        """Verified bearer tokens, the oldest first."""
        return tuple(self._token_expiry)

    def _verified_expiry(self, token: str, now: float) -> float:
        try:
            return verify_token(token, credentials=self._credentials, region=self._region, now=now)
        except SignatureRefused as refused:
            self._token_expiry.pop(token, None)
            raise denied(str(refused)) from refused

    def _remember(self, token: str, expires_at: float) -> None:
        if len(self._token_expiry) >= self._tokens_kept:
            del self._token_expiry[next(iter(self._token_expiry))]
        self._token_expiry[token] = expires_at

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.digest(self._secret_bytes, _bytes(f"{purpose}:{text}"), "sha256").hex()[:_MAC_CHARS]


def _bytes(text: str) -> bytes:
    """Returns the text's bytes. Header bytes that are not UTF-8 arrive as surrogates: they must fail to match, not to encode."""
    return text.encode("utf-8", "surrogateescape")
