"""Runs the command line in this process, with the arguments that a user types."""

import sys

import pytest

from heldout.cli.main import main


def heldout(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["heldout", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
