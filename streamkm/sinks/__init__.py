"""Sinks: the files that labels and distances are written to."""

from streamkm.sinks.base import Sink, commit_together
from streamkm.sinks.places import beside
from streamkm.sinks.registry import (
    CHUNK_ROWS,
    SINKS,
    check_origin,
    check_target,
    copied_bytes,
    is_copy,
    is_table,
    open_sink,
    stored_crc32,
    tidy,
    unfinished_bytes,
    unfinished_rows,
)

__all__ = [
    "CHUNK_ROWS",
    "SINKS",
    "Sink",
    "beside",
    "check_origin",
    "check_target",
    "commit_together",
    "copied_bytes",
    "is_copy",
    "is_table",
    "open_sink",
    "stored_crc32",
    "tidy",
    "unfinished_bytes",
    "unfinished_rows",
]
