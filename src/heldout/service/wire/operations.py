"""Operation tables and the router that finds the function for a request.

    OPERATIONS = OperationTable[Context]("sagemaker")

    @OPERATIONS.operation("DescribeJob")
    def describe_job(context: Context, params: Params) -> Reply:
        ...

`params` has passed the service's model: values have the types of the input shape (timestamps are aware datetimes, blobs are
bytes), required members are present, and lengths, patterns, ranges and enums hold. Unknown members are removed. The reply is a
dict by the output shape, in the same types; members that are None are left out. A plain function runs in a thread and may block;
a coroutine function runs on the server's loop and must not block. The payload of a streaming reply may be bytes or an async
iterator of bytes. An operation refuses a request by raising ServiceError. `heldout.service.application.OPERATION_TABLES` lists
the tables that the server serves.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

from heldout.errors import did_you_mean
from heldout.runtime.signing import SignedRequest
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.protocols import form_action, is_form, path_pattern

C = TypeVar("C")
"""The context that every operation of a table gets."""
Params = Mapping[str, Any]
Reply = dict[str, Any]
Function = Callable[[C, Params], Reply] | Callable[[C, Params], Awaitable[Reply]]
F = TypeVar("F", bound=Callable[..., Any])


@lru_cache(maxsize=16)
def service_model(service: str) -> ServiceModel:
    """Loads botocore's model of a service."""
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


class OperationTable(Generic[C]):
    """Functions of one service by the operation names of its botocore model."""

    def __init__(self, service: str) -> None:
        self.service = service
        """botocore's name of the service, such as `sagemaker` or `bedrock-agentcore-control`."""
        self.functions: dict[str, Function[C]] = {}

    def operation(self, name: str) -> Callable[[F], F]:
        """Registers the decorated function as the operation `name`."""

        def add(function: F) -> F:
            self.functions[name] = function
            return function

        return add


class Router(Generic[C]):
    """Finds an operation by the target header, by the form's action, or by method and path."""

    def __init__(self, tables: Sequence[OperationTable[C]]) -> None:
        self._functions: dict[str, dict[str, Function[C]]] = {}
        for table in tables:
            self._functions.setdefault(table.service, {}).update(table.functions)
        self._models = {service: service_model(service) for service in self._functions}
        self._rest = [
            (model.operation_model(name), path_pattern(model.operation_model(name)))
            for service, model in self._models.items()
            if model.metadata["protocol"] == "rest-json"
            for name in self._functions[service]
        ]

    def find(self, request: SignedRequest, signing_name: str | None) -> OperationModel:
        """The operation that a request names. signing_name: the service in the signature's scope; None if unsigned.

        Raises ServiceError: UnknownOperationException for an unknown operation, InvalidSignatureException
        (SignatureDoesNotMatch in the query protocol) if the signature is scoped to another service.
        """
        operation = self._requested(request, signing_name)
        service = operation.service_model
        if signing_name not in (None, service.signing_name):
            code = "SignatureDoesNotMatch" if service.metadata["protocol"] == "query" else "InvalidSignatureException"
            raise ServiceError(code, f"Credential should be scoped to correct service: {service.signing_name!r}.")
        return operation

    def function(self, operation: OperationModel) -> Function[C]:
        """The function of an operation that `find` returned."""
        return self._functions[operation.service_model.service_name][operation.name]

    def _requested(self, request: SignedRequest, signing_name: str | None) -> OperationModel:
        target = request.headers.get("x-amz-target")
        if target and request.method == "POST":
            prefix, _, name = target.rpartition(".")
            models = [model for model in self._models.values() if model.metadata.get("targetPrefix") == prefix]
            return self._by_name(models, name, target)
        if is_form(request):
            action, version = form_action(request)
            models = [
                model
                for model in self._models.values()
                if model.metadata["protocol"] == "query" and version in ("", model.api_version)
            ]
            return self._by_name(models, action, action)
        return self._by_path(request, signing_name)

    def _by_name(self, models: Sequence[ServiceModel], name: str, requested: str) -> OperationModel:
        for model in models:
            if name in self._functions[model.service_name]:
                return model.operation_model(name)
        known = [served for model in models for served in self._functions[model.service_name]]
        raise ServiceError(
            "UnknownOperationException", f"no operation {requested!r} is served here.{did_you_mean(name, known)}"
        )

    def _by_path(self, request: SignedRequest, signing_name: str | None) -> OperationModel:
        for operation, pattern in self._rest:
            is_signed_for = signing_name in (None, operation.service_model.signing_name)
            if is_signed_for and operation.http["method"] == request.method and pattern.fullmatch(request.path):
                return operation
        raise ServiceError("UnknownOperationException", f"no operation is served at {request.method} {request.path}")
