"""How an operation is served: a function of the context and the request's parameters, in a room of its service.

    ROOM = Room("sagemaker")

    @ROOM.operation("DescribeJob")
    def describe_job(context: Context, params: Params) -> Reply:
        ...

`params` has passed the service's model: typed by its input shape (timestamps are aware datetimes, blobs are bytes), required
members there, lengths, patterns, ranges and enums met; members the model does not know are gone. The reply is a dict by the
output shape, in the same types; members that are None are left out. A plain function runs in a thread and may block, a coroutine
function runs on the server's loop and must not. A member that is the payload of a streaming reply may be bytes or an async
iterator of bytes. Refuse with ServiceError. A room is served by being named in `heldout.service.server.ROOMS`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from heldout.service.context import Context

Params = Mapping[str, Any]
Reply = dict[str, Any]
Function = Callable[[Context, Params], Reply] | Callable[[Context, Params], Awaitable[Reply]]
F = TypeVar("F", bound=Function)


class Room:
    """Operations of one service, by their names in its botocore model."""

    def __init__(self, service: str) -> None:
        self.service = service
        """botocore's name of it, such as `sagemaker` or `bedrock-agentcore-control`."""
        self.functions: dict[str, Function] = {}

    def operation(self, name: str) -> Callable[[F], F]:
        """Serves the operation of this name by the function below."""

        def add(function: F) -> F:
            self.functions[name] = function
            return function

        return add
