"""Copies the prompts of a job from the dataset into the run, checks each row, and reads them from there."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heldout.datasets.arrow import as_numpy, described, integers, strings
from heldout.datasets.files import PromptDataset
from heldout.datasets.order import CHUNK_BYTES, Shuffle
from heldout.errors import DatasetError, RunError
from heldout.job.records import Prompt
from heldout.storage import open_atomic

_FIELDS: "list[pa.Field[Any]]" = [
    described("prompt_index", pa.int64(), "row number of the prompt in the dataset, from 0", nullable=False),
    described("prompt", pa.string(), "text that the agent gets", nullable=False),
    described("columns", pa.string(), "JSON object of the row's other columns", nullable=False),
    described(
        "prompt_hash", pa.string(), "first 16 hexadecimal digits of the SHA-256 of the text in UTF-8", nullable=False
    ),
]
PROMPTS_SCHEMA = pa.schema(_FIELDS)
"""The schema of `prompts.parquet`: a row a prompt, in the order of play."""
PLAY_ORDER_SEED = 2**64
"""Seed of the order of play where the user gives none. No user's seed is this large, so none repeats this order."""

# A row group is what PromptReader holds in memory to serve one row: small, but large enough that a file of ten million
# prompts has some ten thousand of them.
_GROUP_BYTES = 1024 * 1024
_GROUP_ROWS = 1024
_TABLE_ROWS = 128
_READ_SCHEMA = pa.schema(_FIELDS[:3])
# Alternating reads near two positions load each row group once.
_CACHED_GROUPS = 4


@dataclass(frozen=True)
class PromptSource:
    """A selection of prompts to play. Raises DatasetError for a limit or seed out of range."""

    dataset: str
    """A local path or an `s3://` URI: one file, or a folder or prefix of several."""
    limit: int | None = None
    """The most prompts to play: the first rows of the dataset or, with `shuffle_seed`, a uniformly random subset."""
    shuffle_seed: int | None = None
    """Seed of the random order of play, which depends only on it and the dataset's row numbers, and of a random `limit`. None:
    `limit` takes the first rows, and `PLAY_ORDER_SEED` decides their order."""
    is_prefix: bool = False
    """Whether `dataset` may be a common prefix of the paths of several files, as in S3."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DatasetError(f"limit is {self.limit}; it must be an integer from 1 up (how many prompts to play)")
        if self.shuffle_seed is not None and not 0 <= self.shuffle_seed < 2**64:
            raise DatasetError(f"shuffle seed is {self.shuffle_seed}; it must be an integer from 0 to 2**64 - 1")


@dataclass(frozen=True, slots=True)
class PromptCount:
    """The result of `copy_prompts`."""

    number: int
    """Number of prompts."""
    content_hash: str
    """SHA-256, 64 hexadecimal digits: equal when two copies hold the same prompts, indices and order. Other columns and
    the dataset's format do not count."""
    column: str
    """Name of the column that the prompts come from."""
    nearest_column: str | None
    """See `PromptDataset.nearest_column`."""


def copy_prompts(source: PromptSource, destination: Path, *, shuffle_chunk_bytes: int = CHUNK_BYTES) -> PromptCount:
    """Copies a dataset's prompts, each row checked, to the Parquet file `destination` (schema `PROMPTS_SCHEMA`).

    The order is random in either case, so that the prompts played so far are a fair sample of all. The file appears whole or not
    at all. With a limit and no shuffle seed, reading stops at the limit. Memory stays bounded: a few row groups, a chunk of
    `shuffle_chunk_bytes` and a 256th of the dataset.
    Raises DatasetError, naming file and line, for an invalid row; ReferenceProblem when the dataset cannot be
    reached (no such bucket, no credentials); StorageError when `destination` cannot be written.
    """
    with open_atomic(destination) as file, _PromptWriter(file) as writer:
        dataset = PromptDataset(source.dataset, is_prefix=source.is_prefix)
        for table in _selected(dataset, source, destination.parent, shuffle_chunk_bytes):
            writer.write(table)
        return PromptCount(*writer.finish(), dataset.column or "", dataset.nearest_column)


