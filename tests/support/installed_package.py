"""Third-party packages on the path, as an installer leaves them: modules, and metadata with entry points."""

import shutil
import tomllib
from pathlib import Path


def install(package: Path, site: Path) -> None:
    """Install the modules of a project folder, and the entry points of its pyproject.toml, into the folder `site`."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    for module in package.glob("*.py"):
        shutil.copy(module, site)
