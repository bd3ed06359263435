"""Which operation a request is for: by its target header, its form's action, or its method and path."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

from heldout.errors import did_you_mean
from heldout.runtime.signing import SignedRequest
from heldout.service.operations import Function, Room
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.protocols import form_action, is_form, path_pattern


@lru_cache(maxsize=16)
def service_model(service: str) -> ServiceModel:
    """botocore's model of a service."""
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


class Router:
    """The operations of some rooms."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._functions: dict[str, dict[str, Function]] = {}
        for room in rooms:
            self._functions.setdefault(room.service, {}).update(room.functions)
        self._models = {service: service_model(service) for service in self._functions}
        self._rest = [
            (model.operation_model(name), path_pattern(model.operation_model(name)))
            for service, model in self._models.items()
            if model.metadata["protocol"] == "rest-json"
            for name in self._functions[service]
        ]

    def find(self, request: SignedRequest, signing_name: str | None) -> OperationModel:
        """The operation. signing_name: the service that the request is signed for, if it is signed.

        Raises ServiceError: UnknownOperationException when there is none, InvalidSignatureException (SignatureDoesNotMatch in the
        query protocol) when it is of another service than the signature is for.
        """
        operation = self._asked(request, signing_name)
        service = operation.service_model
        if signing_name not in (None, service.signing_name):
            code = "SignatureDoesNotMatch" if service.metadata["protocol"] == "query" else "InvalidSignatureException"
            raise ServiceError(code, f"Credential should be scoped to correct service: {service.signing_name!r}.")
        return operation

    def function(self, operation: OperationModel) -> Function:
        """What serves an operation that `find` gave."""
        return self._functions[operation.service_model.service_name][operation.name]

    def _asked(self, request: SignedRequest, signing_name: str | None) -> OperationModel:
        target = request.headers.get("x-amz-target")
        if target and request.method == "POST":
            prefix, _, name = target.rpartition(".")
            models = [model for model in self._models.values() if model.metadata.get("targetPrefix") == prefix]
            return self._named(models, name, target)
        if is_form(request):
            action, version = form_action(request)
            models = [
                model
                for model in self._models.values()
                if model.metadata["protocol"] == "query" and version in ("", model.api_version)
            ]
            return self._named(models, action, action)
        return self._at_path(request, signing_name)

    def _named(self, models: Sequence[ServiceModel], name: str, asked: str) -> OperationModel:
        for model in models:
            if name in self._functions[model.service_name]:
                return model.operation_model(name)
        known: Mapping[str, Function] = {k: v for m in models for k, v in self._functions[m.service_name].items()}
        raise ServiceError(
            "UnknownOperationException", f"no operation {asked!r} is served here.{did_you_mean(name, known)}"
        )

    def _at_path(self, request: SignedRequest, signing_name: str | None) -> OperationModel:
        for operation, pattern in self._rest:
            is_signed_for = signing_name in (None, operation.service_model.signing_name)
            if is_signed_for and operation.http["method"] == request.method and pattern.fullmatch(request.path):
                return operation
        raise ServiceError("UnknownOperationException", f"no operation is served at {request.method} {request.path}")