class PromptReader:
    """Reads the prompts of a run by position (0 to `len() - 1`, the order of play) in bounded memory.

    Reading near the last positions is cheap: the row groups around them are kept. Not for use by several threads at once.
    Raises RunError when `path` is not a file that `copy_prompts` wrote.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._parquet = pq.ParquetFile(path, pre_buffer=False)
        except FileNotFoundError as error:
            raise RunError(f"the run has no prompts: {str(path)!r} is not there") from error
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"prompts {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
        if self._parquet.schema_arrow.names != PROMPTS_SCHEMA.names:
            raise RunError(f"{str(path)!r} is not a run's prompts: it has columns {self._parquet.schema_arrow.names}")
        metadata = self._parquet.metadata
        self._ends = list(accumulate(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)))
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, position: int) -> Prompt:
        """Reads the prompt at a position. Raises IndexError outside 0 to `len() - 1`."""
        if not 0 <= position < len(self):
            raise IndexError(f"prompt position {position} is outside 0 to {len(self) - 1}")
        number = bisect_right(self._ends, position)
        start = self._ends[number - 1] if number else 0
        return _prompts(self._group(number).slice(position - start, 1))[0]

    def __iter__(self) -> Iterator[Prompt]:
        for number in range(len(self._ends)):
            group = self._group(number)
            for start in range(0, group.num_rows, _TABLE_ROWS):
                yield from _prompts(group.slice(start, _TABLE_ROWS))

    def indices(self) -> Iterator[int]:
        """Yields the row number in the dataset of each prompt, in the order of play; reads nothing else."""
        for number in range(len(self._ends)):
            table = self._parquet.read_row_group(number, columns=["prompt_index"], use_threads=False)
            yield from as_numpy(table["prompt_index"]).tolist()

    def close(self) -> None:
        """Closes the file and the reader."""
        self._groups.clear()
        self._parquet.close()

    def _group(self, number: int) -> pa.Table:
        if number not in self._groups:
            if len(self._groups) == _CACHED_GROUPS:
                self._groups.popitem(last=False)
            self._groups[number] = self._parquet.read_row_group(number, columns=_READ_SCHEMA.names, use_threads=False)
        self._groups.move_to_end(number)
        return self._groups[number]


class _PromptWriter:
    """Writes prompts in row groups of even size, and counts and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._parquet = pq.ParquetWriter(
            file, PROMPTS_SCHEMA, compression="zstd", use_dictionary=False, write_statistics=["prompt_index"]
        )
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._pending_rows = 0
        self._number = 0
        self._content = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()

    def write(self, table: pa.Table) -> None:
        """table: of `_READ_SCHEMA`."""
        rows = max(1, _TABLE_ROWS if table.nbytes < _GROUP_BYTES else table.num_rows * _GROUP_BYTES // table.nbytes)
        for start in range(0, table.num_rows, rows):
            self._append(table.slice(start, rows))

    def finish(self) -> tuple[int, str]:
        """Ends the file and returns the count and the hash of its prompts."""
        self._flush()
        self._parquet.close()
        return self._number, self._content.hexdigest()

    def _append(self, table: pa.Table) -> None:
        if self._pending_rows + table.num_rows > _GROUP_ROWS or self._pending_bytes + table.nbytes > _GROUP_BYTES:
            self._flush()
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        self._pending_rows += table.num_rows

    def _flush(self) -> None:
        if not self._pending:
            return
        table = pa.concat_tables(self._pending).combine_chunks()
        hashes = [self._count(prompt) for prompt in _prompts(table)]
        table = table.append_column(PROMPTS_SCHEMA.field("prompt_hash"), strings(hashes))
        self._parquet.write_table(table)
        self._pending = []
        self._pending_bytes = self._pending_rows = 0

    def _count(self, prompt: Prompt) -> str:
        text = prompt.text.encode()
        digest = hashlib.sha256(text).digest()
        self._content.update(prompt.index.to_bytes(8, "little"))
        self._content.update(digest)
        self._number += 1
        return digest[:8].hex()


def _selected(
    dataset: PromptDataset, source: PromptSource, folder: Path, shuffle_chunk_bytes: int
) -> Iterator[pa.Table]:
    prompts: Iterable[Prompt] = dataset
    seed = source.shuffle_seed
    if seed is None:
        prompts, seed = islice(prompts, source.limit), PLAY_ORDER_SEED
    with Shuffle(seed, source.limit, folder, chunk_bytes=shuffle_chunk_bytes) as shuffle:
        for table in _tables(prompts):
            shuffle.add(table)
        yield from shuffle.tables()


def _tables(prompts: Iterable[Prompt]) -> Iterator[pa.Table]:
    """Yields tables of `_READ_SCHEMA`, each of at most `_TABLE_ROWS` rows and, but for its last row, `_GROUP_BYTES`."""
    rows: list[Prompt] = []
    num_characters = 0
    for prompt in prompts:
        rows.append(prompt)
        num_characters += len(prompt.text) + len(prompt.columns)
        if len(rows) == _TABLE_ROWS or num_characters >= _GROUP_BYTES:
            yield _table(rows)
            rows = []
            num_characters = 0
    if rows:
        yield _table(rows)


def _table(rows: list[Prompt]) -> pa.Table:
    indices = np.fromiter((row.index for row in rows), dtype=np.int64, count=len(rows))
    columns = [integers(indices), strings([row.text for row in rows]), strings([row.columns for row in rows])]
    return pa.Table.from_arrays(columns, schema=_READ_SCHEMA)


def _prompts(table: pa.Table) -> list[Prompt]:
    columns = (table.column(name).to_pylist() for name in _READ_SCHEMA.names)
    return [Prompt(index, text, other) for index, text, other in zip(*columns, strict=True)]
