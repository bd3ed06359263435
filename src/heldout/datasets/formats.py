"""Reads the four file formats of prompts, each as a stream of rows.

A reader takes an open binary file and yields `FormatRow`s; it holds a few rows in memory, however long the file. It raises
`Malformed`, which names the place but not the file.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from heldout.errors import HeldoutError

# Large enough that decoding, not calls, takes the time; small enough to hold several.
_CHUNK_CHARACTERS = 1024 * 1024
# Rows of a Parquet file become Python objects this many at a time: a row may hold a whole document or image.
_PARQUET_ROWS = 256
_PARQUET_BUFFER_BYTES = 2 * 1024 * 1024
# A literal cut off by the end of a chunk is reported at most this far before it (the longest is -Infinity, or \\uXXXX).
_CUT_CHARACTERS = 16
_SPACE = re.compile(r"[ \t\r\n]*")


class FormatRow(NamedTuple):
    """One row of a file."""

    number: int
    """From 1: the line of a text file it starts on, or its number in a file without lines."""
    columns: dict[str, object]


class Malformed(Exception):
    """A file or a row that does not match its format; `str()` gives the place and the problem in one line."""


class Format(NamedTuple):
    """One file format."""

    unit: str
    """The unit of `FormatRow.number`: `line` or `row`."""
    read: Callable[[BinaryIO], Iterator[FormatRow]]


def read_json_lines(file: BinaryIO) -> Iterator[FormatRow]:
    """Reads one JSON object a line, UTF-8; empty lines are skipped."""
    for number, line in _lines(file):
        if line and not line.isspace():
            yield FormatRow(number, _row(_decoded(_text(line, number), number), number))


def read_json(file: BinaryIO) -> Iterator[FormatRow]:
    """Reads one JSON array of objects, UTF-8, object by object."""
    text = _JsonText(file)
    opening = text.next_character()
    if opening == "":
        return
    if opening != "[":
        raise Malformed(
            f"line {text.line}: the file is not a JSON array of objects (if it is JSON Lines, name it .jsonl)"
        )
    text.skip()
    is_first = True
    while (character := text.next_character()) != "]":
        if not is_first:
            if character != ",":
                raise Malformed(f"line {text.line}: {_quoted(character)} where ',' or ']' should follow a row")
            text.skip()
            text.next_character()
        is_first = False
        number = text.line
        yield FormatRow(number, _row(text.value(), number))
    text.skip()
    if character := text.next_character():
        raise Malformed(f"line {text.line}: {_quoted(character)} after the end of the array")


def read_csv(file: BinaryIO) -> Iterator[FormatRow]:
    """Reads comma-separated values (RFC 4180), UTF-8, with a header row; all values are strings, with quoted line ends kept."""
    # By default Python's reader refuses fields over 128 KiB; prompts may be longer. The limit is one of the whole process.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((_text(line, number) for number, line in _lines(file)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise Malformed(f"line {number}: not CSV ({error})") from error
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = _checked_header(fields)
        elif len(fields) != len(header):
            raise Malformed(
                f"line {number}: {len(fields)} fields where the header has {len(header)} (is a quote missing?)"
            )
        else:
            yield FormatRow(number, dict(zip(header, fields, strict=True)))


def read_parquet(file: BinaryIO) -> Iterator[FormatRow]:
    """Reads an Apache Parquet file and decodes pages on demand, so that row groups may have any size."""
    # Slow to import, and a job whose prompts are text starts without it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pyarrow reads exactly what it needs; a buffer in between would fetch the same bytes again after each seek.
    source = file.raw if isinstance(file, io.BufferedReader) else file
    number = 0
    try:
        parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
            for columns in _parquet_rows(batch, number):
                number += 1
                yield FormatRow(number, columns)
    except HeldoutError:
        raise
    except UnicodeDecodeError as error:
        raise Malformed(f"row {number + 1} or one of the {_PARQUET_ROWS} after it: a string is not UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        place = f"after row {number}" if number else "the file"
        raise Malformed(f"{place}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def _parquet_rows(batch: Any, before: int) -> Iterator[dict[str, object]]:
    """Yields the rows of a record batch. before: rows of the file before it.

    A column that Python has no values for becomes text. Raises Malformed, naming row and column, if that is impossible too.
    """
    names = batch.schema.names
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise Malformed(f"the file has column {twice!r} twice")
    columns = [_parquet_values(name, column, before) for name, column in zip(names, batch.columns, strict=True)]
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


def _parquet_values(name: str, column: Any, before: int) -> list[object]:
    """Returns the values of a column: pyarrow's Python values, or text for those that Python cannot hold.

    Python has no times to the nanosecond, and no dates beyond the year 9999. Raises Malformed for a value without a text.
    """
    import pyarrow as pa

    try:
        return list(_without_nanoseconds(column).to_pylist())
    except UnicodeDecodeError:
        raise
    except Exception:  # noqa: BLE001 - pyarrow raises several kinds for values that it cannot convert
        pass
    try:
        return list(_as_text(column).to_pylist())
    except (pa.ArrowException, ValueError):
        return [_text_of(value, f"row {before + place + 1}: column {name!r}") for place, value in enumerate(column)]


def _without_nanoseconds(column: Any) -> Any:
    """Casts times to the nanosecond, also those in lists and structs, to text: pyarrow needs pandas for their Python values."""
    if "[ns" not in str(column.type):
        return column
    kind = _text_type(column.type)
    return column.cast(kind) if str(kind) != "string" else _as_text(column)


def _text_type(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _text_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_text_type(kind.value_type))
    return pa.string() if "[ns" in str(kind) else kind


def _as_text(column: Any) -> Any:
    """Casts a column to text; a `T` stands between date and time, as in ISO 8601."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.replace_substring_regex(column.cast(pa.string()), r"^(\d{4,}-\d\d-\d\d) ", r"\1T")


