"""What is served beside the services: requests that no model of botocore describes."""

from typing import Protocol

from aiohttp import web


class Front(Protocol):
    """Answers requests of its own kind; it lets in who may by itself."""

    def takes(self, request: web.Request) -> bool:
        """Whether the request is of its kind."""
        ...

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The reply; what goes wrong with the request is a reply too."""
        ...
