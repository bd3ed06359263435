"""The notebook that a user starts with, executed as Jupyter would."""

import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = "quickstart.ipynb"
CELL_SECONDS = 300
"""A cell that takes longer hangs."""


def test_the_quickstart_notebook_runs_and_shows_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "examples"
    notebook = nbformat.read(folder / NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    _play_fewer_prompts(notebook)
    nbclient.NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = {cell["id"]: str(cell.get("outputs")) for cell in notebook["cells"]}
    assert "pass@1" in shown["results"] or "pass_at_1" in shown["results"]
    assert "Succeeded" in shown["wait"]
    assert "playing 4 rollouts" in shown["wait"]
    assert "prompt_index" in shown["frames"]
    assert "/#/experiments/" in shown["mlflow"]
    assert len(list((folder / "runs").glob("*/*/rollouts.parquet"))) == 1
    (panel,) = (cell["outputs"] for cell in notebook["cells"] if cell["id"] == "wait")
    assert [output["output_type"] for output in panel] == ["display_data"], "one panel, drawn again in its place"


def _play_fewer_prompts(notebook: nbformat.NotebookNode) -> None:
    """Two in the place of eight: the same cells, sooner."""
    (cell,) = (cell for cell in notebook["cells"] if "islice(file, 8)" in cell["source"])
    cell["source"] = cell["source"].replace("islice(file, 8)", "islice(file, 2)")


def test_the_quickstart_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(EXAMPLES / NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert all(cell.get("execution_count") is None for cell in notebook["cells"])
