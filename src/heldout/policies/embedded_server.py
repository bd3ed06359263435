"""The process that runs llama.cpp's server for the embedded policy: `python -m heldout.policies.embedded_server OPTIONS`.

It is a separate process, so that a crash in native code does not end the engine. Once it answers, it prints its address on one
line. It ends with its parent: its standard input closes, or on Linux the kernel kills it.
"""

import ctypes
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

import orjson

_PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl.h: the signal sent to a process when its parent ends."""

_LOG_ERRORS = 1
"""llama.cpp's verbosity that logs errors only: its information lines, several per call, would fill the disk."""

_PROMPT_CACHE_MIB = 1024
"""Memory for the caches of prompts without a slot (llama.cpp's own limit is 8 GiB). More trajectories than slots take turns, and
processing a conversation again takes longer than generating its next turn."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of the child process, passed on its command line as JSON."""

    name: str
    """The served model name."""
    weights: str
    """Path of the GGUF file."""
    adapter: str | None
    """Path of a LoRA adapter as GGUF, applied in full."""
    parallel: int
    """Calls decoded at once: slots."""
    context_tokens: int
    """Longest conversation of a call, reply included: tokens for each slot."""
    threads: int
    connections: int
    """Connections served at once; llama.cpp keeps a thread for each."""
    parent: int
    """Process id of the engine."""

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> "ServerOptions":
        return cls(**orjson.loads(text))


def main(arguments: list[str]) -> int:
    """Serve until the standard input closes. Returns 1 when the model or the adapter does not load."""
    options = ServerOptions.from_json(arguments[0])
    _end_with_parent(options.parent)
    announcements = os.dup(1)
    os.dup2(2, 1)  # output of native code goes to the log
    try:
        server = _start(options)
    except RuntimeError:  # the native code has logged why
        return 1
    os.write(announcements, f"{server.listening_address}\n".encode())
    threading.Event().wait()
    return 0


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the line above
            os._exit(1)
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _start(options: ServerOptions) -> Any:
    """Start llama.cpp's server and wait until it answers. Raises RuntimeError when the model or the adapter does not load."""
    import xllamacpp  # the extra `embedded`

    params = xllamacpp.CommonParams()
    params.model.path = options.weights
    params.model_alias = {options.name}
    if options.adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options.adapter, 1.0)]
    params.n_parallel = options.parallel
    params.n_ctx = options.parallel * options.context_tokens
    params.n_threads_http = options.connections + 2  # one more for the model list, and one for a health check
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.fit_params = False  # a trial load that takes a second, to fit models into GPU memory
    params.verbosity = _LOG_ERRORS
    params.ui = params.endpoint_slots = False
    # The defaults of OpenAI's API. llama.cpp's own defaults cut off the tail of the distribution, so temperature 1 would not
    # sample from the policy's own distribution.
    params.sampling.temp = params.sampling.top_p = 1.0
    params.sampling.top_k = 0
    params.sampling.min_p = 0.0
    return xllamacpp.Server(params)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
