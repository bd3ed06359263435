"""Standard streams that are closed or full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import os, sys
from heldout.cli.main import main
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


def test_output_to_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [Path(sys.executable).parent / "heldout", "models", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            check=False,
        )
    said = "heldout: what was to be printed finds no space where standard output goes\n"
    assert (done.returncode, done.stderr) == (1, said)
