"""Counts the nulls of a Parquet file's columns, as its footer tells them.

pyarrow tells them too, but parses all statistics of a column for it, and ends the process where
these are damaged. Here a damaged footer says nothing. The footer is a struct of Thrift's compact
protocol; the few fields that lead to the counts are followed by their numbers in parquet.thrift,
the definition of the format, and all others are stepped over.
"""

from __future__ import annotations

import io
from typing import IO, Any

__all__ = ["null_counts"]

#: The end of a file: the footer's length in 4 bytes, and a word.
_END_BYTES, _MAGIC = 8, b"PAR1"
#: Structs and lists within each other, at most; a footer has 8.
MOST_LEVELS = 16
#: Types of values.
_TRUE, _FALSE, _BINARY, _STRUCT = 1, 2, 8, 12
_INTEGERS, _LISTS = (5, 6, 4), (9, 10)
#: Bytes of other types, whose values are not needed: bool and byte in a list, and double.
_FIXED = {1: 1, 2: 1, 3: 1, 7: 8}
#: Fields by number: FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data,
#: ColumnMetaData.path_in_schema and .statistics, Statistics.null_count.
_GROUPS, _COLUMNS, _ABOUT, _PATH, _STATISTICS, _NULL_COUNT = 4, 1, 3, 3, 12, 3


def null_counts(file: IO[bytes], *, most_bytes: int) -> dict[str, int]:
    """The nulls of each column that says how many it has, by the name of the column.

    A null list counts as one null, and so do an empty list and each null in a list.

    Parameters
    ----------
    file : binary file
        The Parquet file, which can seek.
    most_bytes : int
        Bytes of a footer that is read, at most. 2 million bytes take a second.

    Returns
    -------
    dict of str to int
        A column is missing if a row group does not count its nulls. Empty if the footer is
        damaged, encrypted, or larger than `most_bytes`.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - _END_BYTES, 0))
    end = file.read(_END_BYTES)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or not length <= min(size - _END_BYTES, most_bytes):
        return {}
    file.seek(size - _END_BYTES - length)
    footer = file.read(length)
    counts: dict[str, int | None] = {}
    try:
        for group in _struct(footer, 0, 0)[0][_GROUPS]:
            for chunk in group[_COLUMNS]:
                about = chunk[_ABOUT]
                name = about[_PATH][0].decode()
                found, before = about.get(_STATISTICS, {}).get(_NULL_COUNT), counts.get(name, 0)
                counts[name] = None if found is None or before is None else before + found
    except (LookupError, ValueError, TypeError, AttributeError):
        return {}
    return {name: count for name, count in counts.items() if count is not None and count >= 0}


def _struct(content: bytes, at: int, level: int) -> tuple[dict[int, Any], int]:
    """The struct at `at`, its fields by their numbers, and where it ends.

    Raises
    ------
    IndexError, ValueError
        If it does not end in `content`, or is no struct of a footer.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := content[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            zigzag, at = _varint(content, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        kind = head & 15
        if kind in (_TRUE, _FALSE):
            # Such a field has no other value than its type.
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _value(content, at, kind, level)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int, level: int) -> tuple[Any, int]:
    """The value of type `kind` at `at`, within `level` others, and where it ends."""
    if kind in _INTEGERS:
        zigzag, at = _varint(content, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == _BINARY:
        length, at = _varint(content, at)
        return content[at : at + length], at + length
    if level > MOST_LEVELS:
        raise ValueError("values within values")
    if kind == _STRUCT:
        return _struct(content, at, level + 1)
    if kind in _LISTS:
        length, kind = content[at] >> 4, content[at] & 15
        at += 1
        if length == 15:
            length, at = _varint(content, at)
        elements = []
        for _ in range(length):
            element, at = _value(content, at, kind, level + 1)
            elements.append(element)
        return elements, at
    if kind in _FIXED:
        content[at]  # An element takes a byte at least: a wrong length ends here.
        return None, at + _FIXED[kind]
    raise ValueError(f"no type of a footer: {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, 7 bits a byte from the lowest on, and where it ends."""
    byte = content[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while byte >= 128:
        at += 1
        byte = content[at]
        value |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            raise ValueError("an integer of more than 64 bits")
    return value, at + 1
