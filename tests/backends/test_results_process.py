"""The results process: its results, and its recovery when it dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heldout.backends.results_process import in_results_process
from heldout.errors import InputError, JobFailed


def where_and_what(name: str) -> tuple[int, str, str | None]:
    return os.getpid(), str(Path.cwd()), os.environ.get(name)


def complain(about: str) -> None:
    raise InputError(f"{about} cannot be")


def divide(by: int) -> float:
    print("whatever is printed does no harm")
    return 1 / by


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fatal:
    """Ends the process that pickles it."""

    def __reduce__(self) -> str:
        die()
        return ""


def reply_to_die_of() -> tuple[bytes, Fatal]:
    return bytes(1_000_000), Fatal()  # some of the reply is out by then


async def test_work_is_done_by_one_other_process_in_the_place_of_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = await in_results_process(where_and_what, "PLACE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "here")
    second = await in_results_process(where_and_what, "PLACE")
    assert second == (first, str(tmp_path), "here")
    assert first != os.getpid()


async def test_an_error_for_the_user_comes_back_as_it_is_and_a_bug_with_its_traceback() -> None:
    with pytest.raises(InputError, match=r"^this cannot be$"):
        await in_results_process(complain, about="this")
    with pytest.raises(ZeroDivisionError):
        await in_results_process(divide, 0)
    assert await in_results_process(divide, 2) == 0.5


async def test_when_the_process_is_killed_the_engine_says_so_and_the_next_work_gets_another() -> None:
    with pytest.raises(JobFailed, match=r"ended with status -9; what was played is kept: resume"):
        await in_results_process(die)
    with pytest.raises(JobFailed, match=r"ended with status -9; what was played is kept: resume"):
        await in_results_process(reply_to_die_of)
    assert await in_results_process(divide, 4) == 0.25


def test_the_results_process_ends_with_its_parent() -> None:
    """Also when that is killed: it holds this test's pipe, which would never end."""
    code = (
        "import asyncio, os; from heldout.backends.results_process import in_results_process\n"
        "from tests.backends.test_results_process import where_and_what\n"
        "print(asyncio.run(in_results_process(where_and_what, 'X'))[0], flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert int(done.stdout) > 0


def test_an_interpreter_that_exits_does_not_wait_for_a_running_call() -> None:
    code = (
        "import time\nfrom heldout.backends.results_process import warm_up\n"
        "from tests.backends.test_results_process import sleep_and_print\n"
        "if __name__ == '__main__':\n    warm_up(sleep_and_print, 30)\n    time.sleep(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "slept" not in done.stderr


def sleep_and_print(seconds: float) -> None:
    time.sleep(seconds)
    print("slept")
