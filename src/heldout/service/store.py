"""What no folder holds: names, roles, tags, client tokens, pipeline definitions. One SQLite file of records by kind and key.

How far a job or an execution has come is never here: that is in its folder. A record is a frozen model of its own room; a new
kind needs no change here. What was written is durable when the call, or the transaction around it, returns.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from heldout.errors import RunError, StorageError
from heldout.service.wire.faults import ServiceError

_SCHEMA = """
create table if not exists records (kind text, key text, body text not null, primary key (kind, key)) without rowid;
create table if not exists tokens (
    operation text, token text, digest text not null, reply text not null, used_at real not null, primary key (operation, token)
) without rowid;
create index if not exists tokens_by_age on tokens (used_at);
"""
_TOKEN_SECONDS = 24 * 3600.0
"""How long a client token is remembered. SageMaker does not say; services that do say 8 to 36 hours, most of them 8 or 24."""


class Record(BaseModel):
    """Something that is kept; its class is its kind. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def key(self) -> str:
        """What it is found by among its kind."""
        raise NotImplementedError


R = TypeVar("R", bound=Record)


class Store:
    """Records in one file; of all threads of one process."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix time, seconds, by which client tokens age. Raises RunError when what is at `path` is no such file."""
        self._path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._depth = 0
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._database.execute("pragma journal_mode=wal")
            self._database.execute("pragma synchronous=full")  # a client was told that it is done
            self._database.executescript(_SCHEMA)
            self._forget_old_tokens()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise RunError(f"{str(path)!r} cannot be used: {error}; move it away, or choose another --state") from error
        self._file = _file_at(path)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written inside, and no other thread between. Raises StorageError when it cannot be."""
        with self._lock, self._refusals_explained():
            if self._depth == 0:
                self._check_file()
                self._database.execute("begin immediate")
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._database.execute("commit")
            except BaseException:
                # Of what there is no room for, SQLite has often rolled back by itself, and would refuse to do it again.
                if self._depth == 1 and self._database.in_transaction:
                    self._database.execute("rollback")
                raise
            finally:
                self._depth -= 1

    def _check_file(self) -> None:
        """What is written to a file that was taken away is lost, and nobody would notice before the next start."""
        if _file_at(self._path) != self._file:
            raise StorageError(f"{str(self._path)!r} was taken away; bring it back, or start the server again")

    @contextmanager
    def _refusals_explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot write {str(self._path)!r}: {error}") from error

    def put(self, record: Record) -> None:
        """Adds a record, or replaces the one of its kind and key."""
        with self.transaction():
            self._database.execute(
                "insert or replace into records values (?, ?, ?)",
                (type(record).__name__, record.key, record.model_dump_json()),
            )

    def change(self, kind: type[R], key: str, **changes: object) -> None:
        """Replaces these fields of a record, whatever became of the others meanwhile; one that is gone stays gone."""
        with self.transaction():
            record = self.find(kind, key)
            if record is not None:
                self.put(record.model_copy(update=changes))

    def find(self, kind: type[R], key: str) -> R | None:
        """The record of this kind and key; None: there is none."""
        with self._lock:
            row = self._database.execute(
                "select body from records where kind = ? and key = ?", (kind.__name__, key)
            ).fetchone()
        return None if row is None else kind.model_validate_json(row[0])

    def all(self, kind: type[R], prefix: str = "") -> list[R]:
        """The records of this kind whose key begins so, by key."""
        with self._lock:
            rows = self._database.execute(
                "select body from records where kind = ? and substr(key, 1, ?) = ? order by key",
                (kind.__name__, len(prefix), prefix),
            ).fetchall()
        return [kind.model_validate_json(row[0]) for row in rows]

    def remove(self, kind: type[Record], key: str) -> None:
        """Forgets a record; one that is not there is no error."""
        with self.transaction():
            self._database.execute("delete from records where kind = ? and key = ?", (kind.__name__, key))

    def once(
        self, operation: str, token: str | None, params: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """`make()`, all of whose writes are one transaction; for a client token of the last day, what it gave then.

        Raises ServiceError (ConflictException) when the token came with another request before.
        """
        with self.transaction():
            if token is None:
                return make()
            self._forget_old_tokens()
            digest = _digest(params)
            used = self._database.execute(
                "select digest, reply from tokens where operation = ? and token = ?", (operation, token)
            ).fetchone()
            if used is None:
                reply = make()
                self._database.execute(
                    "insert into tokens values (?, ?, ?, ?, ?)",
                    (operation, token, digest, json.dumps(reply), self._clock()),
                )
                return reply
            if used[0] != digest:
                raise ServiceError(
                    "ConflictException",
                    f"client token {token!r} was used for another {operation} request; a new request needs a new one",
                )
            return dict(json.loads(used[1]))

    def forget_token(self, operation: str, token: str) -> None:
        """Makes a client token usable again: what it stood for has come to nothing."""
        with self.transaction():
            self._database.execute("delete from tokens where operation = ? and token = ?", (operation, token))

    def _forget_old_tokens(self) -> None:
        self._database.execute("delete from tokens where used_at < ?", (self._clock() - _TOKEN_SECONDS,))


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file it is; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()
