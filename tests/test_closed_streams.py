"""The command in a program that closed the standard streams before it started it."""

import subprocess
import sys

import pytest

_CODE = """
import os, sys
from heldout.cli import main
sys.argv = ["heldout", "models"]
try:
    main()
except SystemExit as ended:
    nowhere = os.stat(os.devnull).st_rdev
    os._exit(ended.code or sum(os.fstat(number).st_rdev != nowhere for number in {closed}))
"""


@pytest.mark.parametrize(
    ("closing", "closed"), [("<&- >&- 2>&-", (0, 1, 2)), (">&-", (1,)), ("2>&-", (2,)), ("<&-", (0,))]
)
def test_nothing_else_gets_the_number_of_a_stream_that_was_closed(closing: str, closed: tuple[int, ...]) -> None:
    code = _CODE.replace("{closed}", str(closed))
    done = subprocess.run(["bash", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, code], timeout=60, check=False)
    assert done.returncode == 0
