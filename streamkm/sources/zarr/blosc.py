"""Some blocks of a stored Blosc chunk, read and decoded without the others.

Blosc cuts a chunk into blocks and compresses each by itself; a table of their
places follows the header. Blocks that lie side by side, behind a header and a
table of their own, are a smaller chunk again, which Blosc decodes as any other.
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

#: Version of the format, version of the codec, flags, bytes of an element; then decoded bytes
#: of the chunk, of a block, and stored bytes of the chunk with this header.
_HEADER = struct.Struct("<4B3I")
HEADER_BYTES = _HEADER.size
_VERSION = 2
_STORED_AS_IT_IS = 0x2
#: A table longer than this belongs to no chunk worth reading in parts.
_MAX_BLOCKS = 1 << 16


class BlockTable(NamedTuple):
    """Where the blocks of a chunk lie."""

    header: tuple[int, ...]
    decoded: int
    """Bytes of the whole chunk, decoded."""
    block: int
    """Bytes of a block, decoded; the last may be shorter."""
    starts: np.ndarray
    """First stored byte of each block; empty if the chunk is stored as it is."""
    stops: np.ndarray
    """Where no byte of the block follows any more."""


def is_stored_as_it_is(header: np.ndarray, decoded: int) -> bool:
    """Whether a chunk's first `HEADER_BYTES` say that its `decoded` bytes follow as they are."""
    version, _, flags, _, nbytes, _, length = _HEADER.unpack(header.tobytes())
    sizes = (decoded, HEADER_BYTES + decoded)
    return version == _VERSION and bool(flags & _STORED_AS_IT_IS) and (nbytes, length) == sizes


def read_table(read: Read, stored: int, decoded: int) -> BlockTable | None:
    """Header and table of a chunk; None if it can only be decoded, or refused, as a whole.

    Parameters
    ----------
    read : callable
        Fills an array of bytes from a place in the stored chunk on.
    stored, decoded : int
        Bytes of the chunk.
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
    # Blosc's threads write blocks in any order, so a block ends where any other begins.
    bounds = np.append(np.unique(starts), length)
    return BlockTable(header, decoded, block, starts, bounds[np.searchsorted(bounds, starts) + 1])


def read_blocks(
    read: Read, table: BlockTable, start: int, stop: int, out: np.ndarray, scratch: np.ndarray
) -> bool:
    """Fill `out` with the decoded bytes from `start` to `stop` of a chunk, if `scratch` suffices.

    Parameters
    ----------
    read : callable
        As of `read_table`.
    table : BlockTable
        Of the chunk.
    start, stop : int
        Decoded bytes, within the chunk, at least one.
    out : ndarray of uint8, shape (stop - start,)
        Filled completely, or not at all.
    scratch : ndarray of uint8
        Holds blocks as stored, and decoded ones of which only a part is wanted.

    Returns
    -------
    bool
        Whether it was done; if not, the chunk is to be decoded as a whole.
    """
    if not table.starts.size:
        read(out, HEADER_BYTES + start)
        return True
    first, last = start // table.block, -(-stop // table.block)
    if first and last - first == 1 and last * table.block > table.decoded:
        # The last block may be short, and a chunk is no shorter than its block size.
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
            piece = chunk[place : places[index + 1]]
            read(piece, int(table.starts[first + index]))
    if is_exact:
        numcodecs.blosc.decompress(chunk, out)
    else:
        decoded = rest[: end - begin]
        numcodecs.blosc.decompress(chunk, decoded)
        out[:] = decoded[start - begin : stop - begin]
    return True
