"""The AWS account of an evaluation: its session, region, role and clients, and the translation of AWS errors."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from heldout.backends.local.preparation import named_region
from heldout.errors import CloudError, ReferenceProblem, shown

_RETRIES = Config(retries={"mode": "standard", "total_max_attempts": 8})
"""Retries throttling and failures of AWS for about half a minute."""
_GLANCE = Config(retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=3, read_timeout=10)
_ROLE_ARN = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/.+")
_ASSUMED_ROLE = re.compile(r"arn:(?P<partition>aws[a-z\-]*):sts::(?P<account>\d{12}):assumed-role/(?P<name>[^/]+)/.+")
_NOTEBOOK_ROLE = "AmazonSageMaker-ExecutionRole"
"""The beginning of role names that SageMaker's console creates, below `service-role/`."""
_DENIED = ("AccessDenied", "UnauthorizedOperation", "NotAuthorized")
_ABSENT = ("ResourceNotFound", "NoSuchEntity", "NoSuchBucket", "NoSuchKey", "404")
_NO_RESOURCE = re.compile(r"does not exist|not found|could not find", re.IGNORECASE)
_HINTS = {
    "ExpiredToken": "sign in again",
    "ExpiredTokenException": "sign in again",
    "UnrecognizedClientException": "the access key is not known there",
    "UnknownOperationException": "the endpoint does not serve this operation",
}


class Account:
    """The clients and the identity of one session. Making an account sends no request.

    given: the SDK's session (its `sagemaker_client` and `boto_session` are used unchanged), a boto3 session, or None
    for the standard chain of credentials.
    """

    def __init__(self, given: Any = None, region: str | None = None) -> None:
        """Raises ReferenceProblem when the AWS configuration cannot be used or names no region, or `given` is no session."""
        self._given = given
        self._boto = _boto_session(given, region)
        client = getattr(given, "sagemaker_client", None)
        named = (
            region,
            getattr(given, "boto_region_name", None),
            getattr(getattr(client, "meta", None), "region_name", None),
        )
        own_region = next((name for name in (*named, self._boto.region_name, named_region()) if name), None)
        if not isinstance(own_region, str):
            raise ReferenceProblem(
                "no AWS region: give region=..., a session with one, AWS_REGION, or a default in the AWS configuration file"
            )
        self.region = own_region
        self._clients: dict[tuple[str, bool], Any] = {}
        self._account: str | None = None

    @property
    def sagemaker(self) -> Any:
        """The client of the given session if it has one, because it may use another endpoint."""
        given = getattr(self._given, "sagemaker_client", None)
        return given if given is not None else self.client("sagemaker")

    def client(self, service: str, *, is_glance: bool = False) -> Any:
        """The session's client for `service`, made once.

        is_glance: with short timeouts, for requests whose failure is acceptable.
        """
        if (service, is_glance) not in self._clients:
            with translated_errors(f"a client of {service}"):
                config = _GLANCE if is_glance else _RETRIES
                self._clients[service, is_glance] = self._boto.client(service, region_name=self.region, config=config)
        return self._clients[service, is_glance]

    @property
    def account_id(self) -> str:
        """The account's 12 digits, from STS. Raises CloudError."""
        if self._account is None:
            self._account = str(self._identity()["Account"])
        return self._account

    def role_arn(self, role: str | None) -> str:
        """The ARN of the execution role. `role` is an ARN or a name; by default it is the role that the session is signed in as.

        Raises ReferenceProblem when the role does not exist, or when none is given and the session is not signed in as one.
        """
        if role is None:
            return self._own_role()
        if role.startswith("arn:"):
            if not _ROLE_ARN.fullmatch(role):
                raise ReferenceProblem(
                    f"'role' {shown(role, 160)} is not a role's ARN; expected arn:aws:iam::<account>:role/<name>, or a name"
                )
            return role
        if "/" in role:
            name = role.rpartition("/")[2]
            raise ReferenceProblem(
                f"'role' {shown(role, 160)} has a path; give the name alone, {shown(name)}, or the role's ARN"
            )
        with translated_errors(f"role {role!r}", absent=f"role {role!r} does not exist in account {self.account_id}"):
            return str(self.client("iam").get_role(RoleName=role)["Role"]["Arn"])

    def _own_role(self) -> str:
        arn = str(self._identity()["Arn"])
        if _ROLE_ARN.fullmatch(arn):
            return arn
        found = _ASSUMED_ROLE.fullmatch(arn)
        if found is None:
            raise ReferenceProblem(
                f"no execution role: the session is signed in as {arn}, which is not a role that SageMaker can take; give "
                "role='arn:aws:iam::<account>:role/<name>' or a role's name"
            )
        name = found["name"]
        try:
            return str(self.client("iam").get_role(RoleName=name)["Role"]["Arn"])
        except ClientError as error:
            if not is_denied(error):
                raise CloudError(_line(f"role {name!r}", error)) from error
        # Without permission to read roles, builds the ARN; only the role's path is unknown.
        path = "service-role/" if name.startswith(_NOTEBOOK_ROLE) else ""
        return f"arn:{found['partition']}:iam::{found['account']}:role/{path}{name}"

    def _identity(self) -> Mapping[str, Any]:
        with translated_errors("who the AWS session is signed in as"):
            identity: Mapping[str, Any] = self.client("sts").get_caller_identity()
            self._account = str(identity["Account"])
            return identity


