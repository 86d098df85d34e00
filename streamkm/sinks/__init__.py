"""Sinks: the files that labels and distances are written to."""

from streamkm.sinks.base import Sink, commit_together
from streamkm.sinks.places import beside
from streamkm.sinks.registry import (
    SINKS,
    check_target,
    open_sink,
    stored_crc32,
    tidy,
    unfinished_bytes,
    unfinished_rows,
)

__all__ = [
    "SINKS",
    "Sink",
    "beside",
    "check_target",
    "commit_together",
    "open_sink",
    "stored_crc32",
    "tidy",
    "unfinished_bytes",
    "unfinished_rows",
]
