"""The `heldout` command, before anything is loaded: Ctrl-C ends it in silence from the first moment on."""

import gc
import os
import signal
import sys

from heldout.agents.prestart import close_ahead, open_ahead

_EXIT_INTERRUPTED = 130


def main() -> None:
    """The `heldout` command: see `heldout.cli.evaluate.run_command`."""
    _fill_closed_streams()
    # A job in a shell's background ignores Ctrl-C, and goes on to.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        # No exception: raised in the middle of an import, it shows as a traceback or as an import that failed.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    open_ahead(sys.argv[1:])
    gc.disable()  # there is next to no garbage yet, and looking for it takes a tenth of the time
    from heldout.cli.evaluate import run_command  # most of the time that it takes to start

    gc.enable()
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_command()
    finally:
        close_ahead()
        gc.freeze()  # all of it goes: looking through it first for garbage takes most of the time that an exit takes


def _fill_closed_streams() -> None:
    """Where a standard stream was closed there is one that leads nowhere: a socket or a journal would take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  # it takes the lowest number that is free
