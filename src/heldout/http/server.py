"""An HTTP/1.1 server on an asyncio loop, for services that answer small JSON requests thousands of times a second.

The Job Runtime and the workers serve with it. A general server spends more on each call than the Job Runtime spends on
recording it (benchmarks/runtime.py).
"""

import asyncio

from heldout.http.exchange import Handler
from heldout.http.flow_control import Connection

_BACKLOG = 65_535
"""Connections that may wait to be accepted: a job's agents all start at once. The system lowers it to its own limit
(net.core.somaxconn on Linux)."""
_LINGER_SECONDS = 5.0


class Server:
    """Listens, and calls `handler` in a task for each request. The task is cancelled when its client disconnects.

    idle_seconds: how long a connection may be silent between requests, or take to send a request's head.
    linger_seconds: how long the server discards what a client still sends after an early answer, so that the client reads
    that answer before the connection closes.
    """

    def __init__(self, handler: Handler, *, idle_seconds: float, linger_seconds: float = _LINGER_SECONDS) -> None:
        self._handler = handler
        self._idle_seconds = idle_seconds
        self._linger_seconds = linger_seconds
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port; 0 picks a free one. Raises OSError if the port is taken."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connection, host, port, backlog=_BACKLOG)
        return int(self._listener.sockets[0].getsockname()[1])

    def close_listener(self) -> None:
        """Accepts no more connections."""
        if self._listener is not None:
            self._listener.close()

    async def stop(self, seconds: float) -> None:
        """Starts no more requests, gives the current ones `seconds` to end, and cancels the rest."""
        self.close_listener()
        tasks = {
            task for connection in list(self._connections) if (task := connection.close_after_request()) is not None
        }
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=seconds)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        for connection in list(self._connections):
            connection.abort()
        if self._listener is not None:
            await self._listener.wait_closed()

    def _connection(self) -> Connection:
        return Connection(
            self._handler, self._connections, idle_seconds=self._idle_seconds, linger_seconds=self._linger_seconds
        )
