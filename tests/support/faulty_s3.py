"""A proxy in front of an S3 service: it refuses, cuts short and delays requests, and loses replies, as a network does."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>'


@dataclass
class Fault:
    """What happens to the requests of one method for one object."""

    method: str
    key: str
    """The end of the object's key; empty for every object."""
    times: int
    status: int = 0
    """Replies with this status, without asking the service; 0 asks it."""
    code: str = ""
    is_reply_lost: bool = False
    """Closes the connection after the service has answered."""
    reply_status: int = 0
    """Replies with this status after the service has done what was asked."""
    body_bytes: int | None = None
    """Closes the connection after this many bytes of the body."""
    before: Callable[[], None] | None = None
    """Called before the service is asked; the request waits for it."""
    met: int = 0
    """Requests that this fault has met."""


class FaultyService:
    """The address of the proxy, and its faults. Without a fault it passes everything on."""

    def __init__(self, behind: str) -> None:
        self.url = ""
        self._behind = behind
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str, key: str = "", *, times: int = 1_000_000, **what: Any) -> Fault:
        """Adds a fault for the next `times` requests of a method for objects whose key ends in `key`."""
        fault = Fault(method, key, times, **what)
        self._faults.append(fault)
        return fault

    def refuse(
        self, method: str, key: str = "", *, times: int = 1_000_000, status: int = 403, code: str = "Denied"
    ) -> Fault:
        """Refuses requests."""
        return self.add(method, key, times=times, status=status, code=code)

    def cut_off(self) -> None:
        """Refuses everything, as for a machine without a network."""
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            self.refuse(method)

    def heal(self) -> None:
        """Removes all faults."""
        self._faults.clear()

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The first fault that meets this request."""
        with self._lock:
            for fault in self._faults:
                if fault.method == method and urlsplit(path).path.endswith(fault.key) and fault.met < fault.times:
                    fault.met += 1
                    return fault
        return None

    def ask(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Passes a request on."""
        connection = http.client.HTTPConnection(urlsplit(self._behind).netloc, timeout=60)
        try:
            connection.request(method, path, body, dict(headers.items()))
            reply = connection.getresponse()
            dropped = {"transfer-encoding", "connection", "date", "server"}
            kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in dropped]
            return reply.status, kept, reply.read()
        finally:
            connection.close()


@contextmanager
def faulty_service(behind: str) -> Iterator[FaultyService]:
    """A proxy in front of the service at `behind`, running."""
    made = FaultyService(behind)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the name that the standard library calls
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = made.fault_of(self.command, self.path)
            if fault is None:
                self._reply(*made.ask(self.command, self.path, self.headers, body))
                return
            if fault.before is not None:
                fault.before()
            if fault.status:
                self._refuse(fault.status, fault.code)
                return
            status, headers, reply = made.ask(self.command, self.path, self.headers, body)
            if fault.is_reply_lost:
                self.close_connection = True
            elif fault.reply_status:
                self._refuse(fault.reply_status, fault.code)
            else:
                self._reply(status, headers, reply, fault.body_bytes)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def _refuse(self, status: int, code: str) -> None:
            self._reply(status, [("Content-Type", "application/xml")], _ERROR.format(code=code).encode())

        def _reply(
            self, status: int, headers: list[tuple[str, str]], body: bytes, body_bytes: int | None = None
        ) -> None:
            self.send_response(status)
            if not any(name.lower() == "content-length" for name, _ in headers):
                headers = [*headers, ("Content-Length", str(len(body)))]
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:body_bytes])
            if body_bytes is not None:
                self.close_connection = True

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
