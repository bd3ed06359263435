"""Packages installed into a folder of their own, with the metadata that an installer writes."""

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def install(package: Path, target: Path) -> None:
    """Install the modules of a project into `target`, as `pip install --target` does: its files and its `.dist-info`.

    package: a folder with `pyproject.toml` and modules. Needs no build backend and no network.
    """
    project: Mapping[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    information = target / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    for module in package.glob("*.py"):
        shutil.copy(module, target)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (information / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{point} = {value}\n" for point, value in points.items())
            for group, points in project["entry-points"].items()
        )
    )
