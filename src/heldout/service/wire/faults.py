"""Service errors: the code, the one-line message and the HTTP status of a refused request."""

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
"""Status of errors that all services share and no model has. Source: "Common Error Types" in the services' API references."""
_DEFAULT_STATUS = 400


class ServiceError(Exception):
    """A refused request. status: by default the one that the service's model has for the code."""

    def __init__(self, code: str, message: str, *, status: int | None = None, **members: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.members = members
        """Further members of the error's shape by wire name."""
        self._status = status

    def status(self, operation: OperationModel | None) -> int:
        """The HTTP status, by the model of the operation's service."""
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
    """A ValidationException: the request's parameters are invalid."""
    return ServiceError("ValidationException", message)


def not_found(message: str) -> ServiceError:
    """A ResourceNotFound, SageMaker's error for a missing resource."""
    return ServiceError("ResourceNotFound", message)
