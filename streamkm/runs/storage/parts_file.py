"""Writes beside an output which of its rows are of which file, where a source has several.

A row's number says which row it is only to someone who knows the order of the files. Other tools
order names differently, so the list travels with the output: ``labels.npy.shards.csv`` has the
columns file, first_row and rows.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from streamkm.errors import OutputExistsError
from streamkm.files import read_bytes, remove_file, write_atomically
from streamkm.sinks import beside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources import Part

__all__ = ["check_parts", "write_parts"]

HEADER = ("file", "first_row", "rows")


def write_parts(target: Path, parts: Sequence[Part]) -> Path | None:
    """Write the list of `parts` beside the output `target`, unless it is there already.

    Without parts, a list that an earlier output of this name left behind is deleted: it would
    tell a wrong order.

    Returns
    -------
    Path or None
        The list; None without parts.

    Raises
    ------
    OutputExistsError
        As `check_parts`.
    """
    path = _path(target)
    found = _found(path)
    if not parts:
        if _is_list(found):
            remove_file(path)
        return None
    check_parts(target, parts)
    text = _text(parts)
    if found != text:
        write_atomically(path, text)
    return path


def check_parts(target: Path, parts: Sequence[Part]) -> None:
    """Raise `OutputExistsError` if the list of `parts` would overwrite what is no such list."""
    path = _path(target)
    found = _found(path) if parts else b""
    if found != b"" and not _is_list(found):
        raise OutputExistsError(
            f"{path}: exists already and is no list of shards, as there will be one beside "
            f"{target.name}; move it or choose another name for the output"
        )


def _path(target: Path) -> Path:
    return beside(target, ".shards.csv")


def _found(path: Path) -> bytes | None:
    """The content of `path`, empty if it is not there; None if it is no file."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return b""
    except IsADirectoryError:
        return None


def _is_list(content: bytes | None) -> bool:
    return content is not None and content.startswith(_text([]))


def _text(parts: Sequence[Part]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((part.name, part.first_row, part.n_rows) for part in parts)
    # A name that is no UTF-8 keeps its bytes.
    return text.getvalue().encode("utf-8", "surrogateescape")
