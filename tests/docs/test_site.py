"""The site of the docs: built as `make docs` builds it, and self-contained."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a freshly built site; every warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return folder


def matches(site: Path, pattern: str) -> Sequence[str]:
    """What a pattern finds in the pages of the site."""
    return [found for page in site.rglob("*.html") for found in re.findall(pattern, page.read_text())]


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    assert not matches(site, r"<(?:script|img|iframe)[^>]+src=[\"']?(?:https?:)?//")
    assert not matches(site, r"<link[^>]+rel=[\"']?(?:stylesheet|preconnect)[^>]+href=[\"']?(?:https?:)?//")
    assert not matches(site, r"class=[\"']?mermaid")  # the theme would load its renderer from a CDN


def test_the_reference_has_what_the_code_has(site: Path) -> None:
    for page, words in (
        ("commands", ["heldout evaluate", "--compare-with [NAME=]MODEL", "heldout serve"]),
        ("hyperparameters", ["eval_group_size", "an integer from 1 to 4096"]),
        ("metrics", ["eval/reward/pass_at_{k}", "higher is better"]),
        ("run-folder", ["shared_messages", "list&lt;item: float&gt;", "dataset_hash"]),
        ("python", ["MultiTurnRLEvaluator", "get_all"]),
        ("registry", ["model-packages", "base-model"]),
        ("exit-codes", ["130", "MissingExtra"]),
    ):
        text = (site / "reference" / f"{page}.html").read_text()
        assert [word for word in words if word not in text] == [], page


def test_the_readme_is_short_and_names_no_address_of_others() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    assert re.findall(r"https?://(?!127\.0\.0\.1)\S+", text) == []
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*|[\w]+\.(?:py|md|toml|yml))`", (ROOT / page).read_text())
    bases = (ROOT, ROOT / "src" / "heldout", *(room for room in (ROOT / "src" / "heldout").iterdir() if room.is_dir()))
    assert [name for name in named if not any((base / name).exists() for base in bases)] == []
    assert len(named) > 10
