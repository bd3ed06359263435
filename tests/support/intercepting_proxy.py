"""A server between a client and a server of the AWS protocols, that refuses some operations and changes some replies."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Change = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(NamedTuple):
    """An error of a JSON service."""

    code: str
    times: int = 1_000_000
    status: int = 400


class Middle:
    """What comes by, and what is made of it. Operations of SageMaker, by name."""

    def __init__(self, behind: str) -> None:
        self.url = ""
        self.behind = behind
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.refused: dict[str, Refusal] = {}
        self.changed: dict[str, Change] = {}
        self._lock = threading.Lock()

    def requests_of(self, operation: str) -> list[dict[str, Any]]:
        """What was asked of an operation, in order."""
        return [body for name, body in self.requests if name == operation]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The status, headers and body of the reply."""
        operation = (headers.get("X-Amz-Target") or "").partition(".")[2]
        with self._lock:
            self.asked[operation] += 1
            if operation:
                self.requests.append((operation, json.loads(body)))
            refusal = self.refused.get(operation)
            is_refused = refusal is not None and self.asked[operation] <= refusal.times
        if refusal is not None and is_refused:
            error = {"__type": refusal.code, "message": "as the test wants it"}
            return refusal.status, [("Content-Type", "application/x-amz-json-1.1")], json.dumps(error).encode()
        status, reply_headers, reply = self._asked_behind(method, path, headers, body)
        if status == 200 and operation in self.changed:
            reply = json.dumps(self.changed[operation](json.loads(reply))).encode()
        return status, reply_headers, reply

    def _asked_behind(
        self, method: str, path: str, headers: Any, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.behind).netloc, timeout=60)
        try:
            connection.request(method, path, body, dict(headers.items()))
            reply = connection.getresponse()
            kept = [(name, value) for name, value in reply.getheaders() if name.lower() in _KEPT]
            return reply.status, kept, reply.read()
        finally:
            connection.close()


_KEPT = ("content-type", "x-amzn-errortype", "x-amzn-requestid")


@contextmanager
def middle(behind: str) -> Iterator[Middle]:
    """A Middle in front of the server at `behind`, running."""
    made = Middle(behind)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name that the standard library calls
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, reply = made.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(reply)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
