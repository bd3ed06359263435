"""Builds Arrow arrays straight from memory.

`pyarrow.array` and `to_numpy` first import pandas, if it is installed, to check whether their input is a pandas object. That
takes more than a second and 60 MB. A job must not spend the second before its first model call, so the conversions here avoid
both functions. Later calls of them avoid the import through `leave_pandas_out`.
"""

import sys
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

IntArray = NDArray[np.int64] | NDArray[np.uint64]


def integers(values: IntArray) -> Any:
    """Returns a pyarrow array of the same type over the same memory. values: shape (n,)."""
    kind = pa.int64() if values.dtype == np.int64 else pa.uint64()
    return pa.Array.from_buffers(kind, len(values), [None, _buffer(np.ascontiguousarray(values))])


def strings(values: Sequence[str]) -> Any:
    """Returns a pyarrow array of strings. Raises UnicodeEncodeError for half of a surrogate pair, OverflowError from 2 GiB up."""
    encoded = [value.encode() for value in values]
    offsets = np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int32, count=len(encoded) + 1)
    return pa.StringArray.from_buffers(len(encoded), _buffer(offsets), pa.py_buffer(b"".join(encoded)))


def as_numpy(column: Any) -> Any:
    """Returns the numbers of a pyarrow column without nulls as a read-only numpy array of shape (n,)."""
    return np.from_dlpack(column.combine_chunks())


@cache
def leave_pandas_out() -> None:
    """Hides pandas from pyarrow's one check for it, so that no later conversion imports it.

    `to_pandas` still works afterwards: it looks for pandas again.
    """
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.array([0])
        finally:
            sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """An entry of `sys.meta_path` that hides pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:  # noqa: ARG004  # the import protocol
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _buffer(values: Any) -> pa.Buffer:
    return pa.py_buffer(values)


DESCRIPTION = b"description"
"""The key of a column's meaning in its field's metadata."""


def described(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = True) -> "pa.Field[Any]":
    """Returns a column whose meaning is stored in the field's metadata."""
    return pa.field(name, kind, nullable=nullable, metadata={DESCRIPTION: meaning.encode()})