@contextlib.contextmanager
def translated_errors(what: str, *, absent: str | None = None) -> Iterator[None]:
    """Translates AWS errors inside into one line that begins with `what`.

    absent: the message of a ReferenceProblem, for an answer that the thing does not exist. Other errors become a CloudError.
    """
    try:
        yield
    except ClientError as error:
        if absent is not None and is_absent(error):
            raise ReferenceProblem(absent) from error
        raise CloudError(_line(what, error)) from error
    except NoCredentialsError as error:
        raise ReferenceProblem(
            f"{what}: no AWS credentials were found; sign in, or map model and agent to this machine in a registry (--registry "
            "FILE or HELDOUT_REGISTRY)"
        ) from error
    except BotoCoreError as error:
        raise CloudError(f"{what}: {error}") from error


def pages(
    operation: Callable[..., Mapping[str, Any]], *, token: str = "NextToken", **asked: Any
) -> Iterator[Mapping[str, Any]]:
    """Every page of a client's list operation. token: the member that names the next page."""
    while True:
        page = operation(**asked)
        yield page
        if not page.get(token):
            return
        asked = {**asked, token: page[token]}


def is_absent(error: ClientError) -> bool:
    """Whether the named thing does not exist. Old SageMaker operations say so only in the message text."""
    code = code_of(error)
    return code.startswith(_ABSENT) or (code == "ValidationException" and bool(_NO_RESOURCE.search(message_of(error))))


def is_denied(error: ClientError) -> bool:
    """Whether the caller lacks the permission."""
    return code_of(error).startswith(_DENIED)


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def message_of(error: ClientError) -> str:
    """The message of the error, on one line."""
    return " ".join(str(error.response.get("Error", {}).get("Message", "")).split())


def _line(what: str, error: ClientError) -> str:
    code, message = code_of(error), message_of(error)
    hint = _HINTS.get(code)
    # A wrong clock and a wrong region have the same code; their messages differ.
    if code == "InvalidSignatureException" and "not match" in message:
        hint = "the secret key is not that of the access key"
    return f"{what}: {error.operation_name} was refused: {code}: {message}{f' ({hint})' if hint else ''}"


def _boto_session(given: Any, region: str | None) -> Any:
    """The boto3 session of the SDK's session, the given boto3 session, or a session of the standard chain."""
    boto = getattr(given, "boto_session", None)
    if boto is not None:
        return boto
    if callable(getattr(given, "client", None)) and hasattr(given, "region_name"):
        return given
    if given is not None and not hasattr(given, "sagemaker_client"):
        raise ReferenceProblem(
            f"session {shown(given)} is not a session: expected the SDK's session (with `boto_session` or `sagemaker_client`) "
            "or a boto3 session"
        )
    try:
        return boto3.Session(region_name=region)
    except BotoCoreError as error:
        raise ReferenceProblem(f"the AWS configuration cannot be used: {error}") from error
