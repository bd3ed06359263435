"""The record store: names, roles, tags, client tokens and pipeline definitions in one SQLite file, by kind and key.

Progress of jobs and executions is never stored here, because their folders hold it. Each wing defines its own kinds of records; a
new kind needs no change here. A write is durable when the call, or the transaction around it, returns.
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
"""How long a client token is kept. SageMaker documents no time; other services document 8 to 36 hours, most of them 8 or 24."""


class Record(BaseModel):
    """A stored record. Its class name is its kind. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def key(self) -> str:
        """The unique key among records of its kind."""
        raise NotImplementedError


R = TypeVar("R", bound=Record)


class Store:
    """Records in one file, for all threads of one process."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds, for the age of client tokens. Raises RunError if the file at `path` is not such a database."""
        self._path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._depth = 0
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._database.execute("pragma journal_mode=wal")
            self._database.execute("pragma synchronous=full")  # durable before the client gets its reply
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
        """Writes all records of the block or none, while other threads wait. Nested transactions join the outer one.

        Raises StorageError if SQLite cannot write.
        """
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
                # On a full disk SQLite has often rolled back already, and would refuse a second rollback.
                if self._depth == 1 and self._database.in_transaction:
                    self._database.execute("rollback")
                raise
            finally:
                self._depth -= 1

    def _check_file(self) -> None:
        """Raises StorageError if the file was moved or replaced: writes to it would be lost without a trace."""
        if _file_at(self._path) != self._file:
            raise StorageError(f"{str(self._path)!r} was moved or deleted; restore it or restart the server")

    @contextmanager
    def _refusals_explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot write {str(self._path)!r}: {error}") from error

    def put(self, record: Record) -> None:
        """Adds a record or replaces the one with its kind and key."""
        with self.transaction():
            self._database.execute(
                "insert or replace into records values (?, ?, ?)",
                (type(record).__name__, record.key, record.model_dump_json()),
            )

    def change(self, kind: type[R], key: str, **changes: object) -> None:
        """Changes these fields of the current record. A deleted record stays deleted."""
        with self.transaction():
            record = self.find(kind, key)
            if record is not None:
                self.put(record.model_copy(update=changes))

    def find(self, kind: type[R], key: str) -> R | None:
        """The record of this kind and key; None if it does not exist."""
        with self._lock:
            row = self._database.execute(
                "select body from records where kind = ? and key = ?", (kind.__name__, key)
            ).fetchone()
        return None if row is None else kind.model_validate_json(row[0])

    def all(self, kind: type[R], prefix: str = "") -> list[R]:
        """Records of this kind whose key begins with `prefix`, sorted by key."""
        with self._lock:
            rows = self._database.execute(
                "select body from records where kind = ? and substr(key, 1, ?) = ? order by key",
                (kind.__name__, len(prefix), prefix),
            ).fetchall()
        return [kind.model_validate_json(row[0]) for row in rows]

    def remove(self, kind: type[Record], key: str) -> None:
        """Removes a record. A missing record is ignored."""
        with self.transaction():
            self._database.execute("delete from records where kind = ? and key = ?", (kind.__name__, key))

    def once(
        self, operation: str, token: str | None, params: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Calls `make` in one transaction and returns its reply; for a token of the last day, the stored reply.

        Raises ServiceError (ConflictException) if the token was used for a request with other parameters.
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
                    f"client token {token!r} was used for another {operation} request; use a new token for a new request",
                )
            return dict(json.loads(used[1]))

    def forget_token(self, operation: str, token: str) -> None:
        """Makes a client token usable again after its request failed."""
        with self.transaction():
            self._database.execute("delete from tokens where operation = ? and token = ?", (operation, token))

    def _forget_old_tokens(self) -> None:
        self._database.execute("delete from tokens where used_at < ?", (self._clock() - _TOKEN_SECONDS,))


def _file_at(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()
