"""`import heldout` gives few names, and loads nothing heavy before one of them is used."""

import importlib.metadata
import subprocess
import sys

import pytest

import heldout


def test_every_public_name_can_be_had() -> None:
    assert heldout.__all__ == sorted(heldout.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in heldout.__all__:
        assert getattr(heldout, name) is not None
    assert dir(heldout) == heldout.__all__


def test_the_version_is_that_of_the_package() -> None:
    assert heldout.__version__ == importlib.metadata.version("heldout")


def test_importing_heldout_needs_no_other_package() -> None:
    code = "import sys, heldout; print([m for m in ('pydantic', 'numpy', 'aiohttp', 'rich', 'orjson') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Evaluator'"):
        _ = heldout.Evaluator
