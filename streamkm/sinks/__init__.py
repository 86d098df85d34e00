"""Sinks: the files that labels and distances are written to."""

from streamkm.sinks.base import PartedSink, Sink, commit_together
from streamkm.sinks.growing import GrowingFile
from streamkm.sinks.part import Part, Written
from streamkm.sinks.places import IN_STORE, beside, kind_of
from streamkm.sinks.registry import (
    SINKS,
    check_origin,
    check_target,
    chunk_rows_of,
    copied_bytes,
    has_parts,
    is_copy,
    is_table,
    open_part,
    open_sink,
    stored_crc32,
    tidy,
    unfinished_bytes,
    unfinished_rows,
)

__all__ = [
    "IN_STORE",
    "SINKS",
    "GrowingFile",
    "Part",
    "PartedSink",
    "Sink",
    "Written",
    "beside",
    "check_origin",
    "check_target",
    "chunk_rows_of",
    "commit_together",
    "copied_bytes",
    "has_parts",
    "is_copy",
    "is_table",
    "kind_of",
    "open_part",
    "open_sink",
    "stored_crc32",
    "tidy",
    "unfinished_bytes",
    "unfinished_rows",
]
