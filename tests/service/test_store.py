"""The record store: failed writes, foreign files, and the lifetime of client tokens."""

import resource
from pathlib import Path

import pytest

from heldout.errors import RunError, StorageError
from heldout.service.store import Store
from heldout.service.tags import Tags
from heldout.service.wire.faults import ServiceError


def test_a_write_succeeds_after_one_that_failed_on_a_full_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "service.db")
    # More than SQLite keeps in memory until the transaction ends.
    large = Tags(arn="large", tags={"text": "x" * 8_000_000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*service\.db': .*disk"):
            store.put(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.find(Tags, "large") is None
    store.put(large)
    store.close()
    assert Store(tmp_path / "service.db").find(Tags, "large") == large


def test_a_file_that_is_not_a_database_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_text("something else\n" * 100)
    with pytest.raises(RunError, match=r"service\.db' cannot be used: file is not a database; move it away"):
        Store(tmp_path / "service.db")
    assert (tmp_path / "service.db").read_text() == "something else\n" * 100


def test_a_client_token_is_kept_for_a_day(tmp_path: Path) -> None:
    now, made = [1_000_000.0], list[int]()

    def ask(store: Store, size: int = 1) -> int:
        def make() -> dict[str, int]:
            made.append(size)
            return {"Number": len(made)}

        return int(store.once("CreateThing", "token", {"Size": size}, make)["Number"])

    store = Store(tmp_path / "service.db", clock=lambda: now[0])
    assert ask(store) == 1
    now[0] += 23 * 3600
    assert ask(store) == 1
    with pytest.raises(ServiceError, match="client token 'token' was used for another CreateThing request"):
        ask(store, size=2)
    now[0] += 2 * 3600
    assert ask(store, size=2) == 2  # the token has expired while the server was running
    store.close()
    now[0] += 25 * 3600
    store = Store(tmp_path / "service.db", clock=lambda: now[0])
    now[0] -= 25 * 3600
    assert ask(store, size=3) == 3  # the token has expired before the restart
    store.close()


def test_a_moved_database_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    store = Store(tmp_path / "state" / "service.db")
    (tmp_path / "state").rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"service\.db' was moved or deleted; restore it"):
            store.put(Tags(arn="a", tags={}))
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "service.db").touch()  # another server's
    (tmp_path / "state" / "service.db").unlink()
    (tmp_path / "state").rmdir()
    (tmp_path / "moved").rename(tmp_path / "state")
    store.put(Tags(arn="a", tags={}))
    store.close()
    assert Store(tmp_path / "state" / "service.db").find(Tags, "a") is not None
