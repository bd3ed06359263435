"""Scripted model servers in processes of their own, for evaluations that run in one too."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def model_server(folder: Path, reply: str = "ok", name: str = "scripted") -> Iterator[str]:
    """A server whose model says `reply`; gives the model as a user names it, `http://...#name`."""
    rules = folder / f"{name}-rules.json"
    rules.write_text(json.dumps([{"reply": {"content": reply}}]))
    process = subprocess.Popen(
        [sys.executable, "-m", "heldout.policies.scripted", "--models", name, "--rules", str(rules)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1#{name}"
    finally:
        process.terminate()
        process.communicate()
