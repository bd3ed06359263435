"""A process between this server and one of MLflow's, so that MLflow's ends when this server does, however that ends.

    python -m heldout.service.mlflow.keeper COMMAND...

It is started in a session of its own and runs the command in it. Its standard input is a pipe that closes with the server, by
kill -9 too: then everything in the session is told to end, and killed if it has not in time.
"""

import os
import signal
import subprocess
import sys
import threading
import time

STOP_SECONDS = 5.0
"""For MLflow's server and its workers, from being told to end to being killed."""


def main() -> int:
    """Runs the command of the command line to its end; its exit status."""
    # The signal is for the whole session; this process has to outlast the others to kill those that stay.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return process.wait()


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(STOP_SECONDS)  # this process has ended by then if the command has
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
