"""Reads a prompt dataset: finds its files and the column of the prompts, and checks every row."""

import datetime
import difflib
import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Iterator

from heldout.datasets.formats import FORMATS, FormatRow, Malformed, kind
from heldout.errors import DatasetError, StorageError, did_you_mean, shown
from heldout.job.json_values import stored_json
from heldout.job.records import Prompt
from heldout.storage import Storage, is_remote, split_location

_BLOCK_BYTES = 1024 * 1024
_COMPRESSED = (".bz2", ".gz", ".lz4", ".xz", ".zip", ".zst")


class PromptDataset:
    """The prompts of a file, or of all files below a folder or prefix, in name order, read as a stream.

    An S3 location that is neither a file nor a folder is a prefix of keys, as in AWS. In a folder, files other than .csv,
    .json, .jsonl and .parquet are skipped, and so are hidden files and folders, whose names begin with `.` or `_`
    (`_delta_log`, `_SUCCESS`). The prompt is the column `prompt` if there is one, else the first column; it must be the
    same column in every row. An empty prompt is refused.
    Source: the wire contract for prompt datasets (AWS developer guide, multi-turn RL, assets).
    """

    def __init__(self, location: str, *, is_prefix: bool = False) -> None:
        """is_prefix: a local path that is neither a file nor a folder may be a prefix of several, as in S3."""
        self.location = location
        self._is_prefix = is_prefix
        self.column: str | None = None
        """Name of the column of the prompts; None before the first row is read."""
        self.nearest_column: str | None = None
        """If no column is named `prompt`, the one whose name is nearest to it, apart from the one that is used."""

    def __iter__(self) -> Iterator[Prompt]:
        """Yields every prompt. Raises DatasetError, naming file and line, at the first error, or when there is no prompt."""
        num_prompts = 0
        try:
            storage, names = _find_files(self.location, is_prefix=self._is_prefix)
            for name in names:
                for text, columns in self._prompts_of(storage, name):
                    yield Prompt(num_prompts, text, columns)
                    num_prompts += 1
        except StorageError as error:
            raise DatasetError(f"dataset {self.location!r} cannot be read: {error}") from error
        if not num_prompts:
            raise DatasetError(f"dataset {self.location!r} holds no prompts; it needs at least one row")

    def _prompts_of(self, storage: Storage, name: str) -> Iterator[tuple[str, str]]:
        file_format = FORMATS[_suffix(name)]
        shown_name = _joined(storage.location, name)
        with storage.open(name) as file:
            try:
                for row in file_format.read(file):
                    yield self._prompt_of(row, f"{file_format.unit} {row.number}")
            except Malformed as error:
                raise DatasetError(f"dataset file {shown_name!r}, {error}") from error

    def _prompt_of(self, row: FormatRow, place: str) -> tuple[str, str]:
        columns = row.columns
        column = self._column_of(columns, place)
        prompt = columns.pop(column)
        if not isinstance(prompt, str):
            what = kind(prompt) if prompt is None else f"{kind(prompt)} ({shown(prompt, 40)})"
            raise Malformed(f"{place}: the prompt (column {column!r}) is {what}; it must be a string")
        if not prompt:
            raise Malformed(f"{place}: the prompt (column {column!r}) is empty")
        try:
            prompt.encode()
            return prompt, _json_object(columns)
        except UnicodeEncodeError as error:
            raise Malformed(f"{place}: a string has half of a surrogate pair, which UTF-8 cannot carry") from error

    def _column_of(self, columns: dict[str, object], place: str) -> str:
        if not columns:
            raise Malformed(f"{place}: the row has no columns")
        column = "prompt" if "prompt" in columns else next(iter(columns))
        if self.column is None:
            self.column = column
            self.nearest_column = _nearest(column, columns)
        elif column != self.column:
            raise Malformed(
                f"{place}: the prompt would be column {column!r}, but it is {self.column!r} in the rows before; "
                "name the prompt's column 'prompt' in every row"
            )
        return column


