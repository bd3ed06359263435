"""The Job Runtime's errors.

One exception carries status, name and message. AWS and OpenAI clients can both read its body: `Message` and the header
`x-amzn-errortype` are the error format of botocore's service model `sagemakerjobruntime` (2026-02-01), the `error` object is
that of OpenAI's API. A dialect with another error format renders the exception itself.
"""

import orjson

from heldout.http.exchange import Answer

_MESSAGE_LIMIT = 1024
"""Longest message, in characters: the service model's `FailureReason`."""


class Refusal(Exception):
    """A request is answered with an error. name: an exception of the service model. message: cut to 1024 characters."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message[:_MESSAGE_LIMIT]

    def body(self) -> bytes:
        """Returns the JSON body, for AWS and OpenAI clients."""
        error = {"message": self.message, "type": self.name, "param": None, "code": self.name}
        return orjson.dumps({"Message": self.message, "error": error})

    def headers(self) -> dict[str, str]:
        """Returns the headers. `x-should-retry` keeps the openai client from repeating a request that would be refused again."""
        return {"Content-Type": "application/json", "x-amzn-errortype": self.name, "x-should-retry": "false"}

    def answer(self) -> Answer:
        """Returns the whole answer, for AWS and OpenAI clients."""
        return Answer(self.status, self.headers(), self.body())


def invalid(message: str) -> Refusal:
    """The request cannot be understood, or has an invalid value: 400."""
    return Refusal(400, "ValidationException", message)


def denied(message: str) -> Refusal:
    """The caller has not proved that it may call: 403."""
    return Refusal(403, "AccessDeniedException", message)


def not_found(message: str) -> Refusal:
    """There is no such trajectory or operation: 404."""
    return Refusal(404, "ResourceNotFoundException", message)


def conflict(message: str) -> Refusal:
    """The trajectory's state does not allow the operation: 409."""
    return Refusal(409, "ConflictException", message)


def internal(message: str, status: int = 500) -> Refusal:
    """The Job Runtime, or the policy behind it, failed: 500, or the given status."""
    return Refusal(status, "InternalServiceError", message)


def relayed(status: int, message: str) -> Refusal:
    """A policy's error with its own status, for clients that know only the service model's exceptions."""
    names = {402: "ServiceQuotaExceededException", 403: "AccessDeniedException", 404: "ResourceNotFoundException"}
    names |= {409: "ConflictException", 429: "ThrottlingException"}
    default = "InternalServiceError" if status >= 500 else "ValidationException"
    return Refusal(status, names.get(status, default), message)