def _text_of(value: Any, place: str) -> str | None:
    try:
        return str(value) if value.is_valid else None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Malformed(
            f"{place} holds a {value.type} that cannot be read ({reason}); write it as text, or leave the column out"
        ) from error


FORMATS = {
    ".csv": Format("line", read_csv),
    ".json": Format("line", read_json),
    ".jsonl": Format("line", read_json_lines),
    ".parquet": Format("row", read_parquet),
}
"""Each format by the suffix of its file names, in lower case."""


class _JsonText:
    """A moving window over a JSON text that is too long for memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._is_at_end = False
        self._line = 1
        self._counted = 0

    @property
    def line(self) -> int:
        """The line of the current position, from 1."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def next_character(self) -> str:
        """Moves to the next character that is no white space and returns it; empty at the end of the text."""
        while True:
            found = _SPACE.match(self._text, self._position)
            self._position = found.end() if found else self._position
            if self._position < len(self._text) or self._is_at_end:
                return self._text[self._position : self._position + 1]
            self._grow()

    def skip(self) -> None:
        """Moves past the current character."""
        self._position += 1

    def value(self) -> object:
        """Parses the JSON value at the current position and moves behind it."""
        while True:
            try:
                value, self._position = _scan(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._is_at_end or not self._may_be_cut(error):
                    raise Malformed(f"line {self.line}: not JSON ({_reason(error)})") from error
                self._grow()
            except (ValueError, RecursionError) as error:
                raise Malformed(f"line {self.line}: not JSON ({error})") from error
            else:
                return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT_CHARACTERS

    def _grow(self) -> None:
        line = self.line
        kept = self._text[self._position :]
        # Doubling the window keeps the work linear in the length of the longest row.
        data = self._file.read(max(_CHUNK_CHARACTERS, len(kept)))
        try:
            self._text = kept + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise Malformed(f"line {line} or later: not UTF-8") from error
        self._position = self._counted = 0
        self._is_at_end = not data


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"line {number}: not UTF-8") from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


# Python's own decoder, because it keeps integers of any length where faster ones round them to floats.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_scan = _DECODER.raw_decode


def _decoded(line: str, number: int) -> object:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise Malformed(f"line {number}: not JSON ({_reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise Malformed(f"line {number}: not JSON ({error})") from error


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg[:1].lower()}{error.msg[1:]}, column {error.colno}"


def _row(value: object, number: int) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Malformed(
            f'line {number}: {kind(value)} where a row should be a JSON object, such as {{"prompt": "..."}}'
        )
    return value


def _quoted(character: str) -> str:
    return repr(character) if character else "the file ends"


def _checked_header(header: list[str]) -> list[str]:
    twice = next((name for position, name in enumerate(header) if name in header[:position]), None)
    if twice is not None:
        raise Malformed(f"line 1: the header has column {twice!r} twice")
    return header


def kind(value: object) -> str:
    """Names the JSON type of a value, with an article: `a number`, `an array`."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"