def dataset_hashes(location: str, *, is_prefix: bool = False) -> dict[str, str]:
    """Hashes the files of a local dataset (SHA-256, by name below its folder); empty for a remote dataset.

    Raises DatasetError when there is no such dataset or a file cannot be read.
    """
    if is_remote(location):
        return {}
    try:
        storage, names = _find_files(location, is_prefix=is_prefix)
        return {name: _hash(storage, name) for name in names}
    except StorageError as error:
        raise DatasetError(f"dataset {location!r} cannot be read: {error}") from error


def _hash(storage: Storage, name: str) -> str:
    digest = hashlib.sha256()
    with storage.open(name) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _nearest(column: str, columns: Iterable[str]) -> str | None:
    """Returns the name nearest to `prompt`, whatever its case, among the columns other than the one that is used."""
    if column == "prompt":
        return None
    others = {name.lower(): name for name in columns if name != column}
    near = difflib.get_close_matches("prompt", list(others), n=1, cutoff=0.6)
    return others[near[0]] if near else None


def _find_files(location: str, *, is_prefix: bool) -> tuple[Storage, list[str]]:
    """Finds a dataset's root and the names of its files below it, at least one."""
    folder, name = split_location(location)
    if name:
        parent = Storage.at(folder)
        if parent.exists(name):
            _refuse_compressed(location)
            if _suffix(name) not in FORMATS:
                raise DatasetError(
                    f"dataset {location!r} has none of the suffixes {_suffixes()}; rename it by its format"
                )
            return parent, [name]
    storage = Storage.at(location)
    names = [file.name for file in storage.list()]
    if not names and name and (is_remote(location) or is_prefix):
        storage = Storage.at(folder)
        names = list(_beginning_with(storage, name))
    visible = [name for name in names if not _is_hidden(name)]
    for name in visible:
        # Skipping these would silently evaluate on a part of the prompts.
        _refuse_compressed(_joined(storage.location, name))
    chosen = [name for name in visible if _suffix(name) in FORMATS]
    if chosen:
        return storage, chosen
    if names:
        raise DatasetError(
            f"dataset {location!r} holds no {_suffixes()} file (it holds {names[0]!r}, which has another suffix or is hidden)"
        )
    # An empty folder is one of its parent's children; the hint must not name it.
    hint = did_you_mean(name, (other for other in Storage.at(folder).children() if other != name)) if name else ""
    raise DatasetError(f"dataset {location!r} not found: there is no such file, and no folder with files.{hint}")


def _beginning_with(storage: Storage, prefix: str) -> Iterator[str]:
    """Yields the files whose names below the root begin with `prefix`."""
    for child in storage.children():
        if child.startswith(prefix):
            yield from [child] if storage.exists(child) else (file.name for file in storage.list(child))


def _refuse_compressed(location: str) -> None:
    bare = location[: -len(_suffix(location))] if _suffix(location) in _COMPRESSED else ""
    if _suffix(bare) in FORMATS:
        raise DatasetError(
            f"dataset file {location!r} is compressed; decompress it, or convert it to Parquet, which compresses"
        )


def _suffix(name: str) -> str:
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return (dot + ending).lower()


def _suffixes() -> str:
    *most, last = sorted(FORMATS)
    return f"{', '.join(most)} or {last}"


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _joined(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder.rstrip('/')}/{name}"


def _json_object(columns: dict[str, object]) -> str:
    """Encodes the columns as JSON: NaN as null, times in ISO 8601, bytes in Base64, any other value JSON lacks as its `str()`.

    Raises UnicodeEncodeError for half of a surrogate pair.
    """
    if not columns:
        return "{}"
    text = stored_json(columns, nan=None, default=_plain).decode()
    if "\N{REPLACEMENT CHARACTER}" in text:
        # It may stand for half of a surrogate pair.
        json.dumps(columns, ensure_ascii=False, default=_plain).encode()
    return text


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)
