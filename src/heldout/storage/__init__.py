"""Access to files on local paths and in `s3://`."""

from heldout.storage.base import FileInfo, Files, Versioned
from heldout.storage.local import discard_partial_files, open_atomic, why_not_writable
from heldout.storage.storage import Storage, is_remote, split_location

__all__ = [
    "FileInfo",
    "Files",
    "Storage",
    "Versioned",
    "discard_partial_files",
    "is_remote",
    "open_atomic",
    "split_location",
    "why_not_writable",
]
