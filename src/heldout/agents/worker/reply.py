"""The answer to a request of the engine, sent whole or in pieces."""

from collections.abc import Mapping

from heldout.http.exchange import Answer, Request, Stream


class Reply:
    """Collects an answer: `whole`, or `start` and `send` any number of times. The service then calls `finish`."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._answer: Answer | None = None
        self._stream: Stream | None = None

    @property
    def is_started(self) -> bool:
        """Whether the answer can no longer be replaced by another."""
        return self._answer is not None or self._stream is not None

    def whole(self, status: int, content_type: str, body: bytes) -> None:
        """Answers with one body."""
        self._answer = Answer(status, {"Content-Type": content_type}, body)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Sends the head. headers: without `Content-Length`. Raises ConnectionError if the engine has disconnected."""
        self._stream = await self._request.stream(status, headers)

    async def send(self, data: bytes) -> None:
        """Sends a piece of the body. Raises ConnectionError if the engine has disconnected."""
        if self._stream is not None:
            await self._stream.write(data)

    async def finish(self) -> Answer | None:
        """Returns the whole answer, or ends the streamed one and returns None."""
        if self._stream is not None:
            await self._stream.end()
        return self._answer
