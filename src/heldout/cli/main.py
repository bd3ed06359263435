"""The entry point of the `heldout` command: ends quietly on Ctrl-C from the first moment, and starts as soon as it can."""

import gc
import os
import signal
import sys

from heldout.agents.prestart import end_unused, start_early

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Runs the `heldout` command: see `heldout.cli.evaluate.run_command`."""
    _fill_closed_streams()
    # A shell's background job ignores Ctrl-C; it keeps ignoring it.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        # Not an exception: raised during an import, it would show as a traceback or as a failed import.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    start_early(sys.argv[1:])
    gc.disable()  # there is hardly any garbage yet; searching for it takes a tenth of the time
    from heldout.cli.evaluate import run_command  # most of the start-up time

    gc.enable()
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_command()
    finally:
        end_unused()
        gc.freeze()  # a last search for garbage would take most of the time of an exit


def _fill_closed_streams() -> None:
    """Replaces closed standard streams by the null device: a socket or a journal would take their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  # takes the lowest free number
