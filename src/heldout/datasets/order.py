"""Shuffles more rows than memory holds: a sample sort through a temporary file.

Each row draws a 64-bit key, and rows are sorted by key. Rows are gathered into chunks. Each chunk is sorted, cut into buckets by
the first bits of the key, and written to the file. At the end each bucket is read from all chunks. Memory is one chunk or one
bucket (a 256th of the dataset), for any number of rows.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from heldout.datasets.arrow import as_numpy, integers

_BUCKETS = 256
_BUCKET_BITS = 8
CHUNK_BYTES = 32 * 1024 * 1024
_KEY = "shuffle_key"


class Shuffle:
    """Takes rows in tables of one schema and returns them in an order that depends only on `seed` and their order.

    With `limit` it returns a uniformly random subset: the first `limit` rows of the whole shuffle. Rows that can no longer be
    among them are dropped on the way.
    Source of the keys: Philox 4x64 (Salmon et al. 2011), whose stream numpy keeps the same on every machine and version.
    """

    def __init__(self, seed: int, limit: int | None, folder: Path, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """seed: 0 to 2**128 - 1. folder: of the temporary file, which has no name and leaves nothing behind.

        chunk_bytes: rows are sorted in memory up to this size.
        """
        self._chunk_bytes = chunk_bytes
        self._keys = np.random.Philox(key=seed)
        self._limit = limit
        self._folder = folder
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._runs: _Runs | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runs is not None:
            self._runs.close()

    def add(self, table: pa.Table) -> None:
        """Adds the next rows."""
        keys = self._keys.random_raw(table.num_rows)
        buckets = (keys >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
        table = table.append_column(_KEY, integers(keys))
        if self._limit is not None:
            # Buckets before this one already hold enough rows to fill the limit.
            last_useful = int(np.searchsorted(np.cumsum(self._counts), self._limit))
            useful = np.flatnonzero(buckets <= last_useful)
            table, buckets = table.take(integers(useful)), buckets[useful]
        self._counts += np.bincount(buckets, minlength=_BUCKETS)
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= self._chunk_bytes:
            self._spill()

    def tables(self) -> Iterator[pa.Table]:
        """Yields the shuffled rows. Call it once, after the last `add`."""
        left = self._limit
        for table in self._sorted_tables():
            part = table.drop_columns([_KEY])
            if left is not None:
                part = part.slice(0, left)
                left -= part.num_rows
            yield part
            if left == 0:
                break

    def _sorted_tables(self) -> Iterator[pa.Table]:
        if self._runs is None:
            yield _sorted(pa.concat_tables(self._pending))
            return
        if self._pending:
            self._spill()
        yield from (_sorted(table) for table in self._runs.buckets())

    def _spill(self) -> None:
        table = _sorted(pa.concat_tables(self._pending))
        if self._runs is None:
            self._runs = _Runs(table.schema, self._folder)
        self._runs.append(table)
        self._pending = []
        self._pending_bytes = 0


class _Runs:
    """Sorted runs in one Arrow file: `_BUCKETS` record batches a run, in bucket order, empty ones included."""

    def __init__(self, schema: pa.Schema, folder: Path) -> None:
        self._schema = schema
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._writer = pa.ipc.new_file(self._file, schema)
        self._number = 0

    def append(self, table: pa.Table) -> None:
        """table: sorted by key."""
        keys = as_numpy(table.column(_KEY))
        edges = np.arange(_BUCKETS, dtype=np.uint64) << np.uint64(64 - _BUCKET_BITS)
        starts = [*np.searchsorted(keys, edges).tolist(), len(keys)]
        for start, end in pairwise(starts):
            self._writer.write_batch(_batch(table.slice(start, end - start)))
        self._number += 1

    def buckets(self) -> Iterator[pa.Table]:
        self._writer.close()
        reader = pa.ipc.open_file(self._file)
        for bucket in range(_BUCKETS):
            batches = [reader.get_batch(run * _BUCKETS + bucket) for run in range(self._number)]
            yield pa.Table.from_batches(batches, self._schema)

    def close(self) -> None:
        self._file.close()


def _sorted(table: pa.Table) -> pa.Table:
    return table.take(integers(np.argsort(as_numpy(table.column(_KEY)), kind="stable")))


def _batch(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
