"""Starts work in the background so that its failure is reported, and computes the waits between tries.

A task that raises is silent until it is awaited, and a thread ends with a traceback that no log keeps. Work that is started here
logs its failure, or passes it to `on_failure`, at the moment it happens.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_MAX_DOUBLINGS = 30
"""A wait doubled this often is beyond every limit. Without a bound, a float overflows after 1,024 failures."""
OnFailure = Callable[[BaseException], None]


def start_task(
    work: Coroutine[Any, Any, _Result], name: str, on_failure: OnFailure | None = None
) -> asyncio.Task[_Result]:
    """Starts `work` on the running loop and logs its failure. A cancellation is not a failure.

    name: a noun phrase for the log. on_failure: called on the loop with the error, instead of the log.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)

    def ended(task: asyncio.Task[_Result]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _report(error, name, on_failure)

    task.add_done_callback(ended)
    return task


def start_thread(work: Callable[[], object], name: str, on_failure: OnFailure | None = None) -> threading.Thread:
    """Starts `work` in a daemon thread. Parameters as for `start_task`; on_failure is called in the thread."""

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # the end of the thread: an error that is not reported here is lost
            _report(error, name, on_failure)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def logged_failure(what: str) -> Iterator[None]:
    """Logs an error raised inside and continues, for one round of repeated work. what: the failure, as the log names it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # a loop that ends here would end unseen; its next round may succeed
        _log.warning("%s: %s", what, str(error) if isinstance(error, OSError) else repr(error))


def backoff_seconds(first: float, num_failures: int, longest: float) -> float:
    """The wait in seconds before the next try: `first`, doubled for each failure, at most `longest`."""
    return min(first * 2.0 ** min(num_failures, _MAX_DOUBLINGS), longest)


def _report(error: BaseException, name: str, on_failure: OnFailure | None) -> None:
    if on_failure is not None:
        on_failure(error)
    else:
        _log.error("%s ended: %s", name, repr(error), exc_info=error)
