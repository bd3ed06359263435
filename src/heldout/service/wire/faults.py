"""What a service answers when it refuses a request: the error's code, its one-line message and its HTTP status."""

from typing import Any

from botocore.model import OperationModel

_COMMON_STATUS = {
    "ExpiredTokenException": 403,
    "IncompleteSignature": 403,
    "IncompleteSignatureException": 403,
    "InternalFailure": 500,
    "InvalidClientTokenId": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationToken": 403,
    "MissingAuthenticationTokenException": 403,
    "SignatureDoesNotMatch": 403,
    "UnknownOperationException": 404,
    "UnrecognizedClientException": 403,
}
"""Errors that all services share and no model names. Source: "Common Error Types" in the services' API references."""
_DEFAULT_STATUS = 400


class ServiceError(Exception):
    """A request is refused. The status is the model's for this code, unless it is given."""

    def __init__(self, code: str, message: str, *, status: int | None = None, **members: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.members = members
        """Further members of the error's shape, by their wire names."""
        self._status = status

    def status(self, operation: OperationModel | None) -> int:
        """The HTTP status, as the operation's service has it."""
        if self._status is not None:
            return self._status
        if self.code in _COMMON_STATUS:
            return _COMMON_STATUS[self.code]
        model: Any = None if operation is None else operation.service_model  # its stubs want the code as a number
        shape = model and model.shape_for_error_code(self.code)
        return (
            int((shape.metadata.get("error") or {}).get("httpStatusCode", _DEFAULT_STATUS))
            if shape
            else _DEFAULT_STATUS
        )


def invalid(message: str) -> ServiceError:
    """A request that cannot be meant as it is."""
    return ServiceError("ValidationException", message)


def not_found(message: str) -> ServiceError:
    """SageMaker's answer for a resource that is not there."""
    return ServiceError("ResourceNotFound", message)
