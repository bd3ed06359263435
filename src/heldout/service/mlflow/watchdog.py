"""A watchdog process that runs one MLflow server and ends it when this server ends, also by kill -9.

    python -m heldout.service.mlflow.watchdog COMMAND...

It starts in a session of its own and runs the command there. Its standard input is a pipe from the server. When the pipe closes,
the watchdog sends SIGTERM to the session, and SIGKILL after `STOP_SECONDS`.
"""

import os
import signal
import subprocess
import sys
import threading
import time

STOP_SECONDS = 5.0
"""Time from SIGTERM to SIGKILL for MLflow's server and its workers."""


def main() -> int:
    """Runs the command given as arguments and returns its exit status."""
    # The signal goes to the whole session; this process must outlive the others to kill those that remain.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return process.wait()


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(STOP_SECONDS)  # if the command ends in this time, so does this process
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
