"""The page for users of the hosted service: its commands and its Python, run in order as written."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.agents_support import AGENTS
from tests.support.aws_agents import free_port
from tests.support.cloud import write_prompts
from tests.support.model_servers import model_server

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "hosted-service.md").read_text()
HELDOUT = str(Path(sys.executable).parent / "heldout")


def blocks(language: str) -> list[str]:
    """The page's code in one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@contextmanager
def serving(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A server, started by the page's command."""
    process = subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving on http://127.0.0.1:")
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return done.stdout


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    [registry] = blocks("toml")
    server, client, logs, evaluate, evaluate_here = blocks("sh")
    create_job, evaluator = blocks("python")
    port, runtime_port = free_port(), free_port()
    (tmp_path / "agent.py").write_text((AGENTS / "agreeing.py").read_text())
    for folder in (tmp_path, tmp_path / "bucket"):
        write_prompts(folder / "held-out.jsonl", range(8))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HELDOUT_"))}
    environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "PATH": f"{Path(HELDOUT).parent}:{os.environ['PATH']}"}
    environment |= dict(re.findall(r"(\w+)=(\S+)", server.splitlines()[0]))

    with model_server(tmp_path, "no", "base") as base, model_server(tmp_path, "yes", "tuned") as tuned:
        registry = registry.replace("http://127.0.0.1:8000/v1#gpt-oss-20b", base)
        (tmp_path / "names.toml").write_text(registry.replace("http://127.0.0.1:8001/v1#tuned", tuned))
        (tmp_path / "buckets.toml").write_text(registry[registry.index("[buckets") :])
        with serving(server.splitlines()[1].replace("8765", str(port)), tmp_path, environment):
            environment |= dict(re.findall(r"(\w+)=(\S+)", client.replace("8765", str(port))))
            assert run([sys.executable, "-c", create_job], tmp_path, environment) == "InProgress\n"
            if shutil.which("aws"):
                assert '"events"' in run(["sh", "-c", logs], tmp_path, environment)
            environment["HELDOUT_REGISTRY"] = (
                "buckets.toml"  # the output is the server's folder, not an S3 of the client's
            )
            assert "fine-tuned-model-eval is better" in run([sys.executable, "-c", evaluator], tmp_path, environment)
            assert "pass@1" in run(["sh", "-c", evaluate], tmp_path, environment)
            here = evaluate_here.replace("http://127.0.0.1:8000/v1#my-model", tuned)
            here = here.replace("https://my-tunnel.example", f"http://127.0.0.1:{runtime_port}")
            assert "pass@1" in run(["sh", "-c", here], tmp_path, environment)
    assert len(list(tmp_path.glob("bucket/output/**/rollouts.parquet"))) == 4
    assert len(list(tmp_path.glob("runs/*/tuned/rollouts.parquet"))) == 1
