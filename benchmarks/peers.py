"""The peers' environments: `python -m benchmarks.peers` makes one for each below `benchmarks/.peers`, with uv, from PyPI.

Each has its own because they cannot share one: inspect-ai needs openai 3.4 or later, verifiers an openai before 3.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.measuring import ROOT

FOLDER = ROOT / "benchmarks" / ".peers"
PEERS = {
    "inspect-ai": ("inspect-ai==0.3.285", "openai==3.54.0"),
    "verifiers": ("verifiers==0.4.0", "openai==2.54.0"),
    "gateway": ("rllm-model-gateway==0.1.0",),
}


def python(peer: str) -> str:
    """The interpreter of a peer's environment; exits with the command to run when it is missing."""
    path = FOLDER / peer / "bin" / "python"
    if not path.exists():
        sys.exit(f"no environment for {peer} in {FOLDER}; make it with: python -m benchmarks.peers")
    return str(path)


def make() -> None:
    """Makes the missing environments."""
    uv = Path(sys.executable).with_name("uv")
    for peer, packages in PEERS.items():
        folder = FOLDER / peer
        if not (folder / "bin" / "python").exists():
            subprocess.run([uv, "venv", "--python", "3.11", folder], check=True)
        subprocess.run([uv, "pip", "install", "--python", folder / "bin" / "python", *packages], check=True)


if __name__ == "__main__":
    make()
