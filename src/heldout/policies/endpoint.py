"""Policies behind OpenAI-compatible endpoints: one server, or several replicas that serve the same model.

For each call, `replicas` chooses the server, one request goes out over a kept-alive connection, and `retries` decides
whether and when to try again. Requests and replies pass through as bytes.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import orjson
from yarl import URL

from heldout.errors import ReferenceProblem, did_you_mean, shown
from heldout.exhaustion import exhausted_resource
from heldout.http.connections import Connections, NotConnected, Origin, Response
from heldout.http.headers import Decoder, decoder
from heldout.job.kinds.endpoint import EndpointModel
from heldout.policies.base import ModelCall, ModelReply, PolicySettings, PolicyUnavailable
from heldout.policies.replicas import Replica, Replicas
from heldout.policies.retries import Budget, Retries, TryFailed

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
"""A server that accepts no connection within this time is down. Replies have no such limit: models may be slow, and each attempt
has its own deadline."""

_LISTING_SECONDS = 30.0
"""A server that takes longer to list its models hangs: the list needs no computation."""

_FAILURES_TO_BE_DOWN = 3
"""A replica is down after this many failures of one call without an answer to another. One failure is not enough: a connection
drops when it was idle for too long, and a server that sheds load answers other calls."""

_KEEP_ALIVE_SECONDS = 4.0
"""Less than the 5 s after which uvicorn (vLLM, SGLang) closes an idle connection: a request on a connection that the server is
closing costs a retry."""

_REFUSALS = frozenset({429, 503})


def make(model: EndpointModel, settings: PolicySettings) -> "EndpointPolicy":
    """Build the policy for an endpoint. Raises ReferenceProblem for URLs that cannot be used."""
    return EndpointPolicy(model.urls, model.name, api_key_variable=model.api_key_variable, was_there=settings.was_there)


class EndpointPolicy:
    """A policy reached over HTTP; see `heldout.policies.base.Policy` for what its methods promise.

    urls: base URLs up to and including `/v1`, one a replica. model_name: the name it is served under; empty means the
    only one that the server lists. api_key_variable: environment variable whose value is sent as the Bearer token,
    read at start. listing_seconds: how long a replica may take to list its models, after which it counts as down. was_there:
    whether the server answered before; then `start` waits for one that is down.
    Raises ReferenceProblem for URLs that cannot be used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model_name: str,
        *,
        api_key_variable: str | None = None,
        max_connections: int = 1024,
        retries: Retries | None = None,
        listing_seconds: float = _LISTING_SECONDS,
        was_there: bool = False,
    ) -> None:
        if not urls:
            raise ReferenceProblem("a policy needs at least one URL, such as http://127.0.0.1:8000/v1")
        self._retries = retries or Retries()
        self._replicas = Replicas([_base_url(url) for url in urls], self._retries.clock)
        self._model_name = model_name
        self._api_key_variable = api_key_variable
        self._max_connections = max_connections
        self._listing_seconds = listing_seconds
        self._was_there = was_there
        self._ended_by: PolicyUnavailable | None = None
        self._listing: Mapping[str, Any] | None = None
        self._key: str | None = None
        self._connections: Connections | None = None
        self._heads: dict[tuple[str, str], tuple[Origin, bytes]] = {}

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def listing(self) -> Mapping[str, Any] | None:
        """The model's entry in the list of the first replica that answers."""
        return self._listing

    async def start(self) -> None:
        """Open the connection pool and check that the server has the model.

        Raises ReferenceProblem when the key's variable is not set, nothing answers at any of the URLs, the key is refused,
        or the model is not among those listed. A server without a model list counts as having it.
        """
        self._key = _read_key(self._api_key_variable)
        self._heads.clear()
        self._connections = Connections(
            max_connections=self._max_connections,
            keep_alive_seconds=_KEEP_ALIVE_SECONDS,
            connect_seconds=_CONNECT_SECONDS,
        )
        try:
            await self._check_models()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    async def call(self, call: ModelCall) -> ModelReply:
        budget: Budget | None = None  # most calls need none
        while True:
            if self._ended_by is not None:
                raise self._ended_by
            replica = self._replicas.choose(call.trajectory_id)
            was_down = (
                replica.down_until is not None
            )  # read before the call: a call that began while it was up proves nothing
            try:
                reply = await self._try(replica, call.path, call.body, is_streamed=call.is_streamed)
            except TryFailed as failure:
                budget = budget or Budget(self._retries, self._model_name)
                budget.spend_try(replica.address, failure)
                if failure.is_exhausted:
                    await budget.wait(replica.address, failure)
                    continue
                replica.failures_in_a_row += 1
                is_down = failure.is_down or min(budget.num_tries, replica.failures_in_a_row) >= _FAILURES_TO_BE_DOWN
                is_another_up = is_down and self._replicas.mark_down(replica, str(failure))
                if not is_another_up:
                    await budget.wait(replica.address, failure)
                continue
            replica.failures_in_a_row = 0
            if was_down:
                self._replicas.mark_up(replica)
            return reply

    def move(self, urls: Sequence[str]) -> None:
        """Uses `urls` from the next try on, also for calls in their retries."""
        self._replicas = Replicas([_base_url(url) for url in urls], self._retries.clock)

    def end(self, problem: PolicyUnavailable) -> None:
        """Fails every call with `problem` from its next try on."""
        self._ended_by = problem

    async def _try(self, replica: Replica, path: str, body: bytes | None, *, is_streamed: bool = False) -> ModelReply:
        """Sends one request, a GET without a body. Raises TryFailed for a failure that may be retried."""
        if self._connections is None:
            raise PolicyUnavailable(f"policy {self._model_name!r} is not started")
        origin, request = self._request(replica, path, body)
        try:
            response = await self._connections.request(origin, request)
            if is_streamed and response.status == 200:
                first = await response.read_some()
                chunks = _Chunks(response, first, replica.address, _decoder(response, replica.address))
                return ModelReply(200, _content_type(response), b"", chunks)
            content = await response.read()
        except NotConnected as problem:
            resource = exhausted_resource(problem)
            if resource is not None:
                raise TryFailed(f"cannot be called: out of {resource}", is_exhausted=True) from problem
            raise TryFailed(str(problem), is_down=True) from problem
        except OSError as problem:
            raise TryFailed(f"dropped the connection ({_described(problem)})") from problem
        if response.status in _REFUSALS:
            text = content.decode("utf-8", "replace").replace(self._key or "\0", "***")
            raise TryFailed(
                f"answers {response.status} {shown(text, 200)}", retry_after=response.headers.get("retry-after")
            )
        return ModelReply(response.status, _content_type(response), _decoded(content, response, replica.address))

    def _request(self, replica: Replica, path: str, body: bytes | None) -> tuple[Origin, bytes]:
        """Returns the server and the bytes of a request. The head is cached except for the length."""
        method = "GET" if body is None else "POST"
        known = self._heads.get((replica.address, method + path))
        if known is None:
            known = self._heads[(replica.address, method + path)] = self._head(replica, path, method)
        origin, head = known
        return origin, head + b"\r\n" if body is None else b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

    def _head(self, replica: Replica, path: str, method: str) -> tuple[Origin, bytes]:
        url = replica.url(path)
        lines = [
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {url.host_port_subcomponent}",
            "Accept: */*",
            "Accept-Encoding: identity",
        ]
        if method == "POST":
            lines.append("Content-Type: application/json")
        if self._key:
            lines.append(f"Authorization: Bearer {self._key}")
        origin = Origin(url.host or "", url.port or 80, url.scheme == "https")
        return origin, "".join(f"{line}\r\n" for line in lines).encode("ascii")

    async def _check_models(self) -> None:
        """Checks the model name with the first replica that lists models. The others count as down until they answer a call."""
        replicas = self._replicas.all
        budget = Budget(self._retries, self._model_name)
        while True:
            results = await asyncio.gather(*(self._list_models(replica) for replica in replicas))
            failures = {r: f for r, f in zip(replicas, results, strict=True) if isinstance(f, TryFailed)}
            if len(failures) < len(replicas):
                break
            await self._wait_for_any(failures, budget)
        for replica, result in zip(replicas, results, strict=True):
            if isinstance(result, TryFailed):
                self._replicas.mark_down(replica, str(result))
            else:
                self._check_name(replica, None if result is None else list(result))
                self._listing = self._listing or (result or {}).get(self._model_name)

    async def _wait_for_any(self, failures: Mapping[Replica, TryFailed], budget: Budget) -> None:
        """Waits while a replica may still become ready. Raises ReferenceProblem when none answers, or waiting takes too long."""
        likeliest = min(failures, key=lambda replica: failures[replica].is_down)
        failure = failures[likeliest]
        if failure.is_down and not self._was_there:
            raise _unreachable(failures)
        if failure.is_down and not budget.num_tries:
            _log.warning("model server %s %s; waiting for it, since it answered before", likeliest.address, failure)
        try:
            budget.spend_try(likeliest.address, failure)
            await budget.wait(likeliest.address, failure)
        except PolicyUnavailable as problem:
            raise (_unreachable(failures) if failure.is_down else ReferenceProblem(str(problem))) from problem

    def _check_name(self, replica: Replica, served: list[str] | None) -> None:
        if not self._model_name:
            self._model_name = _only_model(replica, served)
        elif served is not None and self._model_name not in served:
            raise ReferenceProblem(
                f"model {self._model_name!r} is not served at {replica.address}, which has {_listed(served)}."
                f"{did_you_mean(self._model_name, served)}"
            )

    async def _list_models(self, replica: Replica) -> dict[str, Mapping[str, Any]] | TryFailed | None:
        """Returns the models that a replica lists, by name; None if it has no list; the failure if it does not answer."""
        try:
            async with asyncio.timeout(self._listing_seconds):
                reply = await self._try(replica, "/models", None)
        except TimeoutError:
            return TryFailed(f"does not list its models within {self._listing_seconds:g} s", is_down=True)
        except TryFailed as failure:
            return failure
        if reply.status in (401, 403):
            raise ReferenceProblem(self._refused_key(replica, reply.status))
        return _served_models(reply)

    def _refused_key(self, replica: Replica, status: int) -> str:
        if self._api_key_variable is None:
            return (
                f"{replica.address} answers {status}: it wants an API key; name the environment variable that holds it"
            )
        return f"{replica.address} answers {status}: it refuses the API key in environment variable {self._api_key_variable!r}"


