"""Reads and decodes some blocks of a stored Blosc chunk without the others.

A block here is one of Blosc's own. Blosc cuts a chunk into blocks and compresses each by itself; a
table of their places follows the header. Consecutive blocks behind a new header and a new table are
a smaller chunk, which Blosc decodes like any other.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numcodecs.blosc
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[np.ndarray, int], None]

__all__ = ["HEADER_BYTES", "BlockTable", "is_stored_as_it_is", "read_blocks", "read_table"]

#: One byte each for the version of the format, the version of the codec, flags and the bytes of an
#: element; then the decoded bytes of the chunk and of a block, and the stored bytes of the chunk.
_HEADER = struct.Struct("<4B3I")
HEADER_BYTES = _HEADER.size
_VERSION = 2
_STORED_AS_IT_IS = 0x2
#: Blocks of a chunk that is read in parts, at most: a longer table is not worth reading.
_MAX_BLOCKS = 1 << 16


class BlockTable(NamedTuple):
    """Where the blocks of a chunk are stored."""

    header: tuple[int, ...]
    """The fields of the header."""
    decoded: int
    """Decoded bytes of the whole chunk."""
    block: int
    """Decoded bytes of a block; the last block may be shorter."""
    starts: np.ndarray
    """First stored byte of each block; empty if the chunk is stored as it is."""
    stops: np.ndarray
    """Stored byte after the last one of each block."""


def is_stored_as_it_is(header: np.ndarray, decoded: int) -> bool:
    """Whether a header says that the chunk's `decoded` bytes follow uncompressed."""
    version, _, flags, _, nbytes, _, length = _HEADER.unpack(header.tobytes())
    sizes = (decoded, HEADER_BYTES + decoded)
    return version == _VERSION and bool(flags & _STORED_AS_IT_IS) and (nbytes, length) == sizes


def read_table(read: Read, stored: int, decoded: int) -> BlockTable | None:
    """Read the header and the table of a chunk.

    Parameters
    ----------
    read : callable
        Fills an array of bytes from a position in the stored chunk on.
    stored, decoded : int
        Bytes of the chunk.

    Returns
    -------
    BlockTable or None
        None if the chunk must be decoded, or refused, as a whole.
    """
    if stored < HEADER_BYTES:
        return None
    raw = np.empty(HEADER_BYTES, np.uint8)
    read(raw, 0)
    header = _HEADER.unpack(raw.tobytes())
    version, flags, (nbytes, block, length) = header[0], header[2], header[4:]
    if version != _VERSION or nbytes != decoded or not 0 < block <= decoded or length > stored:
        return None
    n_blocks = -(-decoded // block)
    if flags & _STORED_AS_IT_IS:
        empty = np.empty(0, np.int64)
        whole = length == HEADER_BYTES + decoded
        return BlockTable(header, decoded, block, empty, empty) if whole else None
    first = HEADER_BYTES + 4 * n_blocks
    if n_blocks > _MAX_BLOCKS or first > length:
        return None
    table = np.empty(4 * n_blocks, np.uint8)
    read(table, HEADER_BYTES)
    starts = table.view("<i4").astype(np.int64)
    if starts.min() < first or starts.max() >= length:
        return None
    # Blosc's threads write blocks in any order, so a block ends at the next larger start.
    bounds = np.append(np.unique(starts), length)
    return BlockTable(header, decoded, block, starts, bounds[np.searchsorted(bounds, starts) + 1])


def read_blocks(
    read: Read, table: BlockTable, start: int, stop: int, out: np.ndarray, scratch: np.ndarray
) -> bool:
    """Fill `out` with the decoded bytes from `start` to `stop` of a chunk.

    Parameters
    ----------
    read : callable
        As in `read_table`.
    table : BlockTable
        The table of the chunk.
    start, stop : int
        Decoded bytes within the chunk, at least one.
    out : ndarray of uint8, shape (stop - start,)
        Filled completely, or not at all.
    scratch : ndarray of uint8
        Memory for stored blocks, and for decoded blocks that are only partly wanted.

    Returns
    -------
    bool
        False if `scratch` is too small: the chunk must be decoded as a whole.
    """
    if not table.starts.size:
        read(out, HEADER_BYTES + start)
        return True
    first, last = start // table.block, -(-stop // table.block)
    if first and last - first == 1 and last * table.block > table.decoded:
        # The last block may be short, but a chunk is at least as long as its block size.
        first -= 1
    begin, end = first * table.block, min(last * table.block, table.decoded)
    chosen = slice(first, last)
    lengths = table.stops[chosen] - table.starts[chosen]
    places = HEADER_BYTES + 4 * len(lengths) + np.concatenate(([0], np.cumsum(lengths)))
    total = int(places[-1])
    is_exact = (begin, end) == (start, stop)
    if total + (0 if is_exact else end - begin) > scratch.size:
        return False
    chunk, rest = scratch[:total], scratch[total:]
    header = _HEADER.pack(*table.header[:4], end - begin, table.block, total)
    chunk[:HEADER_BYTES] = np.frombuffer(header, np.uint8)
    chunk[HEADER_BYTES : places[0]] = places[:-1].astype("<i4").view(np.uint8)
    if (table.stops[chosen][:-1] == table.starts[chosen][1:]).all():
        read(chunk[places[0] :], int(table.starts[first]))
    else:
        for index, place in enumerate(places[:-1]):
            block = chunk[place : places[index + 1]]
            read(block, int(table.starts[first + index]))
    if is_exact:
        numcodecs.blosc.decompress(chunk, out)
    else:
        decoded = rest[: end - begin]
        numcodecs.blosc.decompress(chunk, decoded)
        out[:] = decoded[start - begin : stop - begin]
    return True
