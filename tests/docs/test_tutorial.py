"""The tutorial as written: its files are created and its commands run in order."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.aws_agents import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.DOTALL | re.MULTILINE)


@contextmanager
def background(commands: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Commands that go on while a page's others run."""
    processes = [subprocess.Popen(command.split(), cwd=folder, env=environment) for command in commands]
    try:
        for command in commands:
            until_answered(int(command.split()[2]))
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=60)


def until_answered(port: int) -> None:
    """Waits until something listens at a port of this machine."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens at port {port}"
        time.sleep(0.05)


def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    page = PAGE.replace("8000", str(free_port())).replace("8001", str(free_port()))
    python_page = (Path(__file__).parents[2] / "docs" / "how-to" / "python.md").read_text()
    [reading] = re.findall(r"^```python\n(.*?)^```$", python_page, re.DOTALL | re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HELDOUT_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    blocks = [(found["language"], found["title"], found["code"]) for found in BLOCK.finditer(page)]
    for _, title, code in blocks:
        if title is not None and "." in title:
            (tmp_path / title).write_text(code)
    servers = [code for language, title, code in blocks if language == "sh" and title is not None]
    printed = ""
    with background(servers, tmp_path, environment):
        for command in (code for language, title, code in blocks if language == "sh" and title is None):
            done = subprocess.run(
                ["sh", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, command + done.stdout[-3_000:] + done.stderr[-3_000:]
            printed += done.stdout
        done = subprocess.run(
            [sys.executable, "-c", reading], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert "tuned is better than base" in done.stdout
    verdict = re.search(r"such as `(tuned is better than [^`]+)`", page)
    assert verdict is not None
    assert verdict[1] in printed, printed
    assert "That is wrong. What is " in printed
    assert "pass  lower(pass@1) >= 0.5" in printed
    assert (tmp_path / "runs/first/report.html").is_file()
