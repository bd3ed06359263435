"""What the Job Runtime says when it does not do what it was asked.

One exception carries status, name and message; its body can be read by both kinds of client: `Message` and the header
`x-amzn-errortype` are the error format of botocore's service model `sagemakerjobruntime` (2026-02-01), the `error` object is that
of OpenAI's API.
"""

import orjson

_MESSAGE_LIMIT = 1024
"""Longest message, in characters: the service model's `FailureReason`."""


class Refusal(Exception):
    """A request is answered with an error. `name` is an exception of the service model."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message[:_MESSAGE_LIMIT]

    def body(self) -> bytes:
        """The JSON body of the answer."""
        error = {"message": self.message, "type": self.name, "param": None, "code": self.name}
        return orjson.dumps({"Message": self.message, "error": error})

    def headers(self) -> dict[str, str]:
        """The answer's headers. `x-should-retry` keeps the openai client from sending again what will be refused again."""
        return {"Content-Type": "application/json", "x-amzn-errortype": self.name, "x-should-retry": "false"}


def invalid(message: str) -> Refusal:
    """The request cannot be understood or has a value that cannot be taken: 400."""
    return Refusal(400, "ValidationException", message)


def denied(message: str) -> Refusal:
    """Who asks has not shown that they may: 403."""
    return Refusal(403, "AccessDeniedException", message)


def not_found(message: str) -> Refusal:
    """There is no such trajectory or operation: 404."""
    return Refusal(404, "ResourceNotFoundException", message)


def conflict(message: str) -> Refusal:
    """The trajectory's state does not allow it: 409."""
    return Refusal(409, "ConflictException", message)


def internal(message: str, status: int = 500) -> Refusal:
    """Something failed on this side of the wire: 500 unless said otherwise."""
    return Refusal(status, "InternalServiceError", message)


def relayed(status: int, message: str) -> Refusal:
    """A policy's own error, told with its own status to a client that knows only the service model's exceptions."""
    names = {402: "ServiceQuotaExceededException", 403: "AccessDeniedException", 404: "ResourceNotFoundException"}
    names |= {409: "ConflictException", 429: "ThrottlingException"}
    default = "InternalServiceError" if status >= 500 else "ValidationException"
    return Refusal(status, names.get(status, default), message)