class _Chunks(AsyncGenerator[bytes, None]):
    """The body of a streamed reply as it arrives. The first chunk is already there.

    It is a class because a generator function that is closed before its first step would not free the connection.
    """

    def __init__(self, response: Response, first: bytes, address: str, decodes: Decoder | None) -> None:
        self._response = response
        self._first: bytes | None = first
        self._address = address
        self._decoder = decodes

    async def asend(self, value: None) -> bytes:  # noqa: ARG002
        while True:
            chunk, self._first = self._first, None
            if chunk is None:
                chunk = await self._read()
            if not chunk:
                raise StopAsyncIteration
            if self._decoder is None:
                return chunk
            if decoded := self._decode(self._decoder, chunk):
                return decoded

    async def athrow(self, *problem: Any) -> bytes:
        self._response.close()
        raise problem[0]

    async def aclose(self) -> None:
        """Abandon the stream; the server sees a closed connection."""
        self._response.close()

    def _decode(self, decoder: Decoder, chunk: bytes) -> bytes:
        try:
            return decoder.feed(chunk)
        except ValueError as problem:
            raise PolicyUnavailable(f"{self._address} sent {problem}") from problem

    async def _read(self) -> bytes:
        try:
            return await self._response.read_some()
        except OSError as problem:
            raise PolicyUnavailable(f"{self._address} broke off a streamed reply ({_described(problem)})") from problem


