"""Writes beside an output which of its rows are of which file, where a source has several.

A row's number says which row it is only to someone who knows the order of the files. Other tools
order names differently, so the list travels with the output: ``labels.npy.shards.csv`` has the
columns file, first_row and rows.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from streamkm.files import read_bytes, remove_file, write_atomically
from streamkm.sinks import beside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources import Part

__all__ = ["write_parts"]

HEADER = ("file", "first_row", "rows")


def write_parts(target: Path, parts: Sequence[Part]) -> Path | None:
    """Write the list of `parts` beside the output `target`, unless it is there already.

    Without parts, a list that an earlier output of this name left behind is deleted: it would
    tell a wrong order.

    Returns
    -------
    Path or None
        The list; None without parts.
    """
    path = beside(target, ".shards.csv")
    try:
        found = read_bytes(path)
    except FileNotFoundError:
        found = b""
    if not parts:
        if found.startswith(_text([])):
            remove_file(path)
        return None
    text = _text(parts)
    if found != text:
        write_atomically(path, text)
    return path


def _text(parts: Sequence[Part]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((part.name, part.first_row, part.n_rows) for part in parts)
    # A name that is no UTF-8 keeps its bytes.
    return text.getvalue().encode("utf-8", "surrogateescape")
