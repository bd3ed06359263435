"""What a server keeps: a write that fails leaves nothing behind, says why, and does not keep the next from being made."""

import resource
import sqlite3
from pathlib import Path

import pytest

from heldout.errors import RunError
from heldout.service.store import Store
from heldout.service.tags import Tags


def test_after_a_write_for_which_there_was_no_room_the_next_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "service.db")
    # More than SQLite keeps in memory until the transaction ends.
    large = Tags(arn="large", tags={"text": "x" * 8_000_000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(sqlite3.OperationalError, match="disk"):
            store.put(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.find(Tags, "large") is None
    store.put(large)
    store.close()
    assert Store(tmp_path / "service.db").find(Tags, "large") == large


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_text("something else\n" * 100)
    with pytest.raises(RunError, match=r"service\.db' cannot be used: file is not a database; move it away"):
        Store(tmp_path / "service.db")
    assert (tmp_path / "service.db").read_text() == "something else\n" * 100