def _base_url(url: str) -> URL:
    try:
        base = URL(url)
    except ValueError as problem:
        raise ReferenceProblem(f"model endpoint {url!r} is not a URL: {problem}") from problem
    if base.scheme not in ("http", "https") or not base.host:
        raise ReferenceProblem(f"model endpoint {url!r} is not an http(s) URL, such as http://127.0.0.1:8000/v1")
    if base.user is not None or base.password is not None:
        raise ReferenceProblem(
            f"model endpoint at {base.host!r} has a user or password in its URL;"
            " name an environment variable that holds the key instead"
        )
    return base.with_fragment(None)


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ReferenceProblem(
            f"environment variable {variable!r} is not set; it must hold the API key of the model endpoint"
        )
    if not key.isascii() or not key.isprintable():
        raise ReferenceProblem(f"environment variable {variable!r} holds characters that an API key cannot have")
    return key


def _served_models(reply: ModelReply) -> dict[str, Mapping[str, Any]] | None:
    """Returns the entries of a model list (OpenAI, GET /v1/models) by name; None for any other answer."""
    try:
        listed = orjson.loads(reply.body)["data"] if reply.status == 200 else None
        return None if listed is None else {str(model["id"]): model for model in listed}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _only_model(replica: Replica, served: list[str] | None) -> str:
    way_out = f"name the model: {replica.address}#NAME"
    if not served:
        raise ReferenceProblem(f"{replica.address} lists no models; {way_out}")
    if len(served) > 1:
        raise ReferenceProblem(f"{replica.address} serves {_listed(served)}; {way_out}")
    return served[0]


def _listed(names: Sequence[str]) -> str:
    """Returns up to eight names and the number of further ones."""
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(repr(name) for name in names[:8]) or "no models") + rest


def _unreachable(failures: Mapping[Replica, TryFailed]) -> ReferenceProblem:
    addresses = ", ".join(replica.address for replica in failures)
    return ReferenceProblem(
        f"no model server at {addresses}: it {next(iter(failures.values()))}; start an OpenAI-compatible server there"
        " (such as vllm serve, llama-server) or correct the URL"
    )


def _described(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def _decoder(response: Response, address: str) -> Decoder | None:
    """Returns the decoder of a body. Raises PolicyUnavailable for an encoding that is not known here; none was asked for."""
    try:
        return decoder(response.headers.get("content-encoding"))
    except ValueError as problem:
        response.close()
        raise PolicyUnavailable(f"{address} sent a reply that cannot be read: its {problem}") from problem


def _decoded(body: bytes, response: Response, address: str) -> bytes:
    decodes = _decoder(response, address)
    try:
        return body if decodes is None else decodes.feed(body)
    except ValueError as problem:
        raise PolicyUnavailable(f"{address} sent {problem}") from problem


def _content_type(response: Response) -> str:
    return response.headers.get("content-type", "application/json")
