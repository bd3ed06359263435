"""What is served beside the services: requests that no model of botocore describes."""

from typing import Protocol

from aiohttp import web

from heldout.runtime.signing import SignedRequest


class Front(Protocol):
    """Answers requests of its own kind; it lets in who may by itself."""

    def takes(self, request: web.Request) -> bool:
        """Whether the request is of its kind."""
        ...

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply; what goes wrong with the request is a reply too."""
        ...


def signed_request(request: web.Request, body: bytes) -> SignedRequest:
    """A request as signatures are checked on: a header that comes several times has all its values."""
    path, _, query = request.raw_path.partition("?")
    headers = dict[str, str]()
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    return SignedRequest(request.method, path, query, headers, body)
